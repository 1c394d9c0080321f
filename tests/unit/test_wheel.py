"""The contents of a wheel of this tree: the package, its two extensions, the licences, and nothing else.

The wheel is built in the build directory of the tree, which takes only seconds after an install from the
tree. It is built without build isolation, so that no package index is needed.
"""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
import zipfile
from email.message import Message
from email.parser import Parser
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src"
EXTENSIONS = ("inferd/_fastpath", "inferd/engine/local/_llama")

# Without a build directory llama.cpp is compiled first.
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    for tool in ("scikit_build_core", "Cython", "cmake", "ninja", "pip"):
        pytest.importorskip(tool, reason=f"a build without isolation needs {tool}: install inferd[test]")
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "wheel"
    folder.mkdir(exist_ok=True)
    # The workers of a run share the folder, and the build directory, in which one may build at a time.
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not [*folder.glob("*.whl")]:
            build(folder)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def build(folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--no-index", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "--wheel-dir", str(folder), str(ROOT)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]


@pytest.fixture(scope="module")
def info(wheel: zipfile.ZipFile) -> str:
    """The name of the metadata folder."""
    (name,) = {part for name in wheel.namelist() if (part := name.split("/")[0]) != "inferd"}
    return name


def metadata(wheel: zipfile.ZipFile, info: str) -> Message:
    return Parser().parsestr(wheel.read(f"{info}/METADATA").decode())


def test_the_package_is_complete_and_nothing_else(wheel: zipfile.ZipFile, info: str) -> None:
    kept = {".py", ".pyi", ".typed", ".html", ".css", ".js", ".svg"}
    sources = (file for file in (SOURCE / "inferd").rglob("*") if file.suffix in kept)
    extensions = [f"{name}{EXTENSION_SUFFIXES[0]}" for name in EXTENSIONS]
    pages = {f"inferd/docs/{page.name}" for page in (ROOT / "docs").iterdir() if page.suffix != ".svg"}
    expected = {file.relative_to(SOURCE).as_posix() for file in sources} | set(extensions) | pages
    assert {name for name in wheel.namelist() if not name.startswith(f"{info}/")} == expected


def test_the_metadata_folder_holds_only_its_own(wheel: zipfile.ZipFile, info: str) -> None:
    assert re.fullmatch(r"inferd-[\d.]+\.dist-info", info)
    licences = ["LICENSE", *(f"vendor/licenses/{file.name}" for file in (ROOT / "vendor/licenses").iterdir())]
    expected = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", *(f"licenses/{name}" for name in licences)}
    inside = {name.removeprefix(f"{info}/") for name in wheel.namelist() if name.startswith(f"{info}/")}
    assert inside == expected


def test_each_licence_is_named_in_the_metadata(wheel: zipfile.ZipFile, info: str) -> None:
    named = set(metadata(wheel, info).get_all("License-File", []))
    assert {name for name in wheel.namelist() if "/licenses/" in name} == {
        f"{info}/licenses/{name}" for name in named
    }


def test_the_commands_are_installed(wheel: zipfile.ZipFile, info: str) -> None:
    lines = wheel.read(f"{info}/entry_points.txt").decode().splitlines()
    assert "inferd = inferd.cli:main" in lines
    assert "inferd-daemon = inferd.cli:daemon_main" in lines
    assert "inferdctl = inferd.cli.ctl:main" in lines


@pytest.mark.parametrize("name", EXTENSIONS)
def test_an_extension_shows_its_entry_point_and_no_other_symbol(
    wheel: zipfile.ZipFile, name: str, tmp_path: Path
) -> None:
    """Another package in the process may contain a llama.cpp or ggml of another version."""
    library = wheel.extract(f"{name}{EXTENSION_SUFFIXES[0]}", tmp_path)
    entry = f"PyInit_{name.split('/')[-1]}"
    symbols = [entry, "llama_decode", "ggml_init", "gguf_init_empty", "mtmd_tokenize"]
    code = (
        "import sys, ctypes as c; l = c.CDLL(sys.argv[1]); print(*[s for s in sys.argv[2:] if hasattr(l, s)])"
    )
    command = [sys.executable, "-c", code, library, *symbols]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [entry]
