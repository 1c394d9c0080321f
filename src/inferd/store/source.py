"""The base class of all sources of a model file.

A source writes the file into a :class:`~inferd.store.partial.Sink`, which hashes and counts the bytes, and
stops within POLL_SECS of a cancellation. A source that fails raises FetchError, whose text completes
"SOURCE: "; a failure of the store itself is another StoreError and ends the fetch.
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
    """Reports the progress of one download: at most one report in REPORT_SECS, except for the end and
    :meth:`report_now`.
    """

    def __init__(self, progress: Progress, source_url: str, total: int | None) -> None:
        self.total = total
        self._progress = progress
        self._source_url = source_url
        self._done = -1
        self._next = 0.0

    def report(self, done: int, **more: object) -> None:
        """Reports ``done`` received bytes; ``more`` is added to the details unchanged."""
        complete = done == self.total and self._done != done
        if complete or time.monotonic() >= self._next:
            self.report_now(done, **more)

    def report_now(self, done: int, **more: object) -> None:
        """As :meth:`report`, also if the last report was made less than REPORT_SECS ago."""
        self._done, self._next = done, time.monotonic() + REPORT_SECS
        details = {"downloaded_bytes": done, "total_bytes": self.total, "source_url": self._source_url}
        self._progress("download", {**details, **more})


class Source(ABC):
    """One source of one file. ``url`` is for display and holds no secret."""

    url: str
    resumable: ClassVar[bool] = False
    """Whether :meth:`copy` resumes after the bytes that the sink already holds of the same ``url``."""

    @abstractmethod
    def provenance(self) -> Provenance:
        """The source's entry in the manifest."""

    def extra_bytes(self) -> int:
        """The space on the store's disk that the source needs in addition to the file itself."""
        return 0

    @abstractmethod
    def copy(self, sink: Sink, scratch: Path, progress: Progress) -> None:
        """Writes the file into ``sink``. ``scratch`` is an empty private directory on the store's disk."""
