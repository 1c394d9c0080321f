"""The step that fetches and patches llama.cpp's sources.

As in a build, the step runs as a separate program. It runs in a folder with a pin of the test.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VENDOR = ROOT / "vendor"
NAME = "pkg-1.0.tar.gz"


class Step:
    """A vendoring folder of its own with `fetch.py`, a pin, and a cache that holds the pinned archive."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "vendored"
        self.cache = folder / "cache"
        self.folder.mkdir()
        shutil.copy(VENDOR / "llama.cpp" / "fetch.py", self.folder)

    def pin(self, archive: bytes, paths: list[str], **changes: str) -> None:
        """Writes a pin for the archive, and puts the archive into the cache that the step searches first."""
        pin = {
            "package": "inferd-no-such-package",
            "version": "1.0",
            "sdist": NAME,
            "sha256": hashlib.sha256(archive).hexdigest(),
            "root": "pkg-1.0/vendor/lib",
            "paths": paths,
        }
        (self.folder / "pin.json").write_text(json.dumps(pin | changes))
        base = self.cache / "Library" / "Caches" if sys.platform == "darwin" else self.cache
        cached = base / "inferd" / "build" / NAME
        cached.parent.mkdir(parents=True, exist_ok=True)
        cached.write_bytes(archive)

    def patch(self, text: str) -> None:
        (self.folder / "patches").mkdir(exist_ok=True)
        (self.folder / "patches" / "a.patch").write_text(text)

    def run(self) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {
            "XDG_CACHE_HOME": str(self.cache),
            "LOCALAPPDATA": str(self.cache),
            "HOME": str(self.cache),
            "PIP_NO_INDEX": "1",
        }
        command = [sys.executable, str(self.folder / "fetch.py")]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    def files(self) -> set[str]:
        """All files there except the step itself, including the stamp."""
        found = (file for file in self.folder.rglob("*") if file.is_file())
        return {file.relative_to(self.folder).as_posix() for file in found} - {
            "fetch.py",
            "pin.json",
            "patches/a.patch",
        }


@pytest.fixture
def step(tmp_path: Path) -> Step:
    return Step(tmp_path)


def archive(files: dict[str, str]) -> bytes:
    """A .tar.gz with these files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return buffer.getvalue()


LIB = "pkg-1.0/vendor/lib"
SDIST = archive(
    {
        "pkg-1.0/setup.py": "",
        f"{LIB}/CMakeLists.txt": "one",
        f"{LIB}/src/a.c": "a",
        f"{LIB}/src/deep/b.c": "b",
        f"{LIB}/srcx/c.c": "c",
        f"{LIB}/docs/d.md": "d",
        f"{LIB}/src/../../../evil": "e",
    }
)
PATHS = ["CMakeLists.txt", "src/"]
UNPACKED = {".complete", "CMakeLists.txt", "src/a.c", "src/deep/b.c"}


def test_unpacks_the_listed_paths_only(step: Step) -> None:
    step.pin(SDIST, PATHS)
    assert step.run().returncode == 0
    assert step.files() == UNPACKED
    assert (step.folder / "src" / "deep" / "b.c").read_text() == "b"
    assert not (step.folder.parent / "evil").exists()


def test_does_nothing_if_the_sources_exist(step: Step) -> None:
    step.pin(SDIST, PATHS)
    step.run()
    (step.folder / "src" / "a.c").write_text("edited")
    done = step.run()
    assert (done.returncode, done.stdout) == (0, "")
    assert (step.folder / "src" / "a.c").read_text() == "edited"


def test_a_changed_pin_replaces_the_sources(step: Step) -> None:
    step.pin(SDIST, PATHS)
    step.run()
    step.pin(archive({f"{LIB}/CMakeLists.txt": "two"}), ["CMakeLists.txt"])
    assert step.run().returncode == 0
    assert step.files() == {".complete", "CMakeLists.txt"}
    assert (step.folder / "CMakeLists.txt").read_text() == "two"


def test_an_interrupted_run_does_not_look_complete(step: Step) -> None:
    """A failed or killed run leaves a scratch folder and no stamp."""
    step.pin(SDIST, PATHS)
    step.run()
    step.pin(SDIST[: len(SDIST) // 2], PATHS)
    assert step.run().returncode == 1
    assert ".complete" not in step.files()
    (step.folder / ".unpack-killed").mkdir()
    (step.folder / ".unpack-killed" / "half").write_text("")
    step.pin(SDIST, PATHS)
    assert step.run().returncode == 0
    assert step.files() == UNPACKED


def test_a_listed_path_that_the_archive_lacks_is_an_error(step: Step) -> None:
    step.pin(SDIST, [*PATHS, "include/"])
    done = step.run()
    assert done.returncode == 1
    assert "holds no include/" in done.stderr
    assert step.files() == set()


def test_a_wrong_archive_is_never_unpacked(step: Step) -> None:
    """The cached copy is wrong, and pip, the next source, finds nothing."""
    step.pin(SDIST, PATHS, sha256="0" * 64)
    done = step.run()
    assert done.returncode == 1
    assert step.files() == set()


def test_an_archive_given_by_hand_is_verified_too(step: Step, tmp_path: Path) -> None:
    step.pin(SDIST, PATHS)
    other = tmp_path / "other.tar.gz"
    other.write_bytes(archive({f"{LIB}/CMakeLists.txt": "other"}))
    command = [sys.executable, str(step.folder / "fetch.py"), str(other)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert hashlib.sha256(SDIST).hexdigest() in done.stderr
    assert step.files() == set()


LINES = archive({f"{LIB}/src/a.c": "1\n2\n3\n4\n5\n6\n", f"{LIB}/src/b.c": "b\n"})
PATCH = """\
--- a/src/a.c
+++ b/src/a.c
@@ -1,2 +1,3 @@
 1
