"""A C++ compiler for the oldest glibc that the wheels support, without a container.

The package ``ziglang`` contains clang, and the headers and symbols of every glibc. pip installs one version
of it into the user's cache. Four small scripts call it, because CMake and ccache need a compiler that is a
file, and whose name shows what it compiles. The scripts have the same path for every checkout, so that ccache
shares objects. Zig also compiles for other architectures.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

ZIG = "0.17.1"
GLIBC = "2.28"
MACHINES = ("x86_64", "aarch64")
HERE = platform.machine()
TOOLS = {"clang": "cc -target {target}", "clang++": "c++ -target {target}", "ar": "ar", "ranlib": "ranlib"}
ARM_VERSIONS = """\
for option do
    shift
    case $option in -march=armv*)
        option=$(echo "$option" | sed -E 's/armv([0-9]+)[.]([0-9]+)-a/armv\\1_\\2-a/
            s/^-march=arm(v[0-9_]+)-a/-mcpu=generic+\\1a/; s/[+]fp16/+fullfp16/') ;;
    esac
    set -- "$@" "$option"
done
"""
"""A part of the scripts. It turns the usual names of ARM's versions and features into LLVM's, which Zig
requires."""


def bring(machine: str) -> Path:
    """The folder of the scripts that compile for ``machine``, for CMake's INFERD_ZIG. Raises
    CalledProcessError if pip cannot install."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = Path(cache).expanduser() / "inferd" / "build" / f"ziglang-{ZIG}"
    zig = home / "ziglang" / "zig"
    if not zig.is_file():
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*install, "--target", str(home), f"ziglang=={ZIG}"], check=True)
    target = f"{machine}-linux-gnu.{GLIBC}"
    scripts = home / target
    scripts.mkdir(exist_ok=True)
    for name, command in TOOLS.items():
        names = ARM_VERSIONS if machine == "aarch64" and name.startswith("clang") else ""
        script = f'#!/bin/sh\n{names}exec "{zig}" {command.format(target=target)} "$@"\n'
        path = scripts / name
        if not path.is_file() or path.read_text() != script:  # ccache tells compilers apart by their time
            path.write_text(script)
            path.chmod(0o755)
    return scripts


def defines(machine: str) -> dict[str, str]:
    """The CMake settings to use the compiler."""
    toolchain = Path(__file__).resolve().parents[1] / "cmake" / "zig.cmake"
    told = {"CMAKE_TOOLCHAIN_FILE": str(toolchain), "INFERD_ZIG": str(bring(machine))}
    return told | ({} if machine == HERE else {"INFERD_ZIG_MACHINE": machine})


def environment(machine: str, python_tag: str) -> dict[str, str]:
    """The variables of the build backend for another machine: the names of the platform and of the
    extensions.

    The headers are those of the Python that builds. They fit if its ``pyconfig.h`` is the same on every
    64-bit Linux. This holds for a Python compiled from source, but not for Debian's.
    """
    if machine == HERE:
        return {}
    return {
        "_PYTHON_HOST_PLATFORM": f"linux-{machine}",
        "SETUPTOOLS_EXT_SUFFIX": f".cpython-{python_tag.removeprefix('cp')}-{machine}-linux-gnu.so",
    }
