"""How the loading of a model is reported."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, dict[str, object]], None]
"""Called with a phase and its details, the fields of the admin socket's ``loading_model`` frame."""
