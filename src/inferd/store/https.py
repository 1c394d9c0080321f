"""Downloads files over HTTPS: ``https://HOST/PATH``, and ``hf:ORG/REPO/FILE[@REVISION]``, a file of the
Hugging Face hub.

This process or a later one resumes an interrupted download, if the server still reports the same size and
ETag. (An ETag that is missing does not count as different.) Transient failures, such as a broken or silent
connection or the status 429 or 500, are retried with exponential back-off. After TRIES failures in a row the
download fails. A redirect is followed only to an https URL. The token in ``HF_TOKEN`` is sent only to the
hub's own host.

The HTTP exchange runs in a helper thread, because a name lookup or a connect can block for a long time, but a
cancellation must take effect soon. The helper thread never reads or writes the store.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
import threading
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import quote, urlsplit

from inferd import log
from inferd.errors import BootCancelled, FetchError
from inferd.progress import Progress
from inferd.store.handover import iterate_in_thread
from inferd.store.models import Provenance
from inferd.store.partial import Sink
from inferd.store.source import Reporter, Source

if TYPE_CHECKING:
    import httpx

_log = log.get("store")

CONNECT_SECS = 30.0
STALL_SECS = 60.0
TRIES = 5
PAUSE_SECS = 1.0  # before the first retry; doubles with each further retry
MAX_PAUSE_SECS = 120.0  # the longest Retry-After that is obeyed
GOOD_TRY_BYTES = 1 << 20  # after such a try, the count of failures starts again
MAX_REDIRECTS = 10
HUB = "https://huggingface.co"

_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_FORM = "hf:ORG/REPO/FILE[@REVISION] or hf:ORG/REPO[:QUANT]"
_HUB_FILE = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)/(?P<file>[^@#?\\]+)(?:@(?P<revision>[\w./-]+))?",
    re.ASCII,
)
_RANGE = re.compile(r"bytes (\d{1,19})-\d{1,19}/(\d{1,19})", re.ASCII)


@dataclass(frozen=True)
class Head:
    """The status and headers of the last response, after all redirects."""

    status: int
    headers: httpx.Headers


@dataclass(frozen=True)
class Setback:
    """A failure after which a retry may succeed.

    ``pause_secs`` is the value of the header ``Retry-After``, if the server sent one.
    """

    reason: str
    pause_secs: float | None = None


@dataclass(frozen=True)
class Https(Source):
    """Downloads ``location``, an https URL. ``url`` is the name of this source for users, and contains no
    secret. ``headers`` may hold a secret, and are sent only to the host of ``location``."""

    resumable: ClassVar[bool] = True

    url: str
    location: str = field(repr=False)
    origin: Provenance
    headers: dict[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, text: str) -> Https:
        """Returns the source for an https URL. The URL's query may hold a secret, so the query is sent but
        never shown."""
        try:
            parts = urlsplit(text)
            reachable = bool(parts.hostname) and parts.port != 0
        except ValueError as error:
            raise FetchError("it is not of the form https://HOST/PATH") from error
        if not reachable or parts.path in ("", "/") or not text.isprintable() or " " in text:
            raise FetchError("it is not of the form https://HOST/PATH")
        if parts.username is not None:
            raise FetchError("it holds a user name, which would be shown; use an address without one")
        origin = Provenance(registry="https", repo=parts.netloc, filename=parts.path.removeprefix("/"))
        return cls(origin.text, text, origin)

    @classmethod
    def of_hub(cls, text: str) -> Https:
        """Returns the source for ``text``, which has the form ``ORG/REPO/FILE[@REVISION]``. Raises FetchError
        for another form."""
        match = _HUB_FILE.fullmatch(text)
        if match is None or not text.isprintable() or {"", ".", ".."} & set(match["file"].split("/")):
            raise FetchError(f"it is not of the form {_FORM}")
        repo, file, revision = match["repo"], match["file"], match["revision"] or "main"
        hub, headers = hub_access()
        return cls(
            f"hf:{repo}/{file}" + (f"@{match['revision']}" if match["revision"] else ""),
            f"{hub}/{repo}/resolve/{quote(revision, safe='')}/{quote(file)}",
            Provenance(registry="hf", repo=repo, revision=revision, filename=file),
            headers,
        )

    def provenance(self) -> Provenance:
        return self.origin

    def copy(self, sink: Sink, scratch: Path, progress: Progress) -> None:
        reporter = Reporter(progress, self.url, sink.expected)

        def wait(setback: Setback, number: int) -> None:
            _log.warn("fetch_interrupted", source=self.url, reason=setback.reason, received=sink.received)
            reporter.report_now(sink.received, attempt=number, reason=setback.reason)

        persist(lambda: self._receive(sink, reporter), sink.cancelled, wait, lambda: sink.received)

    def _receive(self, sink: Sink, reporter: Reporter) -> Setback | None:
        """Tries once to download the missing bytes. Returns ``None`` if the file is complete after this
        try."""
        if sink.received and sink.received == sink.expected:
            return None
        headers = {**self.headers, "Accept-Encoding": "identity"}
        if sink.received:
            headers["Range"] = f"bytes={sink.received}-"
            if sink.mark.etag and not sink.mark.etag.startswith("W/"):
                headers["If-Range"] = sink.mark.etag

        def take(parts: Generator[Head | bytes]) -> Setback | None:
            for part in parts:
                if isinstance(part, bytes):
                    sink.write(part)
                    reporter.report(sink.received)
                elif setback := self._begin(part, sink):
                    return setback
                else:
                    reporter.total = sink.expected
                    reporter.report(sink.received)
            if sink.expected is not None and sink.received < sink.expected:
                return Setback(f"it ended after {sink.received} of {sink.expected} bytes")
            return None

        return attempt("GET", self.location, headers, sink.cancelled, take)

    def _begin(self, head: Head, sink: Sink) -> Setback | None:
        """Prepares the sink for the body that follows ``head``. If the body is not usable, returns a Setback
        or raises FetchError."""
        etag, length = head.headers.get("ETag", ""), head.headers.get("Content-Length", "")
        etag = etag if etag.isascii() else ""  # HTTP headers are ASCII
        if head.headers.get("Content-Encoding", "identity") != "identity":
            raise FetchError("the server sends it compressed, although that was not asked for")
        if head.status == 206:
            span = _RANGE.fullmatch(head.headers.get("Content-Range", ""))
            same = span is not None and int(span[1]) == sink.received and int(span[2]) == sink.expected
            if same and (etag == sink.mark.etag or not etag or not sink.mark.etag):
                sink.in_parts = True
                return None
        if head.status in (206, 416) and sink.received:
            sink.restart()
            return Setback("the file has changed on the server", pause_secs=0.0)
        if head.status != 200:
            return refused(head)
        sink.restart()  # the server does not support ranges, or the file has changed
        size = whole_number(length)
        if None not in (size, sink.expected) and size != sink.expected:
            raise FetchError(f"it has {size} bytes, but the model has {sink.expected}")
        sink.remember(etag, size if sink.expected is None else sink.expected)
        return None


def hub_access() -> tuple[str, dict[str, str]]:
    """Returns the URL of the Hugging Face hub, and the headers that authenticate the user. If ``HF_TOKEN`` is
    not set, the headers are empty. Raises FetchError if ``HF_ENDPOINT`` or ``HF_TOKEN`` is invalid."""
    hub = os.environ.get("HF_ENDPOINT", "").rstrip("/") or HUB
    if not hub.startswith("https://"):
        raise FetchError(f"HF_ENDPOINT is {hub!r} and not an https address")
    token = os.environ.get("HF_TOKEN", "").strip()
    if not (token.isascii() and token.isprintable()):
        raise FetchError("HF_TOKEN holds characters that no token has")
    return hub, {"Authorization": f"Bearer {token}"} if token else {}


def whole_number(text: str) -> int | None:
    """Returns the number in ``text``, which is the value of a header. Returns ``None`` if ``text`` is not a
    number of at most 15 digits."""
    return int(text) if re.fullmatch(r"[0-9]{1,15}", text) else None


def refused(head: Head) -> Setback:
    """Classifies an error response. Returns a Setback if a retry may succeed, or else raises FetchError."""
    import httpx

    reason = f"the server answers {head.status} {httpx.codes.get_reason_phrase(head.status)}".rstrip()
    if head.status in _TRANSIENT:
        return Setback(reason, whole_number(head.headers.get("Retry-After", "")))
    if head.status in (401, 403):
        reason += "; for a private or gated file of the hub, set HF_TOKEN"
    raise FetchError(reason)


def persist(
    once: Callable[[], Setback | None],
    cancelled: threading.Event,
    wait: Callable[[Setback, int], None],
    received: Callable[[], int],
) -> None:
    """Calls ``once``, which makes one try, until ``once`` returns ``None``. After each failure, calls
    ``wait`` and then pauses.

    Raises FetchError after TRIES failures in a row, or if the server asks for a pause of more than
    MAX_PAUSE_SECS. ``received`` returns the number of received bytes. After a try that received at least
    GOOD_TRY_BYTES, the count of failures starts again.
    """
    tries, best = 0, received()
    while setback := once():
        tries = 1 if received() - best >= GOOD_TRY_BYTES else tries + 1
        best = max(best, received())
        if tries == TRIES:
            raise FetchError(f"{setback.reason} ({TRIES} tries)")
        pause = PAUSE_SECS * 2 ** (tries - 1) if setback.pause_secs is None else setback.pause_secs
        if pause > MAX_PAUSE_SECS:
            raise FetchError(f"{setback.reason} and wants {pause:.0f} s of patience; try again later")
        wait(setback, tries + 1)
        if cancelled.wait(pause):
            raise BootCancelled("the download was cancelled")


def attempt(
    method: str,
    location: str,
    headers: dict[str, str],
    cancelled: threading.Event,
    take: Callable[[Generator[Head | bytes]], Setback | None],
    stop_at: str | None = None,
) -> Setback | None:
    """Makes one HTTP exchange. ``take`` reads the response. Returns the result of ``take``.

    Returns a Setback if the exchange fails and a retry may succeed. Raises FetchError for any other failure.

    If ``stop_at`` is the name of a header and a redirect has this header, the redirect is not followed.
    ``take`` then reads the redirect response.
    """
    import httpx

    try:
        with closing(iterate_in_thread(_exchange(method, location, headers, stop_at), cancelled)) as parts:
            return take(parts)
    except (httpx.InvalidURL, UnicodeError) as error:
        raise FetchError("it is not of the form https://HOST/PATH") from error
    except httpx.TimeoutException as error:
        connecting = isinstance(error, httpx.ConnectTimeout)
        return Setback(
            f"no connection within {CONNECT_SECS:g} s" if connecting else f"nothing came for {STALL_SECS:g} s"
        )
    except httpx.TransportError as error:
        reason = str(error) or type(error).__name__
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ssl.SSLCertVerificationError):
                raise FetchError(
                    f"the server's certificate is not trusted ({cause.verify_message}); check the address "
                    "and the clock, or add the certificate to the system's"
                ) from error
            if isinstance(cause, socket.gaierror) and cause.errno != socket.EAI_AGAIN:
                host = error.request.url.host
                raise FetchError(
                    f"no server named {host} is known; check the address and the network"
                ) from error
            reason = (cause.strerror if isinstance(cause, OSError) else None) or reason
            cause = cause.__cause__ or cause.__context__
        return Setback(reason)


def _exchange(
    method: str, location: str, headers: dict[str, str], stop_at: str | None
) -> Generator[Head | bytes]:
    """Yields the head of the response after all redirects, and then the pieces of its body as they arrive."""
    import httpx
    import truststore

    from inferd import __version__

    try:
        connecting = httpx.Client(
            verify=truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
            timeout=httpx.Timeout(STALL_SECS, connect=CONNECT_SECS),
            headers={"User-Agent": f"inferd/{__version__}", "Accept": "*/*"},
        )
    except (ValueError, ImportError) as error:  # invalid HTTPS_PROXY and the like
        raise FetchError(f"the proxy that the environment names cannot be used: {error}") from error
    with connecting as client:
        request = client.build_request(method, location, headers=headers)
        for _ in range(MAX_REDIRECTS + 1):
            response = client.send(request, stream=True)
            with closing(response):
                following = response.next_request  # httpx removes the token for another host
                if following is None or (stop_at is not None and stop_at in response.headers):
                    yield Head(response.status_code, response.headers)
                    yield from response.iter_raw()
                    return
            if following.url.scheme != "https":
                raise FetchError(
                    f"the server redirects to {following.url.scheme}:, and inferd uses only https"
                )
            request = following
        raise FetchError(f"the server redirects more than {MAX_REDIRECTS} times")
