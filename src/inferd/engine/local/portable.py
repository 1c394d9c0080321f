"""The files of a portable build: ggml with its CPU variants, and companion packages with a GPU backend.

A build for one machine has none of these files: everything is compiled into ``_llama``. The variable
``INFERD_CPU_VARIANT`` selects a CPU variant. By default inferd uses the best variant that the machine can
run.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from inferd import __version__
from inferd.errors import ConfigError

_llama = find_spec("inferd.engine.local._llama")
GGML = Path((_llama and _llama.origin) or __file__).parent / "ggml"
"""The folder of ggml's libraries. It is beside the extension module, which may be in another folder than the
Python files."""
COMPANIONS = {"inferd-cuda": "libggml-cuda.so", "inferd-vulkan": "libggml-vulkan.so"}
"""The name of each companion distribution, and the shared library in its package."""


class Companion(NamedTuple):
    """An installed companion package. ``problem`` is the reason why its library is not loaded, or empty."""

    name: str
    file: Path
    problem: str = ""


def variants() -> list[str]:
    """Returns the names of the CPU variants of this build. A build for one machine has one variant,
    ``native``."""
    found = sorted(file.stem.removeprefix("libggml-cpu-") for file in GGML.glob("libggml-cpu-*.so"))
    return found or ["native"]


def chosen_variant() -> str:
    """Returns the CPU variant that INFERD_CPU_VARIANT names, or ``""`` if the variable is not set.

    Raises ConfigError if this build does not have that variant.
    """
    name = os.environ.get("INFERD_CPU_VARIANT", "")
    if name and name not in variants():
        raise ConfigError(f"INFERD_CPU_VARIANT is {name!r}; this build has {', '.join(variants())}")
    return name


def cannot_run(variant: str) -> str:
    """Returns the error message for a processor that cannot run the CPU variant ``variant``. If ``variant``
    is empty, the message is for a build of which no variant could be loaded."""
    if variant:
        return f"this processor cannot run the CPU variant {variant}; unset INFERD_CPU_VARIANT"
    return f"no CPU backend in {GGML} could be loaded; install inferd again"


def companions() -> list[Companion]:
    """Returns the installed companion packages, in the order in which they are loaded. A companion with a
    ``problem`` is not loaded."""
    found = []
    for name, library in COMPANIONS.items():
        spec = find_spec(name.replace("-", "_"))
        if spec is None or not spec.submodule_search_locations:
            continue
        from importlib.metadata import (
            PackageNotFoundError,
            version,
        )  # slow, and most installs have no companion

        problem = ""
        try:
            its = version(name)
        except PackageNotFoundError:
            its = "an unknown version"
        if not GGML.is_dir():
            problem = "this inferd was compiled for one machine and loads no companions; install its wheel"
        elif its != __version__:
            problem = f"it is {its}, inferd is {__version__}; install both at one version"
        found.append(Companion(name, Path(spec.submodule_search_locations[0]) / library, problem))
    return found


def not_loaded(companion: Companion) -> str:
    """Returns the reason why the library of ``companion`` cannot be loaded, or ``""``. The reason may be the
    linker's, such as a missing library of the GPU's driver. Import the engine before this call: the import
    loads the libraries on which the library of ``companion`` depends."""
    if not companion.problem:
        import ctypes  # most installs have no companion

        try:
            ctypes.CDLL(str(companion.file))
        except OSError as error:
            return str(error)
    return companion.problem


def companion_files() -> list[Path]:
    """Returns the library files of the companions without a ``problem``."""
    return [companion.file for companion in companions() if not companion.problem]
