"""What all sources of a model file share.

A source writes the file into a :class:`~inferd.store.partial.Sink`, which hashes and counts what passes, and
stops within POLL_SECS of a cancellation. A source that cannot deliver raises FetchError, whose text is a
reason that may stand after "SOURCE: "; trouble with the store itself is a StoreError of another kind and ends
the fetch.
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


REPORT_SECS = 0.25  # often enough for a progress bar, seldom enough for the buffer of a status subscriber


class Reporter:
    """Tells how far one download has come, not more often than REPORT_SECS."""

    def __init__(self, progress: Progress, source_url: str, total: int | None) -> None:
        self.total = total
        self._progress = progress
        self._source_url = source_url
        self._done = -1
        self._next = 0.0

    def report(self, done: int, **more: object) -> None:
        """``done`` bytes have come; ``more`` goes into the details as it is."""
        complete = done == self.total and self._done != done
        if complete or time.monotonic() >= self._next:
            self.report_now(done, **more)

    def report_now(self, done: int, **more: object) -> None:
        """The same, however soon it comes after the last."""
        self._done, self._next = done, time.monotonic() + REPORT_SECS
        details = {"downloaded_bytes": done, "total_bytes": self.total, "source_url": self._source_url}
        self._progress("download", {**details, **more})


class Source(ABC):
    """One place of one file. ``url`` is what people are shown, without anything secret in it."""

    url: str
    resumable: ClassVar[bool] = False
    """Whether :meth:`copy` goes on from what the sink already holds of the same ``url``."""

    @abstractmethod
    def provenance(self) -> Provenance:
        """What the manifest says of the source."""

    def extra_bytes(self) -> int:
        """The room on the store's disk that the source needs beside the file itself."""
        return 0

    @abstractmethod
    def copy(self, sink: Sink, scratch: Path, progress: Progress) -> None:
        """Write the file into ``sink``. ``scratch`` is an empty directory of our own on the store's disk."""
