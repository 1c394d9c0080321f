"""A backend that sends its requests to another inferd daemon, over inferd's own protocol.

Conversations go to the upstream's v2 socket, as lines followed by the attachments' bytes. Texts to embed or
rank go to the upstream's embed and rerank sockets. Error codes and token counts, cached tokens included, are
passed on. If a request is cancelled, its connection to the upstream is closed, which cancels the request
there, too.
"""

from __future__ import annotations

import asyncio
import itertools
from array import array
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import orjson

from inferd.client import messages as blocks
from inferd.client import vectors
from inferd.client.address import Surface, endpoint
from inferd.client.async_channel import AsyncChannel, AsyncReply
from inferd.client.protocol import QUEUE_STEPS, OnProgress
from inferd.config.entries import InferdEntry
from inferd.engine.backend import Accelerator, Backend, Capabilities, Finished, Stream
from inferd.engine.events import (
    Done,
    Embeddings,
    Event,
    Ranking,
    StopReason,
    Text,
    Thinking,
    Timings,
    ToolUse,
    Usage,
)
from inferd.engine.remote.failed import error_of
from inferd.engine.remote.stream import RemoteStream
from inferd.engine.requests import EmbedRequest, GenerateRequest, Media, Message, RankRequest, ToolCall
from inferd.errors import (
    BackendInternal,
    NotReady,
    OperatorError,
    ProtocolError,
    RequestFailed,
    Unavailable,
    UsageError,
)
from inferd.sampling import MAX_TOKENS, NAMES

CONNECT_SECS = 10.0
# A larger request is encoded in a thread, so that it does not block the event loop.
_ASIDE_CHARS = 256 * 1024

_STOP_REASONS: dict[str, StopReason] = {
    "end_turn": "end",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "tool_use": "tool_use",
    "cancelled": "cancelled",
}
# The steps of a wait in the upstream daemon that the client is told.
_STEPS = {*QUEUE_STEPS, "waiting", "checking_local", "verify", "mmap", "kv_cache", "loaded"}
_TIMES = ("prefill_ms", "decode_ms", "ttft_ms", "tokens_per_second")


