"""The interface through which a session keeps the model of its request loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol


class Stay(NamedTuple):
    """How long a model stays loaded after a request. ``secs`` is the time in seconds. A negative ``secs``
    means for ever, and ``None`` means the configured time. ``by_owner`` is true if root or the daemon's own
    user sent the request. Only requests of these two users may shorten the stay, or keep the model for
    ever."""

    secs: float | None = None
    by_owner: bool = False


USUAL = Stay()

Show = Callable[[str, Mapping[str, object]], object]
"""Called on the event loop with each phase of loading a model, and the details of the phase."""


class ModelDirectory(Protocol):
    """The models that a request may name."""

    def hold(
        self, name: str, deadline: float | None, stay: Stay, show: Show | None
    ) -> AbstractAsyncContextManager[str]:
        """Keeps the model ``name`` loaded during the ``async with`` block, and loads it first if necessary.
        Yields the name by which the router finds the model.

        ``deadline`` is a time of the event loop's clock. ``show`` is called with the progress of loading.
        Raises ModelNotFound, ModelTooLarge, DeadlineExceeded and AdmissionClosed. Raises ModelError if the
        file cannot be loaded, and QueueFull if too many requests wait for the model to load.
        """
