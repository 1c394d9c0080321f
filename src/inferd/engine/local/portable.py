"""The files of a portable build: ggml with its CPU variants, and companion packages with a GPU backend.

A build for one machine has none of them: everything is compiled into ``_llama``. ``INFERD_CPU_VARIANT``
chooses a CPU variant by name; otherwise the best one that the machine can run is used.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from inferd import __version__
from inferd.errors import ConfigError

_llama = find_spec("inferd.engine.local._llama")
GGML = Path((_llama and _llama.origin) or __file__).parent / "ggml"
"""Beside the extension module, which an editable install keeps apart from the Python files."""
COMPANIONS = {"inferd-cuda": "libggml-cuda.so", "inferd-vulkan": "libggml-vulkan.so"}
"""Distribution → its shared library, which lies in the package of the same name."""


@dataclass(frozen=True)
class Companion:
    """An installed companion package; ``problem`` says why its library is not loaded."""

    name: str
    file: Path
    problem: str = ""


def variants() -> list[str]:
    """The CPU variants of this build; ``native`` alone is that of a build for one machine."""
    found = sorted(file.stem.removeprefix("libggml-cpu-") for file in GGML.glob("libggml-cpu-*.so"))
    return found or ["native"]


def chosen_variant() -> str:
    """What INFERD_CPU_VARIANT asks for, or ``""``. Raises ConfigError when this build does not have it."""
    name = os.environ.get("INFERD_CPU_VARIANT", "")
    if name and name not in variants():
        raise ConfigError(f"INFERD_CPU_VARIANT is {name!r}; this build has {', '.join(variants())}")
    return name


def cannot_run(variant: str) -> str:
    """Why there is no CPU backend: the ``variant`` that was asked for, or for ``""`` any, cannot be used."""
    if variant:
        return f"this processor cannot run the CPU variant {variant}; unset INFERD_CPU_VARIANT"
    return f"no CPU backend in {GGML} could be loaded; install inferd again"


def companions() -> list[Companion]:
    """The companion packages that are installed, in the order in which they are loaded."""
    found = []
    for name, library in COMPANIONS.items():
        spec = find_spec(name.replace("-", "_"))
        if spec is None or not spec.submodule_search_locations:
            continue
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


def companion_files() -> list[Path]:
    """The libraries of the companions that fit this inferd."""
    return [companion.file for companion in companions() if not companion.problem]
