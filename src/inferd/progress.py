"""The type of the callback that reports the progress of loading a model."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, dict[str, object]], None]
"""Called with a phase and its details. Both become fields of the ``loading_model`` frame on the admin
socket."""


def ignored(phase: str, details: dict[str, object]) -> None:
    """A :data:`Progress` that does nothing."""
