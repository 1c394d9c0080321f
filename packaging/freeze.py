"""Pins the dependencies of inferd, and writes its bill of materials.

Run it when a dependency changes, and before a release:

    pip install uv pip-audit packaging
    python packaging/freeze.py

``requirements.txt`` has every package of a user's installation with the extras ``http`` and ``bedrock``.
``build-requirements.txt`` has the packages that are needed to compile inferd. Each package has one version
and the hashes of its files, as ``pip install --require-hashes -r`` requires. From both lists the script
writes ``sbom.cdx.json`` in the CycloneDX format, with the declared licence of each package, and with the
sources that are compiled into inferd. At the end an audit looks the packages up in a public list of
vulnerabilities. If it finds any, the exit status is 1.

``--no-audit`` skips the audit. ``--keep-locks`` writes only the bill of materials.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import toolchain
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).parent
ROOT = HERE.parent
LOCKS = ("requirements.txt", "build-requirements.txt")
COMPILE = ["uv", "pip", "compile", "--generate-hashes", "--universal", "--python-version", "3.10"]
QUIET = ["--quiet", "--no-header", "--no-annotate", "--no-emit-index-url"]


BUNDLED = {
    "cpp-httplib": "MIT",
    "llamafile-sgemm": "MIT",
    "miniaudio": "Unlicense OR MIT-0",
    "nlohmann-json": "MIT",
    "rotate-bits": "MIT",
    "stb_image": "MIT OR Unlicense",
    "subprocess": "Unlicense",
    "xxhash": "BSD-2-Clause",
    "yarn": "MIT",
}
"""What llama.cpp carries of others, and its licence; the texts are in ``vendor/licenses``."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keep-locks", action="store_true")
    parser.add_argument("--no-audit", action="store_true")
    chosen = parser.parse_args()
    if not chosen.keep_locks:
        compile_lock(["pyproject.toml", "--extra", "http", "--extra", "bedrock"], LOCKS[0])
        with tempfile.TemporaryDirectory() as scratch:
            wanted = Path(scratch, "build.in")
            wanted.write_text("\n".join(build_requirements()))
            compile_lock([str(wanted)], LOCKS[1])
    (HERE / "sbom.cdx.json").write_text(json.dumps(bill_of_materials(), indent=1, sort_keys=True) + "\n")
    if chosen.no_audit:
        return 0
    audits = [["pip-audit", "--disable-pip", "--require-hashes", "-r", str(HERE / lock)] for lock in LOCKS]
    return max(subprocess.run(audit, check=False).returncode for audit in audits)


def compile_lock(source: list[str], lock: str) -> None:
    subprocess.run([*COMPILE, *QUIET, *source, "--output-file", str(HERE / lock)], cwd=ROOT, check=True)


def build_requirements() -> list[str]:
    """From pyproject.toml: the build requirements, and the versions of CMake and ninja."""
    text = (ROOT / "pyproject.toml").read_text()
    lists = re.findall(r"(?m)^(?:build\.)?requires = \[(.*?)\]", text)
    return [word for part in lists for word in re.findall(r'"([^"]+)"', part)]


def bill_of_materials() -> dict[str, Any]:
    """The packages of both locks, llama.cpp with what it bundles, and the C++ runtime of the wheels."""
    components: dict[str, dict[str, Any]] = {}
    for lock, scope in zip(LOCKS, ("required", "excluded"), strict=True):
        for found in packages(HERE / lock):
            component = components.setdefault(found["purl"], found)
            component.setdefault("scope", scope)
    for component, licence in zip(components.values(), licences(components.values()), strict=True):
        component["licenses"] = licence
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
            {"type": "library", "name": name, "licenses": [{"expression": licence}]}
            for name, licence in sorted(BUNDLED.items())
        ],
    }
    runtime = {
        "type": "library",
        "name": "libc++",
        "version": f"of ziglang {toolchain.ZIG}",
        "purl": f"pkg:pypi/ziglang@{toolchain.ZIG}",
        "scope": "required",
        "licenses": [{"expression": "Apache-2.0 WITH LLVM-exception"}],
    }
    version = re.search(r'(?m)^version = "(.*)"', (ROOT / "pyproject.toml").read_text())
    assert version is not None
    product = {"type": "application", "name": "inferd", "version": version[1]}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": product | {"licenses": [{"license": {"id": "MIT"}}]}},
        "components": [*(components[purl] for purl in sorted(components)), sources, runtime],
    }


def packages(lock: Path) -> list[dict[str, Any]]:
    """The packages of a lock in CycloneDX form, without licences."""
    found = []
    for line in lock.read_text().replace("\\\n", " ").splitlines():
        words, *hashes = line.split("--hash=sha256:")
        package = Requirement(words.strip())
        name, version = canonicalize_name(package.name), str(package.specifier).removeprefix("==")
        found.append(
            {
                "type": "library",
                "name": name,
                "version": version,
                "purl": f"pkg:pypi/{name}@{version}",
                "hashes": [{"alg": "SHA-256", "content": each.strip()} for each in hashes],
            }
        )
    return found


def licences(components: Iterable[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The licence of each package, from its metadata, which pip reads from the index."""
    wanted = [(each["name"], each["version"]) for each in components]
    told: dict[tuple[str, str], list[dict[str, Any]]] = {}
    while rest := [each for each in wanted if each not in told]:
        # pip takes one version of a package at a time.
        told |= reported([f"{name}=={version}" for name, version in dict(rest).items()])
    return [told[each] for each in wanted]


def reported(requirements: list[str]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--ignore-installed",
        "--no-deps",
        "--quiet",
    ]
    command += ["--ignore-requires-python", "--report", "-", *requirements]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    metadata = [each["metadata"] for each in json.loads(done.stdout)["install"]]
    return {(canonicalize_name(each["name"]), each["version"]): licence(each) for each in metadata}


def licence(metadata: dict[str, Any]) -> list[dict[str, Any]]:
    """The licence from the SPDX expression, else from the classifiers, else from the field of older
    metadata."""
    if "license_expression" in metadata:
        return [{"expression": metadata["license_expression"]}]
    classifiers = [each for each in metadata.get("classifier", []) if each.startswith("License ::")]
    names = [each.rpartition(" :: ")[2] for each in classifiers] or [metadata.get("license", "")]
    return [{"license": {"name": each}} for each in names]


if __name__ == "__main__":
    sys.exit(main())