class Inferd(Backend):
    """The daemon of ``entry``. The features of the daemon's model are not known in advance, so images, audio,
    tools and thinking are all offered."""

    kind = "inferd"

    def __init__(self, entry: InferdEntry) -> None:
        self.name = entry.name
        self.model = entry.model or entry.serves or entry.name
        self._entry = entry
        self._channels = {
            surface: AsyncChannel(
                endpoint(address if "/" in address else f"tcp://{address}", surface),
                None if entry.api_key is None else entry.api_key.reveal(),
                entry.timeout_secs,
            )
            for surface, address in _addresses(entry).items()
        }
        text = "v2" in self._channels
        self._capabilities = Capabilities(
            v2=text,
            vision=text,
            audio=text,
            tools=text,
            thinking=text,
            embed="embed" in self._channels,
            rerank="rerank" in self._channels,
            accelerator=Accelerator(kind="remote"),
        )
        self._ids = itertools.count(1)
        self._running: set[RemoteStream] = set()
        self._open = False

    def ready(self) -> bool:
        return self._open

    def capabilities(self) -> Capabilities:
        return self._capabilities

    async def start(self) -> None:
        self._open = True

    async def look(self) -> int | None:
        """Checks the daemon's health by connecting to each of its sockets. Returns ``None``, because a
        connection does not show the daemon's load."""
        for channel in self._channels.values():
            with self._translated():
                await channel.connect(CONNECT_SECS)
        return None

    async def generate(self, request: GenerateRequest) -> Stream:
        """Starts a request. The stream raises the daemon's errors, and can be cancelled while the daemon is
        silent."""
        if not self._open:
            raise NotReady
        if request.max_tokens == 0:
            return Finished(Done("length", Usage(0, 0)))

        def show(phase: str, frame: Mapping[str, Any]) -> None:
            if stream.on_wait is not None and phase in _STEPS:
                numbers = {name: frame.get(name) for name in ("position", "progress")}
                told = {name: number for name, number in numbers.items() if isinstance(number, int | float)}
                stream.on_wait(phase, told)

        stream = RemoteStream(self._answer(request, show), self._running)
        return stream

    async def _answer(self, request: GenerateRequest, show: OnProgress) -> AsyncGenerator[Event, None]:
        channel = self._channels["v2"]
        with self._translated():
            if _size(request) > _ASIDE_CHARS:
                outgoing = await asyncio.to_thread(self._request, request)
            else:
                outgoing = self._request(request)
            outgoing.on_progress = show
            await channel.connect(CONNECT_SECS)
            async with AsyncReply(channel, outgoing) as reply:
                async for event in reply:
                    yield _event(event)

    def _request(self, request: GenerateRequest) -> blocks.MessagesRequest:
        return blocks.MessagesRequest(
            self._next_id(), [_turn(message) for message in request.messages], self._options(request)
        )

    def _options(self, request: GenerateRequest) -> dict[str, Any]:
        """Returns the request's options in the form of v2, without the messages."""
        sampling = request.sampling
        choice: Any = {"name": request.tool_name} if request.tool_name else request.tool_choice
        tools = [
            {"name": tool.name, "description": tool.description, "input_schema": orjson.Fragment(tool.schema)}
            for tool in request.tools
        ]
        given = {
            **{name: getattr(sampling, name) for name in NAMES},
            "max_tokens": request.max_tokens if request.max_tokens or request.typed else MAX_TOKENS,
            "stop": list(request.stop) or None,
            "grammar": request.grammar or None,
            "json_schema": orjson.Fragment(request.json_schema) if request.json_schema else None,
            "schema_lenient": request.schema_lenient or None,
            "session": request.session or None,
            "cache": None if request.cache else False,
            "model_defaults": request.model_defaults,
            "priority": request.priority,
            "thinking": request.thinking if request.typed else False,
            "tools": tools or None,
            "tool_choice": choice if tools else None,
            "model": self._entry.model or None,
            "progress": True,
        }
        return {name: value for name, value in given.items() if value is not None}

    async def embed(self, request: EmbedRequest) -> Embeddings:
        options = {"task": request.task, "dimensions": request.dimensions, "model": self._entry.model or None}
        chosen = {name: value for name, value in options.items() if value is not None}
        with self._translated():
            found = await self._channels["embed"].follow(vectors.embed(self._next_id, request.inputs, chosen))
        rows = array("f")
        for row in found.embeddings:
            rows.extend(row)
        if len(rows) != len(request.inputs) * found.dimensions:
            raise BackendInternal(f"backend {self.name!r} sent vectors of the wrong length")
        return Embeddings(rows.tobytes(), found.dimensions, found.input_tokens)

    async def rank(self, request: RankRequest) -> Ranking:
        options = {"model": self._entry.model} if self._entry.model else None
        with self._translated():
            found = await self._channels["rerank"].follow(
                vectors.rerank(self._next_id, request.query, request.documents, None, options)
            )
        scores = {ranked.index: ranked.score for ranked in found.results}
        if set(scores) != set(range(len(request.documents))):
            raise BackendInternal(f"backend {self.name!r} did not score every document")
        return Ranking(tuple(scores[i] for i in range(len(scores))), found.input_tokens)

    def _next_id(self) -> str:
        return f"{self.name[:32]}-{next(self._ids)}"

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Converts the errors of the upstream daemon and of the connection to errors of a backend."""
        try:
            yield
        except RequestFailed as failed:
            raise error_of(self.name, failed) from None
        except (ProtocolError, UsageError) as error:
            raise BackendInternal(f"backend {self.name!r}: {error}") from None
        except OperatorError as error:
            raise Unavailable(f"backend {self.name!r}: {error}") from None

    async def close(self) -> None:
        self._open = False
        for stream in tuple(self._running):
            await stream.closed()
        for channel in self._channels.values():
            channel.close()


def _addresses(entry: InferdEntry) -> dict[Surface, str]:
    given: dict[Surface, str | None] = {
        "v2": entry.address,
        "embed": entry.embed_address,
        "rerank": entry.rerank_address,
    }
    return {surface: address for surface, address in given.items() if address}


def _turn(message: Message) -> dict[str, Any]:
    parts = (message.content,) if isinstance(message.content, str) else message.content
    content: list[Any] = [part if isinstance(part, str) else _attachment(part) for part in parts]
    if message.role == "tool":
        return {"role": "user", "content": [blocks.tool_result(message.tool_call_id, content)]}
    if message.tool_calls and message.content == "":
        content = []
    if message.thinking:
        content.insert(0, {"type": "thinking", "text": message.thinking})
    content += map(_call, message.tool_calls)
    return {"role": message.role, "content": content}


def _call(call: ToolCall) -> dict[str, Any]:
    arguments = orjson.Fragment(call.arguments)
    return {"type": "tool_use", "tool_call_id": call.id, "name": call.name, "input": arguments}


def _attachment(media: Media) -> blocks.Attachment:
    return blocks.Attachment(
        media.kind,
        media.data,
        mime=media.mime or None,
        width=media.width or None,
        height=media.height or None,
        sample_rate=media.sample_rate or None,
    )


def _event(event: blocks.Event | blocks.MessageDone) -> Event:
    if isinstance(event, blocks.Text):
        return Text(event.text)
    if isinstance(event, blocks.Thinking):
        return Thinking(event.text)
    if isinstance(event, blocks.ToolUse):
        return ToolUse(ToolCall(event.tool_call_id, event.name, orjson.dumps(event.input).decode()))
    times = event.timings
    return Done(
        _STOP_REASONS.get(event.stop_reason, "error"),
        Usage(event.input_tokens, event.output_tokens, event.cached_tokens),
        Timings(*(times[name] for name in _TIMES)) if times.keys() >= set(_TIMES) else None,
        tool_missing=event.tool_choice_unsatisfied,
        unenforced=event.unenforced,
    )


def _size(request: GenerateRequest) -> int:
    """Returns the approximate number of characters to encode. Attachments do not count, because they are sent
    as raw bytes."""
    contents = (message.content for message in request.messages)
    parts = ((content,) if isinstance(content, str) else content for content in contents)
    return sum(len(part) for texts in parts for part in texts if isinstance(part, str))
