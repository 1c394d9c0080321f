"""The base class of all sources of a model file.

A source writes the file into a :class:`~inferd.store.partial.Sink`, which hashes and counts the bytes. A
source stops at most POLL_SECS after a cancellation. If a source fails, it raises FetchError, and the next
source is tried. Users see the message of the FetchError after the name of the source and a colon. Any other
StoreError is a failure of the store itself, and no further source is tried.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from inferd.progress import Progress
from inferd.store.models import Provenance

if TYPE_CHECKING:
    from inferd.store.partial import Sink


REPORT_SECS = 0.25  # smooth for a progress bar, and rare enough for the buffer of a status subscriber


class Reporter:
    """Reports the progress of one download: at most once in REPORT_SECS, but always when all ``total`` bytes
    are received. ``total`` is ``None`` if unknown."""

    def __init__(self, progress: Progress, source_url: str, total: int | None) -> None:
        self.total = total
        self._progress = progress
        self._source_url = source_url
        self._done = -1
        self._next = 0.0

    def report(self, done: int, **more: object) -> None:
        """Reports that ``done`` bytes have been received. ``more`` has further details of the report."""
        complete = done == self.total and self._done != done
        if complete or time.monotonic() >= self._next:
            self.report_now(done, **more)

    def report_now(self, done: int, **more: object) -> None:
        """Reports like :meth:`report`, even if the last report was made less than REPORT_SECS ago."""
        self._done, self._next = done, time.monotonic() + REPORT_SECS
        details = {"downloaded_bytes": done, "total_bytes": self.total, "source_url": self._source_url}
        self._progress("download", {**details, **more})


class Source(ABC):
    """A source of one file. ``url`` names the source for users and holds no secret."""

    url: str
    resumable: ClassVar[bool] = False
    """Whether :meth:`copy` continues after the bytes that the sink already holds from the same ``url``."""

    @abstractmethod
    def provenance(self) -> Provenance:
        """Returns the description of this source to record in a manifest."""

    def extra_bytes(self) -> int:
        """Returns the number of bytes that the source needs on the store's disk in addition to the file
        itself."""
        return 0

    @abstractmethod
    def copy(self, sink: Sink, scratch: Path, progress: Progress) -> None:
        """Writes the file into ``sink``. ``scratch`` is an empty private directory on the store's disk."""
