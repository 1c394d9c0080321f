"""What ``inferd --version --verbose`` adds: the interpreter, and the engine with its CPU variant and
companions."""

from __future__ import annotations

import platform
from collections.abc import Iterator


def lines() -> Iterator[str]:
    """One line for each part. Loads the engine."""
    from inferd.engine.local import _llama, portable

    yield f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    yield f"CPU variant {_llama.cpu_variant()} (of {', '.join(portable.variants())})"
    for companion in portable.companions():
        yield f"{companion.name}: {companion.problem or companion.file}"
    for kind, name, description, _ in _llama.devices():
        yield f"device {name}: {description} ({kind})"