+one and a half
 2
@@ -5,2 +6,1 @@
-5
 6
--- a/src/new.h
+++ b/src/new.h
@@ -0,0 +1,2 @@
+new
+file
"""


def test_a_patch_changes_the_sources(step: Step) -> None:
    step.pin(LINES, ["src/"])
    step.patch(PATCH)
    done = step.run()
    assert done.returncode == 0, done.stderr
    assert (step.folder / "src" / "a.c").read_text() == "1\none and a half\n2\n3\n4\n6\n"
    assert (step.folder / "src" / "new.h").read_text() == "new\nfile\n"
    assert (step.folder / "src" / "b.c").read_text() == "b\n"


def test_a_changed_patch_replaces_the_sources(step: Step) -> None:
    step.pin(LINES, ["src/"])
    step.run()
    step.patch(PATCH)
    assert step.run().returncode == 0
    assert "half" in (step.folder / "src" / "a.c").read_text()


@pytest.mark.parametrize(
    "changed",
    [
        {"src/a.c": "0\n1\n2\n3\n4\n5\n6\n"},  # a line has moved
        {"src/a.c": "1\n2\n3\n4\nfive\n6\n"},  # the second hunk does not fit, after the first did
        {"src/a.c": "1\n2\n3\n4\n5\n6\n", "src/new.h": ""},  # a file is there already
    ],
)
def test_a_patch_that_does_not_fit_is_an_error(step: Step, changed: dict[str, str]) -> None:
    """An upgrade that moves or changes a patched line is detected before the compilation."""
    step.pin(archive({f"{LIB}/{name}": text for name, text in changed.items()}), ["src/"])
    step.patch(PATCH)
    done = step.run()
    assert done.returncode == 1
    assert "a.patch does not fit src/" in done.stderr
    assert step.files() == set()


LICENCES = {
    "cpp-httplib.txt": "vendor/cpp-httplib/LICENSE",
    "llama.cpp.txt": "LICENSE",
    "llamafile-sgemm.txt": "ggml/src/ggml-cpu/llamafile/sgemm.cpp",
    "miniaudio.txt": "vendor/miniaudio/miniaudio.h",
    "nlohmann-json.txt": "licenses/LICENSE-jsonhpp",
    "rotate-bits.txt": "vendor/hash/rotate-bits/LICENSE.md",
    "stb_image.txt": "vendor/stb/stb_image.h",
    "subprocess.txt": "vendor/sheredom/subprocess.h",
    "xxhash.txt": "vendor/hash/xxhash/LICENSE",
}


def words(text: str) -> str:
    """The text without comment marks and line breaks."""
    return " ".join(re.sub(r"^\s*(//|\*)", "", text, flags=re.MULTILINE).split())


def test_every_licence_is_that_of_the_sources() -> None:
    """A licence that changes with the pin must change here, too; yarn.txt is from a source comment."""
    ours = {file.name: file for file in (VENDOR / "licenses").iterdir()}
    assert set(ours) == {*LICENCES, "yarn.txt"}
    for name, source in LICENCES.items():
        assert words(ours[name].read_text()) in words((VENDOR / "llama.cpp" / source).read_text()), name
    notice = "Copyright (c) 2023 Jeffrey Quesnelle and Bowen Peng"
    assert notice in ours["yarn.txt"].read_text()
    assert notice in (VENDOR / "llama.cpp/ggml/src/ggml-cpu/ops.cpp").read_text()


def test_the_compiler_keeps_the_whole_amx_configuration(tmp_path: Path) -> None:
    """The byte at offset 48 is stored before `ldtilecfg`; without the patch a faulty compiler drops it."""
    folder = VENDOR / "llama.cpp" / "ggml" / "src" / "ggml-cpu" / "amx"
    assert {file.name for file in folder.iterdir() if " _tile_loadconfig(" in file.read_text()} == {
        "tile-config.h"
    }
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        pytest.skip("no C compiler here")
    source = tmp_path / "tile.c"
    source.write_text(
        '#include "tile-config.h"\n'
        "void load(void) {\n"
        "    unsigned char config[64] = {1};\n"
        "    config[48] = 123;\n"
        "    inferd_tile_loadconfig(config);\n"
        "}\n"
    )
    command = [compiler, "-O3", "-mamx-tile", "-I", str(folder), "-S", "-o", "-", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0 and "mamx-tile" in done.stderr:
        pytest.skip("this compiler knows no AMX")
    assert done.returncode == 0, done.stderr
    before, found, _ = done.stdout.partition("ldtilecfg")
    assert found
    assert "123" in before
