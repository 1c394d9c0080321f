"""A C++ compiler for the oldest glibc that the wheels support, without a container.

``ziglang`` on the package index is clang with the headers and the symbols of every glibc. It is installed by
pip into the user's cache, at one version, and gets four small scripts, because CMake and ccache want a
compiler that is a file and whose name tells what it is. The scripts have the same path in every checkout, so
that ccache shares objects between them.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

ZIG = "0.17.1"
GLIBC = "2.28"
MACHINE = platform.machine()
TOOLS = {"clang": "cc -target {target}", "clang++": "c++ -target {target}", "ar": "ar", "ranlib": "ranlib"}


def bring() -> Path:
    """The folder of the scripts, for CMake's INFERD_ZIG. Raises CalledProcessError when pip cannot
    install."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = Path(cache).expanduser() / "inferd" / "build" / f"ziglang-{ZIG}"
    zig = home / "ziglang" / "zig"
    if not zig.is_file():
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*install, "--target", str(home), f"ziglang=={ZIG}"], check=True)
    target = f"{MACHINE}-linux-gnu.{GLIBC}"
    scripts = home / target
    scripts.mkdir(exist_ok=True)
    for name, command in TOOLS.items():
        script = f'#!/bin/sh\nexec "{zig}" {command.format(target=target)} "$@"\n'
        path = scripts / name
        if not path.is_file() or path.read_text() != script:  # ccache tells compilers apart by their time
            path.write_text(script)
            path.chmod(0o755)
    return scripts


def defines() -> dict[str, str]:
    """What CMake is told in order to use it."""
    toolchain = Path(__file__).resolve().parents[1] / "cmake" / "zig.cmake"
    return {"CMAKE_TOOLCHAIN_FILE": str(toolchain), "INFERD_ZIG": str(bring())}
