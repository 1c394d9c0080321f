"""What a session asks for when its request names a model: that the model is there, and stays until the
end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Stay:
    """How long a request wants its model to stay loaded behind it: ``secs``, negative for always; ``None``
    leaves that to the settings. ``by_owner``: the request is the daemon's own user's, or root's. They alone
    may shorten a stay, or pin a model."""

    secs: float | None = None
    by_owner: bool = False


USUAL = Stay()

Show = Callable[[str, Mapping[str, object]], object]
"""Called on the event loop with each phase of a load, and its details."""


class ModelDirectory(Protocol):
    """The models that can be had by name."""

    def hold(
        self, name: str, deadline: float | None, stay: Stay, show: Show | None
    ) -> AbstractAsyncContextManager[str]:
        """While the block runs the model is loaded; gives the name to dispatch by.

        ``deadline`` is a time of the event loop's clock. ``show`` is called while the load is waited for.
        Raises ModelNotFound, ModelTooLarge, ModelError for a file that cannot be loaded, QueueFull when too
        many requests wait for that load, DeadlineExceeded, and AdmissionClosed.
        """
