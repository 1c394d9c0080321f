"""The interface through which a session keeps the model of its request loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol


class Stay(NamedTuple):
    """How long a model is to stay loaded after a request: ``secs``, negative for always, or ``None`` for the
    configured time. ``by_owner`` is true for requests of the daemon's own user and of root. Only they may
    shorten a stay or pin a model."""

    secs: float | None = None
    by_owner: bool = False


USUAL = Stay()

Show = Callable[[str, Mapping[str, object]], object]
"""Called on the event loop with each phase of a load, and its details."""


class ModelDirectory(Protocol):
    """The models that a request may name."""

    def hold(
        self, name: str, deadline: float | None, stay: Stay, show: Show | None
    ) -> AbstractAsyncContextManager[str]:
        """Keeps the model loaded while the block runs, and yields the name to dispatch by.

        ``deadline`` is a time of the event loop's clock. ``show`` is called during the load. Raises
        ModelNotFound, ModelTooLarge, ModelError for a file that cannot be loaded, QueueFull if too many
        requests wait for the load, DeadlineExceeded, and AdmissionClosed.
        """
