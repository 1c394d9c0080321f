"""Copies and closes lists of file descriptors."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable

from inferd.errors import ModelError


def duplicates(fds: Iterable[int]) -> list[int]:
    """Returns duplicates of the descriptors of a model's files. Raises ModelError if not all can be made."""
    made: list[int] = []
    try:
        for fd in fds:
            made.append(os.dup(fd))
    except OSError as error:
        close_all(made)
        raise ModelError(f"the model's files cannot be passed on: {error.strerror}") from error
    return made


def close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
