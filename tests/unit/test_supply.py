"""The dependencies of inferd: each package at one version with its hashes, and a bill of materials."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from inferd import __version__

ROOT = Path(__file__).parents[2]
LOCKS = ("requirements.txt", "build-requirements.txt")
PIN = json.loads((ROOT / "vendor/llama.cpp/pin.json").read_text())
BILL: dict[str, Any] = json.loads((ROOT / "packaging/sbom.cdx.json").read_text())
PROJECT = (ROOT / "pyproject.toml").read_text()
AGAIN = "run: python packaging/freeze.py"


def locked(name: str) -> list[tuple[Requirement, list[str]]]:
    """The packages of a lock, each with its hashes."""
    text = (ROOT / "packaging" / name).read_text().replace("\\\n", " ")
    found = []
    for line in text.splitlines():
        words, *hashes = line.split("--hash=")
        found.append((Requirement(words.strip()), [each.strip() for each in hashes]))
    return found


def wanted(pattern: str) -> list[Requirement]:
    lists = re.findall(pattern, PROJECT, re.MULTILINE | re.DOTALL)
    assert lists
    return [Requirement(word) for part in lists for word in re.findall(r'"([^"]+)"', part)]


@pytest.mark.parametrize("lock", LOCKS)
def test_every_package_has_one_version_and_its_hashes(lock: str) -> None:
    for package, hashes in locked(lock):
        assert re.fullmatch(r"==[\w.]+", str(package.specifier)), package
        assert hashes, package
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", each) for each in hashes)


@pytest.mark.parametrize(
    ("lock", "pattern"),
    [
        ("requirements.txt", r"^dependencies = \[(.*?)^\]"),
        ("requirements.txt", r"^bedrock = \[(.*?)\]"),
        ("requirements.txt", r"^http = \[(.*?)\]"),
        ("build-requirements.txt", r"^(?:build\.)?requires = \[(.*?)\]"),
    ],
)
def test_the_lock_has_the_projects_dependencies(lock: str, pattern: str) -> None:
    versions: dict[str, set[str]] = {}
    for package, _ in locked(lock):
        (specifier,) = package.specifier
        versions.setdefault(canonicalize_name(package.name), set()).add(specifier.version)
    for requirement in wanted(pattern):
        found = versions.get(canonicalize_name(requirement.name), set())
        assert found, f"{requirement} is not locked; {AGAIN}"
        assert all(requirement.specifier.contains(version) for version in found), AGAIN


def test_the_bill_of_materials_has_locked_and_compiled_in_parts() -> None:
    listed = {(part["name"], part["version"]) for part in BILL["components"]}
    packages = {
        (canonicalize_name(package.name), next(iter(package.specifier)).version)
        for lock in LOCKS
        for package, _ in locked(lock)
    }
    zig = re.search(r'^ZIG = "(.*)"', (ROOT / "packaging/toolchain.py").read_text(), re.MULTILINE)
    assert zig is not None
    assert listed == packages | {("llama.cpp", PIN["commit"]), ("libc++", f"of ziglang {zig[1]}")}, AGAIN
    assert BILL["metadata"]["component"]["version"] == __version__, AGAIN
    (sources,) = [part for part in BILL["components"] if part["name"] == "llama.cpp"]
    assert sources["hashes"] == [{"alg": "SHA-256", "content": PIN["sha256"]}]
    bundled = {path.stem for path in (ROOT / "vendor/licenses").glob("*.txt")} - {"llama.cpp"}
    assert {part["name"] for part in sources["components"]} == bundled


def test_the_bill_of_materials_names_every_licence() -> None:
    (sources,) = [part for part in BILL["components"] if part["name"] == "llama.cpp"]
    for part in (BILL["metadata"]["component"], *BILL["components"], *sources["components"]):
        assert part["licenses"], part["name"]
        for each in part["licenses"]:
            told = each.get("expression") or each["license"].get("id") or each["license"]["name"]
            assert re.search(r"MIT|BSD|Apache|MPL|ISC|PSF|Unlicense|HPND", told), (part["name"], told)


def test_the_bill_of_materials_has_the_hashes_of_the_locks() -> None:
    listed = {each["content"] for part in BILL["components"] for each in part.get("hashes", ())}
    hashes = {each.removeprefix("sha256:") for lock in LOCKS for _, found in locked(lock) for each in found}
    assert listed == hashes | {PIN["sha256"]}, AGAIN


def test_all_packages_have_one_version() -> None:
    """The engine loads only the companion of its own version."""
    for name in ("vulkan", "cuda"):
        companion = (ROOT / "packaging" / name / "pyproject.toml").read_text()
        assert f'version = "{__version__}"' in companion
        assert f'"inferd=={__version__}"' in companion
        assert f'{name} = ["inferd-{name}=={__version__}"]' in PROJECT
    assert f'version = "{__version__}"' in PROJECT
