"""Fetches llama.cpp's sources at the version of `pin.json` into this folder, and applies `patches/`.

CMake runs it at every configure; it returns at once if the sources already match the pin. By hand:

    python vendor/llama.cpp/fetch.py [SDIST]

Without SDIST the source distribution comes from the user's cache, or pip downloads it from the configured
package index. Nothing is unpacked before its SHA-256 matches the pin. The stamp is written last and marks a
complete tree: an interrupted run leaves no stamp, and a changed pin or patch makes the old stamp invalid.

A patch applies completely or not at all: each of its lines must be at the stated position. An upgrade that
moves one of them therefore fails here, and not in the engine.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

HERE = Path(__file__).resolve().parent
PIN = HERE / "pin.json"
STAMP = HERE / ".complete"
PATCHES = HERE / "patches"


class FetchFailed(Exception):
    """The sources cannot be fetched; the text gives the reason."""


def cache_dir() -> Path:
    """The cache directory of the downloaded source distribution."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA", "~/AppData/Local")
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "inferd" / "build"


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def verify(path: Path, pin: dict[str, str]) -> None:
    actual = sha256(path)
    if actual != pin["sha256"]:
        raise FetchFailed(f"{path} has SHA-256 {actual}, but the pin requires {pin['sha256']}")


def download(pin: dict[str, str], target: Path) -> None:
    """Downloads the pinned source distribution to ``target``, which appears only after verification.

    pip asks the package's build backend for its metadata before it keeps the file. If that backend is
    installed, as during a build of inferd, pip uses it instead of downloading it again.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        requirements = Path(scratch) / "requirements.txt"
        requirements.write_text(f"{pin['package']}=={pin['version']} --hash=sha256:{pin['sha256']}\n")
        command = [sys.executable, "-m", "pip", "download", "--require-hashes", "--no-deps"]
        command += ["--no-binary", pin["package"], "--dest", scratch, "-r", str(requirements)]
        if importlib.util.find_spec("scikit_build_core"):
            command.append("--no-build-isolation")
        if subprocess.run(command, check=False).returncode != 0:
            raise FetchFailed("pip could not download the sources; its output above gives the reason")
        archive = Path(scratch) / pin["sdist"]
        if not archive.is_file():
            raise FetchFailed(f"pip has not downloaded {pin['sdist']}")
        verify(archive, pin)
        archive.replace(target)


def wanted(name: str, pin: dict[str, list[str]]) -> bool:
    return any(name.startswith(path) if path.endswith("/") else name == path for path in pin["paths"])


def hunks(patch: Path) -> Iterator[tuple[str, int, list[str], list[str]]]:
    """Each hunk of a unified diff: the file, the first line that it changes, the lines before and after.

    The file has the first name of a header without its ``a/``; a new file begins at line 0.
    """
    name, at = "", 0
    old: list[str] = []
    new: list[str] = []
    for line in [*patch.read_text().splitlines(), "@@"]:
        if line.startswith(("@@", "--- ")) and (old or new):
            yield name, at, old, new
            old, new = [], []
        if line.startswith("--- "):
            name = line[4:].partition("/")[2].partition("\t")[0]
        elif found := re.match(r"@@ -(\d+)", line):
            at = int(found[1])
        elif line[:1] in (" ", "-", "+") and not line.startswith("+++ "):
            if line[0] != "+":
                old.append(line[1:])
            if line[0] != "-":
                new.append(line[1:])


def apply(patch: Path, tree: Path) -> None:
    """Applies a unified diff to the files of ``tree``."""
    moved: dict[str, int] = {}  # the lines by which the earlier hunks have moved the rest of a file
    for name, at, old, new in hunks(patch):
        target = tree / name
        lines = target.read_text().split("\n") if at else [""]
        first = max(at - 1, 0) + moved.get(name, 0)
        if (at == 0 and target.exists()) or lines[first : first + len(old)] != old:
            raise FetchFailed(
                f"{patch.name} does not fit {name} at line {at}: read the change, and write the patch again"
            )
        lines[first : first + len(old)] = new
        moved[name] = moved.get(name, 0) + len(new) - len(old)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("\n".join(lines))


def unpack(archive: Path, pin: dict[str, str | list[str]]) -> None:
    """Replaces the files of an earlier run. New files get the present time, so that a build notices the
    change."""
    STAMP.unlink(missing_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=".unpack-", dir=HERE))
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = PurePosixPath(member.name)
                if not member.isfile() or ".." in name.parts or not name.is_relative_to(pin["root"]):
                    continue
                inner = name.relative_to(pin["root"]).as_posix()
                if not wanted(inner, pin):
                    continue
                target = fresh / inner
                target.parent.mkdir(parents=True, exist_ok=True)
                with tar.extractfile(member) as source, target.open("wb") as sink:
                    shutil.copyfileobj(source, sink)
        for path in pin["paths"]:
            if not (fresh / path).exists():
                raise FetchFailed(f"{archive} holds no {path}")
        for patch in patches():
            apply(patch, fresh)
        keep = {PIN.name, Path(__file__).name, PATCHES.name, fresh.name}
        for old in HERE.iterdir():
            if old.name not in keep:
                shutil.rmtree(old) if old.is_dir() else old.unlink()
        for new in fresh.iterdir():
            new.replace(HERE / new.name)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    scratch = STAMP.with_suffix(".new")
    scratch.write_text(stamp_text())
    scratch.replace(STAMP)


def patches() -> list[Path]:
    return sorted(PATCHES.glob("*.patch"))


def stamp_text() -> str:
    return "".join(f"{sha256(path)} {path.name}\n" for path in [PIN, *patches()])


def complete() -> bool:
    return STAMP.is_file() and STAMP.read_text() == stamp_text()


def bring(sdist: Path | None) -> None:
    if sdist is None and complete():
        return
    pin = json.loads(PIN.read_text())
    if sdist is None:
        sdist = cache_dir() / pin["sdist"]
        if sdist.is_file() and sha256(sdist) == pin["sha256"]:
            print(f"llama.cpp: unpacking {sdist}", flush=True)
        else:
            print(f"llama.cpp: downloading {pin['package']} {pin['version']} (77 MB)", flush=True)
            download(pin, sdist)
    verify(sdist, pin)
    unpack(sdist, pin)


def main(arguments: list[str]) -> int:
    if len(arguments) > 1:
        print("usage: fetch.py [SDIST]", file=sys.stderr)
        return 2
    try:
        bring(Path(arguments[0]) if arguments else None)
    except (FetchFailed, OSError, tarfile.TarError) as error:
        print(f"llama.cpp's sources cannot be fetched: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
