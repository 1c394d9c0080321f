"""The additional lines of ``inferd --version --verbose``.

These lines show the Python interpreter and the platform, the variant of the CPU code in use and all variants
in this build, the companions (packages that add a GPU backend), the devices, and the folder of the installed
documentation. For each companion, the line shows the path of its library, or why the library is not loaded.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path

import inferd


def documentation() -> Path | None:
    """Returns the folder of the documentation, or ``None`` if the documentation is not installed."""
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
