"""What a session asks for when its request names a model: that the model is there, and stays until the
end."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Protocol


class ModelDirectory(Protocol):
    """The models that can be had by name."""

    def hold(self, name: str, deadline: float | None) -> AbstractAsyncContextManager[str]:
        """While the block runs the model is loaded; gives the name to dispatch by.

        ``deadline`` is a time of the event loop's clock. Raises ModelNotFound, ModelTooLarge, ModelError for
        a file that cannot be loaded, QueueFull when too many requests wait for that load, DeadlineExceeded,
        and AdmissionClosed.
        """
