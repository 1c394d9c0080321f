"""The additional lines of ``inferd --version --verbose``.

They show the interpreter and the platform, the CPU variant in use and the variants of the build, the
companions (packages with a GPU backend), the devices, and the folder of the documentation if it is installed.
The line of a companion shows the path of its library, or the reason why the library cannot be loaded.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path

import inferd


def documentation() -> Path | None:
    """Returns the folder of the installed documentation, or ``None``."""
    folders = (Path(each) / "docs" for each in inferd.__path__)
    return next((folder for folder in folders if folder.is_dir()), None)


def lines() -> Iterator[str]:
    """Yields one line for each component. Loads the engine."""
    from inferd.engine.local import _llama, portable

    yield f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    yield f"CPU variant {_llama.cpu_variant()} (of {', '.join(portable.variants())})"
    for companion in portable.companions():
        yield f"{companion.name}: {portable.not_loaded(companion) or companion.file}"
    for kind, name, description, _ in _llama.devices():
        yield f"device {name}: {description} ({kind})"
    if (pages := documentation()) is not None:
        yield f"documentation in {pages}"
