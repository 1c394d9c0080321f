"""The backend for Anthropic's models on AWS Bedrock. It calls ``InvokeModelWithResponseStream``.

Requests are signed with SigV4 or carry a bearer token. botocore provides the signer and the decoder of AWS's
binary event stream. The credentials leave this module only in the headers of a request.
"""

from __future__ import annotations

import asyncio
import re
import struct
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

import msgspec

from inferd.config.entries import BedrockEntry
from inferd.engine.backend import Accelerator, Backend, Capabilities, Finished, Stream
from inferd.engine.events import Done, Event, Usage
from inferd.engine.remote import pictures
from inferd.engine.remote.anthropic_answer import Answer, fault
from inferd.engine.remote.anthropic_request import request_body
from inferd.engine.remote.http import UNREADABLE, Upstream, let_end
from inferd.engine.remote.stream import RemoteStream
from inferd.engine.requests import GenerateRequest
from inferd.errors import BackendInternal, ConfigError, InferdError, NotReady

_CAPABILITIES = Capabilities(
    v2=True, vision=True, tools=True, thinking=True, accelerator=Accelerator(kind="remote")
)
_HEADERS = {"content-type": "application/json", "accept": "application/vnd.amazon.eventstream"}
_REGION = re.compile(r"[a-z0-9-]{1,63}")

Signer = Callable[[str, bytes], Mapping[str, str]]
"""Returns the headers of a request from its URL and body."""


class Bedrock(Backend):
    """One model on Bedrock. Raises ConfigError if botocore is not installed, or if the config entry has an
    invalid region or no usable credentials."""

    kind = "bedrock-invoke"

    def __init__(self, entry: BedrockEntry) -> None:
        try:
            # Import slow modules here, not on the event loop with the first request.
            import botocore.awsrequest
            import botocore.eventstream  # noqa: F401
        except ImportError:
            raise ConfigError(
                f"backend {entry.name!r} needs botocore, which is not installed;"
                " install it with: pip install botocore"
            ) from None
        self.name = entry.name
        self.model = entry.model_id
        self._url = url_of(entry)
        self._sign = signer_of(entry)
        self._timeout_secs = entry.timeout_secs
        self._upstream: Upstream | None = None
        self._streams: set[RemoteStream] = set()

    def ready(self) -> bool:
        return self._upstream is not None

    def capabilities(self) -> Capabilities:
        return _CAPABILITIES

    async def start(self) -> None:
        self._upstream = Upstream(self._url, self._timeout_secs)

    async def generate(self, request: GenerateRequest) -> Stream:
        if self._upstream is None:
            raise NotReady
        if request.max_tokens == 0:
            return Finished(Done("length", Usage(0, 0)))
        if pictures.are_large(request.messages):
            body = await asyncio.to_thread(request_body, request)
        else:
            body = request_body(request)
        return RemoteStream(self._answer(self._upstream, request, body), self._streams)

    async def _answer(
        self, upstream: Upstream, request: GenerateRequest, body: bytes
    ) -> AsyncGenerator[Event, None]:
        answer, decode = Answer(request), Decoder().feed
        done: Done | None = None
        async with upstream.post(self._url, body, self._sign(self._url, body)) as response:
            chunks = response.aiter_raw()
            async for chunk in chunks:
                for data in decode(chunk):
                    for event in answer.feed(data):
                        if isinstance(event, Done):
                            done = event
                        else:
                            yield event
                if done is not None:
                    await let_end(chunks)
                    break
        if done is not None:
            yield done

    async def close(self) -> None:
        upstream, self._upstream = self._upstream, None
        for stream in tuple(self._streams):
            await stream.closed()
        if upstream is not None:
            await upstream.close()


def url_of(entry: BedrockEntry) -> str:
    """Returns the URL that invokes the model of the config entry. Raises ConfigError for an invalid region
    name."""
    if not _REGION.fullmatch(entry.region):
        raise ConfigError(
            f"backend {entry.name!r}: {entry.region!r} is no AWS region; give one like us-east-1"
        )
    base = entry.endpoint or f"https://bedrock-runtime.{entry.region}.amazonaws.com"
    # An id contains a colon, an ARN also slashes; quote them to keep one path segment.
    return f"{base.rstrip('/')}/model/{quote(entry.model_id, safe='')}/invoke-with-response-stream"


# Signing.


def signer_of(entry: BedrockEntry) -> Signer:
    """Returns the signer for the requests of the config entry. Raises ConfigError if the entry has no usable
    credentials."""
    if entry.bearer_token is not None:
        headers = {**_HEADERS, "authorization": f"Bearer {_sendable(entry, entry.bearer_token.reveal())}"}
        return lambda url, body: headers
    if entry.access_key_id is None or entry.secret_access_key is None:
        raise ConfigError(
            f"backend {entry.name!r} has no credentials; set AWS_BEARER_TOKEN_BEDROCK,"
            " or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    from botocore.auth import SigV4Auth
    from botocore.credentials import Credentials

    token = None if entry.session_token is None else _sendable(entry, entry.session_token.reveal())
    key_id = _sendable(entry, entry.access_key_id)
    credentials = Credentials(key_id, entry.secret_access_key.reveal(), token)
    auth = SigV4Auth(credentials, "bedrock", entry.region)
    return lambda url, body: signed(auth, "POST", url, _HEADERS, body)


def _sendable(entry: BedrockEntry, key: str) -> str:
    if not key.isascii():
        raise ConfigError(f"the key of backend {entry.name!r} has characters that HTTP cannot carry")
    return key


def signed(auth: Any, method: str, url: str, headers: Mapping[str, str], body: bytes) -> dict[str, str]:
    """Returns the headers with the signature added. ``auth`` is one of botocore's signers."""
    from botocore.awsrequest import AWSRequest

    request = AWSRequest(method, url, headers=headers, data=body)
    auth.add_auth(request)
    return dict(request.headers.items())


# Reading.


class _Chunk(msgspec.Struct):
    data: bytes = msgspec.field(name="bytes")


class _Exception(msgspec.Struct):
    message: str = ""


class Decoder:
    """Decodes AWS's binary event stream and the model's events in it."""

    def __init__(self) -> None:
        from botocore.eventstream import EventStreamBuffer, ParserError

        self._buffer = EventStreamBuffer()
        # For a valid checksum with an invalid length or type botocore raises other errors, too.
        self._damage = (ParserError, LookupError, ValueError, struct.error)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yields the JSON of each of the model's events that ``data`` completes.

        Raises BackendInternal for damaged data, and the error of
        :func:`~inferd.engine.remote.anthropic_answer.fault` for an exception in the stream.
        """
        self._buffer.add_data(data)
        while (message := self._next()) is not None:
            kind = message.headers.get(":message-type")
            if kind in ("exception", "error"):
                raise _failure(message.headers, message.payload)
            if message.headers.get(":event-type") == "chunk":
                try:
                    yield msgspec.json.decode(message.payload, type=_Chunk).data
                except UNREADABLE:
                    raise _damaged() from None

    def _next(self) -> Any:
        try:
            return next(self._buffer, None)
        except self._damage:
            raise _damaged() from None


def _damaged() -> BackendInternal:
    return BackendInternal("the event stream of the model's server is damaged")


def _failure(headers: Mapping[str, Any], payload: bytes) -> InferdError:
    """Returns the error for an AWS message of the kind ``exception`` or ``error``. The fault's name is the
    type of the exception, or the code of the error."""
    name = str(headers.get(":exception-type") or headers.get(":error-code"))
    try:
        text = msgspec.json.decode(payload, type=_Exception).message
    except UNREADABLE:
        text = ""
    return fault(name, text)
