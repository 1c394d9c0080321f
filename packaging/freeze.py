"""Pins what inferd needs, and writes down what it is made of.

Run it when a dependency changes, and before a release:

    pip install uv cyclonedx-bom pip-audit
    python packaging/freeze.py

``requirements.txt`` has every package that a user's machine gets, ``build-requirements.txt`` what compiles
inferd, each at one version with the hashes of its files: ``pip install --require-hashes -r`` takes nothing
else. Both become ``sbom.cdx.json``, in CycloneDX, together with the sources that are compiled in. At the end
the audit asks a public list which of it is known to be vulnerable; any finding ends this with 1.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
LOCKS = ("requirements.txt", "build-requirements.txt")
COMPILE = ["uv", "pip", "compile", "--generate-hashes", "--universal", "--python-version", "3.10"]
QUIET = ["--quiet", "--no-header", "--no-annotate", "--no-emit-index-url"]


def main() -> int:
    compile_lock(["pyproject.toml", "--extra", "bedrock"], LOCKS[0])
    with tempfile.TemporaryDirectory() as scratch:
        wanted = Path(scratch, "build.in")
        wanted.write_text("\n".join(build_requirements()))
        compile_lock([str(wanted)], LOCKS[1])
    (HERE / "sbom.cdx.json").write_text(json.dumps(bill_of_materials(), indent=1, sort_keys=True) + "\n")
    audits = [["pip-audit", "--disable-pip", "--require-hashes", "-r", str(HERE / lock)] for lock in LOCKS]
    return max(subprocess.run(audit, check=False).returncode for audit in audits)


def compile_lock(source: list[str], lock: str) -> None:
    subprocess.run([*COMPILE, *QUIET, *source, "--output-file", str(HERE / lock)], cwd=ROOT, check=True)


def build_requirements() -> list[str]:
    """Of pyproject.toml: what the build asks for, and what it lets CMake and ninja be."""
    text = (ROOT / "pyproject.toml").read_text()
    lists = re.findall(r"(?m)^(?:build\.)?requires = \[(.*?)\]", text)
    return [word for part in lists for word in re.findall(r'"([^"]+)"', part)]


def bill_of_materials() -> dict[str, Any]:
    """The packages of both locks, and llama.cpp with what it bundles."""
    components: dict[str, dict[str, Any]] = {}
    for lock, scope in zip(LOCKS, ("required", "excluded"), strict=True):
        for found in packages(HERE / lock):
            component = components.setdefault(found["purl"], found)
            component.setdefault("scope", scope)
    pin = json.loads((ROOT / "vendor/llama.cpp/pin.json").read_text())
    sources = {
        "type": "library",
        "name": "llama.cpp",
        "version": pin["commit"],
        "purl": f"pkg:github/ggml-org/llama.cpp@{pin['commit']}",
        "scope": "required",
        "hashes": [{"alg": "SHA-256", "content": pin["sha256"]}],
        "licenses": [{"license": {"id": pin["license"]}}],
        "components": [
            {"type": "library", "name": path.stem}
            for path in sorted((ROOT / "vendor/licenses").glob("*.txt"))
            if path.stem != "llama.cpp"
        ],
    }
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {"type": "application", "name": "inferd", "licenses": [{"license": {"id": "MIT"}}]}
        },
        "components": [*(components[purl] for purl in sorted(components)), sources],
    }


def packages(lock: Path) -> list[dict[str, Any]]:
    """The packages of a lock as CycloneDX has them."""
    command = ["cyclonedx-py", "requirements", str(lock), "--output-reproducible", "--of", "JSON", "-o", "-"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    kept = []
    for component in json.loads(done.stdout)["components"]:
        files = [ref for ref in component["externalReferences"] if ref["type"] == "distribution"]
        hashes = [each for ref in files for each in ref["hashes"]]
        kept.append(
            {**{key: component[key] for key in ("type", "name", "version", "purl")}, "hashes": hashes}
        )
    return kept


if __name__ == "__main__":
    sys.exit(main())
