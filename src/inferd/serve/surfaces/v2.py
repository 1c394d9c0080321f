"""The v2 surface: requests and answers consist of typed blocks. Requests and answers are sent as lines or as
length-prefixed frames."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Literal, cast

from inferd.engine.backend import Backend
from inferd.engine.events import Done, Text, Thinking, ToolUse
from inferd.engine.requests import FrameTemplate, GenerateRequest, Media, Message, Tool, ToolCall
from inferd.fastpath import escape_json
from inferd.serve import router
from inferd.serve.surfaces.generation import Generation, generate_request, head_of
from inferd.wire import attachments, framed, v2, v2_rules

_STOP_REASONS = {"end": "end_turn", "length": "max_tokens", "stop": "stop_sequence"}


class _Blocks(Generation[v2.Request]):
    def needs(self, request: v2.Request) -> frozenset[str]:
        needed = {"v2"}
        if request.tools and request.tool_choice != "none":
            needed.add("tools")
        if request.lora:
            needed.add(router.adapter(request.lora))
        if request.raw or request.begun:
            needed.add("raw")
        if request.logprobs is not None:
            needed.add("logprobs")
        for message in request.messages:
            for block in _flat(message.content):
                if isinstance(block, v2.Image | v2.Audio):
                    needed.add("vision" if isinstance(block, v2.Image) else "audio")
        return frozenset(needed)

    def head(self, request: v2.Request) -> Hashable:
        return head_of(request.session, map(_words, request.messages))

    def writer(self, request: v2.Request) -> BlockWriter:
        return BlockWriter(request)

    def engine_request(
        self, request: v2.Request, template: FrameTemplate | None, scope: str = ""
    ) -> GenerateRequest:
        choice = request.tool_choice
        tools = [
            Tool(tool.name, tool.description, bytes(tool.input_schema).decode())
            for tool in request.tools or ()
        ]
        return generate_request(
            request,
            conversation(request),
            template,
            scope,
            json_schema=request.schema,
            typed=True,
            model_defaults=request.model_defaults is not False,
            thinking=request.thinking,
            tools=tuple(tools),
            tool_choice=cast('Literal["auto", "none", "required"]', choice)
            if isinstance(choice, str)
            else "auto",
            tool_name=choice.name if isinstance(choice, v2.ToolName) else "",
            raw=bool(request.raw),
            suffix=request.suffix,
            begun=bool(request.begun),
            logprobs=request.logprobs,
        )


class BlockSurface(_Blocks):
    name = v2.name
    parse = staticmethod(v2.parse)
    validate = staticmethod(v2_rules.validate)
    may_carry_raw = staticmethod(v2.may_carry_raw)

    @property
    def frames(self) -> FramedSurface:
        return FramedSurface()

    def raw_size(self, request: v2.Request, max_attachment_bytes: int) -> int:
        return attachments.raw_size(request.attachments or (), max_attachment_bytes)

    def assign(self, request: v2.Request, raw: memoryview) -> None:
        attachments.assign(request.attachments or (), raw)


class FramedSurface(_Blocks):
    name = framed.name
    parse = staticmethod(framed.parse)
    validate = staticmethod(framed.validate)
    may_carry_raw = staticmethod(framed.content_may_follow)
    encode_error = staticmethod(framed.encode_error)

    @property
    def lines(self) -> BlockSurface:
        return BlockSurface()

    @property
    def frames(self) -> FramedSurface:
        return self


def conversation(request: v2.Request) -> list[Message]:
    """Converts the messages of a valid request for a backend. Replaces each block that names an attachment by
    the content of the attachment.

    Frees the bytes of text attachments, since freeing them later would block the event loop for milliseconds.
    """
    media = {attachment.id: attachment for attachment in request.attachments or ()}
    messages: list[Message] = []
    for message in request.messages:
        messages += _of_assistant(message, media) if message.role == "assistant" else _of_user(message, media)
    attachments.drop_texts(request.attachments or ())
    return messages


Attachments = Mapping[str, attachments.Attachment]


def _of_assistant(message: v2.Message, media: Attachments) -> list[Message]:
    thoughts = [block.text for block in message.content if isinstance(block, v2.Thinking)]
    calls = [
        ToolCall(block.tool_call_id, block.name, bytes(block.input).decode())
        for block in message.content
        if isinstance(block, v2.ToolUse)
    ]
    content = _content(message.content, media)
    return [Message(message.role, content, thinking="\n".join(thoughts), tool_calls=tuple(calls))]


def _of_user(message: v2.Message, media: Attachments) -> Iterator[Message]:
    """Converts a user message. Each tool result becomes a separate message. The blocks between two tool
    results become one message."""
    around: list[v2.Block] = []
    for block in message.content:
        if isinstance(block, v2.ToolResult):
            if around:
                yield Message(message.role, _content(around, media))
                around = []
            yield Message("tool", _content(block.content, media), tool_call_id=block.tool_call_id)
        else:
            around.append(block)
    if around:
        yield Message(message.role, _content(around, media))


def _words(message: v2.Message) -> str:
    """Returns the text of a message without its attachments."""
    return "\n".join(block.text or "" for block in message.content if isinstance(block, v2.Text))


def _flat(blocks: Iterable[v2.Block]) -> Iterator[v2.Block]:
    for block in blocks:
        if isinstance(block, v2.ToolResult):
            yield from _flat(block.content)
        else:
            yield block


def _content(blocks: Iterable[v2.Block], media: Attachments) -> str | tuple[str | Media, ...]:
    """Converts ``blocks`` to the content of a backend's message: texts and media in order. Joins consecutive
    texts with newlines. Returns a plain string if no block is an image or audio."""
    parts: list[str | Media] = []
    for block in _flat(blocks):
        part = _part(block, media)
        if isinstance(part, str) and parts and isinstance(parts[-1], str):
            parts[-1] += "\n" + part
        elif part is not None:
            parts.append(part)
    if all(isinstance(part, str) for part in parts):
        return "".join(cast("list[str]", parts))
    return tuple(parts)


def _part(block: v2.Block, media: Attachments) -> str | Media | None:
    if isinstance(block, v2.Text) and block.attachment_id is None:
        return block.text
    if not isinstance(block, v2.Text | v2.Image | v2.Audio):
        return None
    attachment = media[block.attachment_id or ""]
    if isinstance(attachment, attachments.Image):
        return Media(
            "image",
            attachment.content,
            mime=attachment.mime or "",
            width=attachment.width or 0,
            height=attachment.height or 0,
        )
    if isinstance(attachment, attachments.Audio):
        return Media(
            "audio", attachment.content, mime=attachment.mime or "", sample_rate=attachment.sample_rate or 0
        )
    if isinstance(attachment, attachments.Text):
        return attachments.text_of(attachment)
    return None


class BlockWriter:
    """Encodes an answer as v2 frames. If the client wants no stream, each block of the answer becomes one
    frame. This frame is sent when the next block begins or the answer ends."""

    def __init__(self, request: v2.Request) -> None:
        self._id = request.id
        self._text = FrameTemplate(v2.delta_prefix(request.id, "text"), v2.TEXT_SUFFIX)
        self._thinking = FrameTemplate(v2.delta_prefix(request.id, "thinking"), v2.TEXT_SUFFIX)
        self._with_logprobs = FrameTemplate(self._text.prefix, v2.LOGPROBS_SUFFIX, v2.LOGPROBS_OPENING)
        streamed = self._text if request.logprobs is None else self._with_logprobs
        self.template = streamed if request.stream is not False else None
        self._open: FrameTemplate | None = None
        self._pieces: list[bytes] = []

    def event(self, event: Text | Thinking | ToolUse) -> bytes:
        if isinstance(event, ToolUse):
            call = event.call
            return self._close() + v2.encode_tool_use(self._id, call.id, call.name, call.arguments)
        frame = self._text if isinstance(event, Text) else self._thinking
        text = escape_json(event.text)
        if self.template is not None:
            return frame.prefix + text + frame.suffix
        finished = b"" if self._open is frame else self._close()
        self._open = frame
        self._pieces.append(text)
        return finished

    def _close(self) -> bytes:
        frame, pieces = self._open, self._pieces
        self._open, self._pieces = None, []
        return b"" if frame is None else frame.prefix + b"".join(pieces) + frame.suffix

    def end(self, done: Done, backend: Backend, timings: dict[str, float] | None) -> bytes:
        return self._rest(done) + v2.encode_done(
            self._id,
            input_tokens=done.usage.prompt_tokens,
            output_tokens=done.usage.completion_tokens,
            cached_tokens=done.usage.cached_tokens,
            stop_reason=_STOP_REASONS.get(done.stop_reason, done.stop_reason),
            backend=backend.kind,
            model=backend.model,
            timings=timings,
            tool_choice_unsatisfied=done.tool_missing,
            unenforced=done.unenforced,
        )

    def _rest(self, done: Done) -> bytes:
        """Encodes the text and the token probabilities that are not yet in a frame."""
        content = done.content if done.content and self.template is None else b""
        if done.logprobs:
            frame = self._with_logprobs
            records = frame.prefix + content + frame.opening + done.logprobs + frame.suffix
            return self._close() + records
        if content:
            self._open = self._text
            self._pieces.append(content)
        return self._close()
