"""The tools that a companion package needs in addition to the compiler of ``toolchain.py``.

Vulkan: the headers and ``glslc`` of the system (Debian: libvulkan-dev, spirv-headers, glslc) or of the Vulkan
SDK in ``$VULKAN_SDK``, and the system's C++ compiler for the generator of shaders. An old ``glslc`` cannot
compile the shaders for matrix units, so they are left out, and CMake prints the missing extensions.

CUDA: NVIDIA's compiler and libraries from the package index. The library of the driver comes from the machine
on which the companion runs. To link without it, the linker gets an empty library of the same name.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

CUDA = [
    "nvidia-cuda-nvcc==13.5.*",
    "nvidia-cuda-crt==13.5.*",
    "nvidia-nvvm==13.5.*",
    "nvidia-cuda-runtime==13.5.*",
    "nvidia-cuda-cccl==13.3.5.*",  # for CUDA 13, CCCL 3.5
    "nvidia-cublas>=13,<14",
]
HEADERS = ("vulkan", "vk_video", "spirv")
OLDEST_HEADERS = 272
"""Of Vulkan 1.3: the first version with everything that ggml uses. Debian 12 has an older one."""

NO_C23_FUNCTIONS = """\
#include_next <bits/libc-header-start.h>
#undef __GLIBC_USE_IEC_60559_FUNCS_EXT_C23
#define __GLIBC_USE_IEC_60559_FUNCS_EXT_C23 0
"""
"""A header in front of Zig's glibc headers. Those declare functions of newer versions, such as sinpi, which
CUDA declares differently."""


def defines(companion: str, compilers: Path, folder: Path) -> dict[str, str]:
    """The CMake settings to build ``companion`` with the ``compilers`` of ``toolchain.bring``.

    ``folder`` stores the files that the build needs. Raises CalledProcessError if pip cannot install,
    SystemExit if the system lacks a package.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return (cuda if companion == "cuda" else vulkan)(compilers, folder)


def vulkan(compilers: Path, folder: Path) -> dict[str, str]:
    sources = Path(os.environ.get("VULKAN_SDK", "/usr"), "include")
    # Not /usr/include itself, which has the headers of the system's glibc.
    include = folder / "include"
    include.mkdir(exist_ok=True)
    for name in HEADERS:
        if not (sources / name).is_dir():
            raise SystemExit(f"there is no {sources / name}: install the headers of Vulkan and SPIR-V")
        link(include / name, sources / name)
    core = (sources / "vulkan" / "vulkan_core.h").read_text()
    found = re.search(r"define VK_HEADER_VERSION (\d+)", core)
    if not found or int(found[1]) < OLDEST_HEADERS:
        raise SystemExit(
            f"{sources} has older headers than Vulkan 1.3.{OLDEST_HEADERS}: install newer ones, "
            "or set VULKAN_SDK to the folder of the Vulkan SDK"
        )
    return {
        "Vulkan_INCLUDE_DIR": str(include),
        "Vulkan_LIBRARY": str(empty_library(compilers, "libvulkan.so.1", folder / "libvulkan.so")),
    }


def cuda(compilers: Path, folder: Path) -> dict[str, str]:
    toolkit = folder / "nvidia" / "cu13"
    if not (folder / "complete").is_file():
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*install, "--target", str(folder), "--upgrade", *CUDA], check=True)
        (folder / "complete").touch()
    # CMake looks for the folder and the names of a toolkit, which the packages do not have.
    link(toolkit / "lib64", toolkit / "lib")
    for name in ("cudart", "cublas"):
        link(toolkit / "lib" / f"lib{name}.so", toolkit / "lib" / f"lib{name}.so.13")
    stubs = toolkit / "lib" / "stubs"
    stubs.mkdir(exist_ok=True)
    empty_library(compilers, "libcuda.so.1", stubs / "libcuda.so")
    header = folder / "include" / "bits" / "libc-header-start.h"
    header.parent.mkdir(parents=True, exist_ok=True)
    if not header.is_file():  # ccache and ninja look at its time
        header.write_text(NO_C23_FUNCTIONS)
    return {
        "CMAKE_CUDA_COMPILER": str(toolkit / "bin" / "nvcc"),
        "CMAKE_CUDA_HOST_COMPILER": str(compilers / "clang++"),
        "CMAKE_CUDA_FLAGS": f"-allow-unsupported-compiler -I{header.parents[1]}",
        "CUDAToolkit_ROOT": str(toolkit),
    }


def link(at: Path, target: Path) -> None:
    if not at.is_symlink() or at.readlink() != target:
        at.unlink(missing_ok=True)
        at.symlink_to(target)


def empty_library(compilers: Path, soname: str, file: Path) -> Path:
    """A library without symbols. A program that is linked with it looks for ``soname`` when it is loaded."""
    if not file.is_file():
        options = ["-shared", f"-Wl,-soname,{soname}", "-o", str(file), "-x", "c", "/dev/null"]
        subprocess.run([compilers / "clang", *options], check=True)
    return file
