"""The typed blocks of the v2 protocol, of which messages and answers consist.

A message's ``content`` is a text or a list of texts, attachments and blocks of the v2 protocol. Attachments
are sent as raw bytes after the request line. If the request line would be too long, the longest texts are
sent as attachments, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from inferd.client.protocol import MAX_LINE_BYTES, Bytes, PendingRequest, encode

# The most bytes on the request line for a reference to an attachment, and for its row in ``attachments``.
_REFERENCE_BYTES = 128
# Room for the request's id.
_ID_BYTES = 64


@dataclass(frozen=True, slots=True)
class Attachment:
    """Bytes that are part of a message: a UTF-8 text, a picture or a sound.

    With a ``mime`` type, a picture or sound is an encoded file. Without a ``mime`` type, a picture is
    interleaved RGB of ``width`` x ``height`` pixels, and a sound is little-endian float32 mono samples at
    ``sample_rate`` Hz.
    """

    kind: Literal["image", "audio", "text"]
    data: Bytes
    mime: str | None = None
    width: int | None = None
    height: int | None = None
    sample_rate: int | None = None


Block = Mapping[str, Any]
Content = str | Sequence["str | Attachment | Block"]


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of the answer's text. A piece never ends within a character.

    If requested, ``logprobs`` has the tokens of this piece, each with ``token``, ``bytes``, ``logprob`` and
    ``top_logprobs``.
    """

    text: str
    logprobs: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Thinking:
    """A piece of the model's reasoning before its answer."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolUse:
    """A complete tool call. Answer the call with a ``tool_result`` that has the same ``tool_call_id``."""

    tool_call_id: str
    name: str
    input: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageDone:
    """The end of an answer: all blocks of the answer, the reason why the answer ended, its token counts, and
    its timings in milliseconds.

    ``content`` can be sent as the assistant's turn in the next request. ``tool_choice_unsatisfied`` is true
    if a required tool was not called. ``unenforced`` lists the parts of the JSON Schemas that were checked
    only at the end of the answer. An entry for the schema of a tool's input begins with the tool's name.
    ``logprobs`` has the tokens of the whole text, as in :class:`Text`.
    """

    content: tuple[Block, ...]
    stop_reason: str
    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    tool_choice_unsatisfied: bool = False
    backend: str = ""
    model: str = ""
    timings: Mapping[str, float] = field(default_factory=dict)
    unenforced: tuple[str, ...] = ()
    logprobs: tuple[Mapping[str, Any], ...] = ()


def tool_result(call: ToolUse | str, content: Content) -> Block:
    """Returns a block with the result of a tool call. ``call`` is the tool call or its id."""
    call_id = call if isinstance(call, str) else call.tool_call_id
    return {"type": "tool_result", "tool_call_id": call_id, "content": content}


Event = Text | Thinking | ToolUse


class MessagesRequest(PendingRequest[Event, MessageDone]):
    """A v2 request. ``blocks`` has the blocks of the answer that have arrived, in the form that the
    ``content`` of a turn has."""

    def __init__(
        self, request_id: str, turns: Sequence[Mapping[str, Any]], options: Mapping[str, Any]
    ) -> None:
        self.blocks: list[dict[str, Any]] = []
        self._logprobs: list[Mapping[str, Any]] = []
        outgoing = Outgoing()
        body = {**outgoing.body(turns), **options}
        self._fit(outgoing, body)
        if outgoing.attachments:
            body["attachments"] = outgoing.attachments
        super().__init__(request_id, body, outgoing.raw)

    def _fit(self, outgoing: Outgoing, body: Mapping[str, Any]) -> None:
        """Moves texts into attachments, so that the request does not exceed the limits of the protocol."""
        outgoing.shorten(body)

    def event(self, kind: str, frame: Mapping[str, Any]) -> Event | MessageDone:
        if kind == "frame":
            return self._block(frame["block"], frame.get("logprobs", ()))
        if kind != "done":
            raise LookupError(kind)
        usage = frame["usage"]
        self.done = MessageDone(
            content=tuple(self.blocks),
            stop_reason=frame["stop_reason"],
            input_tokens=usage["input_tokens"],
            output_tokens=usage["output_tokens"],
            cached_tokens=usage.get("cached_tokens", 0),
            tool_choice_unsatisfied=frame.get("tool_choice_unsatisfied", False),
            backend=frame.get("backend", ""),
            model=frame.get("model", ""),
            timings=frame.get("timings") or {},
            unenforced=tuple(frame.get("unenforced", ())),
            logprobs=tuple(self._logprobs),
        )
        return self.done

    def _block(self, block: Mapping[str, Any], logprobs: Sequence[Mapping[str, Any]]) -> Event:
        kind = block["type"]
        if kind == "tool_use":
            self.blocks.append(dict(block))
            return ToolUse(block["tool_call_id"], block["name"], block["input"])
        if kind not in ("text", "thinking"):
            raise LookupError(kind)
        delta = block["delta"]
        if self.blocks and self.blocks[-1]["type"] == kind:
            self.blocks[-1]["text"] += delta
        elif delta:  # the last frame may have only logprobs, and no text
            self.blocks.append({"type": kind, "text": delta})
        self._logprobs += logprobs
        return Text(delta, tuple(logprobs)) if kind == "text" else Thinking(delta)


class Outgoing:
    """Converts messages to JSON objects of the v2 protocol. Collects the attachments, whose raw bytes are
    sent after the request line."""

    def __init__(self) -> None:
        self.attachments: list[dict[str, Any]] = []
        self.raw: list[Bytes] = []
        self._texts: list[dict[str, Any]] = []

    def body(self, messages: Iterable[Block]) -> dict[str, Any]:
        return {"messages": [{**each, "content": self._content(each["content"])} for each in messages]}

    def shorten(self, body: Mapping[str, Any]) -> None:
        """Moves texts from the request line to attachments, the longest first, until the line is short
        enough."""
        excess = len(encode({**body, "attachments": self.attachments})) + _ID_BYTES - MAX_LINE_BYTES
        for block in sorted(self._texts, key=lambda block: len(block["text"]), reverse=True):
            if excess <= 0:
                break
            text = block.pop("text")
            excess -= len(encode(text)) - _REFERENCE_BYTES
            block["attachment_id"] = self._attach(Attachment("text", text.encode()))

    def move_long_texts(self, least: int, most: int) -> None:
        """Moves texts of at least ``least`` characters to attachments, the longest first. Stops when the
        request has ``most`` attachments."""
        room = most - len(self.attachments)
        long = [block for block in self._texts if len(block["text"]) >= least]
        for block in sorted(long, key=lambda block: len(block["text"]), reverse=True)[: max(room, 0)]:
            block["attachment_id"] = self._attach(Attachment("text", block.pop("text").encode()))

    def _content(self, content: Content) -> list[dict[str, Any]]:
        return [self._block(part) for part in ([content] if isinstance(content, str) else content)]

    def _block(self, part: str | Attachment | Block) -> dict[str, Any]:
        if isinstance(part, Attachment):
            return {"type": part.kind, "attachment_id": self._attach(part)}
        block: dict[str, Any] = {"type": "text", "text": part} if isinstance(part, str) else dict(part)
        if block.get("type") == "tool_result":
            block["content"] = self._content(block["content"])
        elif block.get("type") == "text" and isinstance(block.get("text"), str):
            self._texts.append(block)
        return block

    def _attach(self, attachment: Attachment) -> str:
        name = f"a{len(self.attachments) + 1}"
        facts = {key: getattr(attachment, key) for key in ("mime", "width", "height", "sample_rate")}
        self.attachments.append(
            {
                "kind": attachment.kind,
                "id": name,
                "size": memoryview(attachment.data).nbytes,
                **{key: fact for key, fact in facts.items() if fact is not None},
            }
        )
        self.raw.append(attachment.data)
        return name
