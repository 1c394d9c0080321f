"""The v2 surface: requests have typed content blocks, tools and attachments, and each frame of an answer has
a typed block.

``parse`` raises ``NotJson`` if a line is not JSON, and ``DecodeError`` if the JSON is not a request. The
daemon closes the connection after ``NotJson``. The daemon also closes the connection after ``DecodeError`` if
raw bytes could follow the line. ``parse`` accepts blocks and attachments of unknown kinds, so that
:mod:`inferd.wire.v2_rules` can refuse the request and the connection stays open. A field is ``None`` if it
was absent or ``null``. Schemas and tool inputs are kept as JSON text, since they are only passed on.
:func:`encode_tool_use`, :func:`encode_done` and :func:`encode_error` return whole lines.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Union

import msgspec
import orjson

from inferd.errors import DecodeError
from inferd.fastpath import may_repeat_a_name
from inferd.wire import attachments, frames, sampling
from inferd.wire.attachments import Attachment
from inferd.wire.frames import Pairs
from inferd.wire.frames import encode_error as encode_error
from inferd.wire.sampling import Sampling
from inferd.wire.v1 import ROLES

name = "v2"

TOOL_CHOICES = ("auto", "none", "required")
RESPONSE_FORMATS = ("json_schema", "json_object")


class _Block(msgspec.Struct, kw_only=True, tag_field="type"):
    """One block of a message's content."""


class Text(_Block, tag="text", kw_only=True):
    """A text: the field ``text``, or the content of the text attachment ``attachment_id``."""

    text: str | None = None
    attachment_id: str | None = None


class Image(_Block, tag="image", kw_only=True):
    attachment_id: str


class Audio(_Block, tag="audio", kw_only=True):
    attachment_id: str


class Video(_Block, tag="video", kw_only=True):
    attachment_id: str


class Thinking(_Block, tag="thinking", kw_only=True):
    """The text in which the assistant thinks before it answers."""

    text: str


class ToolUse(_Block, tag="tool_use", kw_only=True):
    """A tool call by the assistant. ``input`` is a JSON object, the arguments of the call."""

    tool_call_id: str
    name: str
    input: msgspec.Raw


class ToolResult(_Block, tag="tool_result", kw_only=True):
    """The result of a tool call."""

    tool_call_id: str
    content: list[Block]


class Unknown(_Block, tag="unknown", kw_only=True):
    """A block of an unknown type."""


Block = Union[Text, Image, Audio, Video, Thinking, ToolUse, ToolResult, Unknown]  # noqa: UP007
_BLOCK_TYPES = frozenset({"text", "image", "audio", "video", "thinking", "tool_use", "tool_result"})
_BLOCK_KEYS = frozenset({"type", "text", "attachment_id", "tool_call_id", "name", "input", "content"})


class Message(msgspec.Struct):
    """One message of a conversation. ``role`` is ``system``, ``user`` or ``assistant``."""

    role: str
    content: list[Block]


class Tool(msgspec.Struct):
    """A function that the model may call. ``input_schema`` is the JSON Schema of the function's input."""

    name: str
    description: str
    input_schema: msgspec.Raw


class _Function(msgspec.Struct):
    name: str


class ToolName(msgspec.Struct):
    """The choice of one tool by its name. A request in OpenAI's form has the name in ``function``, and
    ``parse`` copies the name to the field ``name``."""

    name: str = ""
    function: _Function | None = None


class _NamedSchema(msgspec.Struct):
    schema: msgspec.Raw = msgspec.Raw()


class ResponseFormat(msgspec.Struct):
    """The format of the answer: any JSON object, or JSON that conforms to ``schema``.

    A request in OpenAI's form has the schema in ``json_schema``, and ``parse`` copies the schema to the field
    ``schema``.
    """

    type: str
    schema: msgspec.Raw = msgspec.Raw()
    json_schema: _NamedSchema | None = None


MAX_LOGPROBS = 20
Logprobs = Annotated[int, msgspec.Meta(ge=0, le=MAX_LOGPROBS)]


class Request(Sampling, kw_only=True):
    """A parsed request to generate an answer."""

    messages: list[Message]
    attachments: list[Attachment] | None = None
    tools: list[Tool] | None = None
    tool_choice: str | ToolName | None = None
    thinking: bool | None = None
    response_format: ResponseFormat | None = None
    raw: bool | None = None
    suffix: str | None = None
    begun: bool | None = None
    logprobs: Logprobs | None = None

    @property
    def schema(self) -> str:
        """The JSON Schema to which the answer must conform, or ``""`` if the answer is free."""
        if self.response_format is None:
            return bytes(self.json_schema).decode()
        if self.response_format.type == "json_object":
            return '{"type":"object"}'
        return bytes(self.response_format.schema).decode()


_decoder = msgspec.json.Decoder(Request)
_KEYS = frozenset(Request.__struct_fields__)
_CHOICE_KEYS = frozenset(ToolName.__struct_fields__)
_FORMAT_KEYS = frozenset(ResponseFormat.__struct_fields__)
_KEYS_OF = {
    "messages": frozenset({"role", "content"}),
    "attachments": attachments.KEYS,
    "tools": frozenset(Tool.__struct_fields__),
}


def may_carry_raw(line: bytes) -> bool:
    """Whether the raw bytes of attachments could follow ``line``. May be wrongly true, but is never wrongly
    false."""
    return b'"size"' in line or frames.has_escaped_key_letter(line)


def parse(line: bytes | memoryview, *, content_follows: bool = False) -> Request:
    """Parses the request on ``line``, which has no newline. Raises DecodeError.

    ``content_follows`` is true for a request in length-prefixed frames. Then the content of an attachment
    without ``bytes`` follows in a blob frame.
    """
    raw = bytes(line)
    try:
        request = frames.decode(_decoder, raw)
    except DecodeError:
        known = _with_known_kinds(raw)
        if known is None:
            raise
        request = frames.decode(_decoder, known)
    if request.attachments or may_repeat_a_name(raw):
        _read_exactly(frames.pairs(raw), request)
    for i, message in enumerate(request.messages):
        if message.role not in ROLES:
            where = f"$.messages[{i}].role"
            raise DecodeError(f"Expected `system`, `user` or `assistant` - at `{where}`", request.id)
    attachments.read(request.attachments or (), request.id, content_follows=content_follows)
    for i, tool in enumerate(request.tools or ()):
        _read_object(tool.input_schema, f"$.tools[{i}].input_schema", request.id)
    _read_choice(request)
    _read_format(request)
    sampling.read(request)
    return request


def _read_choice(request: Request) -> None:
    choice = request.tool_choice
    if isinstance(choice, str) and choice not in TOOL_CHOICES:
        raise DecodeError("Expected `auto`, `none`, `required` or `object` - at `$.tool_choice`", request.id)
    if isinstance(choice, ToolName):
        if choice.function is not None:
            choice.name = choice.name or choice.function.name
        if not choice.name:
            raise DecodeError("Object missing required field `name` - at `$.tool_choice`", request.id)


def _read_format(request: Request) -> None:
    form = request.response_format
    if form is None:
        return
    if form.type == "text":
        request.response_format = None
    elif form.type not in RESPONSE_FORMATS:
        expected = "Expected `json_schema`, `json_object` or `text` - at `$.response_format.type`"
        raise DecodeError(expected, request.id)
    elif form.type == "json_schema":
        where = "$.response_format.schema"
        if form.json_schema is not None and not bytes(form.schema):
            form.schema, where = form.json_schema.schema, "$.response_format.json_schema.schema"
        _read_object(form.schema, where, request.id)


def _read_object(raw: msgspec.Raw, where: str, request_id: str) -> None:
    if not bytes(raw).startswith(b"{"):
        raise DecodeError(f"Expected `object` - at `{where}`", request_id)


# The decoder rejects unknown kinds. So a rejected line is parsed once more, with every block and attachment
# of an unknown kind replaced by a stand-in. Each stand-in has the position of the original, so that the paths
# in errors stay right.


def _with_known_kinds(raw: bytes) -> bytes | None:
    """Returns the line with each block or attachment of an unknown kind replaced by a stand-in, which has the
    kind ``unknown``. Returns ``None`` if all kinds are known."""
    try:
        line = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(line, dict):
        return None
    replaced = _replace(line.get("attachments"), "kind", attachments.KINDS)
    lists = [message.get("content") for message in _objects(line.get("messages"))]
    while lists:
        blocks = lists.pop()
        replaced |= _replace(blocks, "type", _BLOCK_TYPES)
        lists += [block.get("content") for block in _objects(blocks) if block.get("type") == "tool_result"]
    return orjson.dumps(line) if replaced else None


def _objects(items: Any) -> list[dict[str, Any]]:
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _replace(items: Any, tag: str, known: frozenset[str]) -> bool:
    replaced = False
    for i, item in enumerate(items if isinstance(items, list) else ()):
        kind = item.get(tag) if isinstance(item, dict) else None
        if isinstance(kind, str) and kind not in known:
            stand_in: dict[str, Any] = {tag: "unknown"}
            if isinstance(item.get("id"), str):
                stand_in["id"] = item["id"]
            size = item.get("size")
            if type(size) is int and size >= 0 and item.get("bytes") is None:
                stand_in["size"] = size
            items[i] = stand_in
            replaced = True
    return replaced


def _read_exactly(line: Pairs, request: Request) -> None:
    """Raises DecodeError for two faults that the JSON decoder accepts: a known key that is repeated, and
    base64 that is not canonical.
    """
    line.require_unique(_KEYS, "$")
    for key, known in _KEYS_OF.items():
        for i, item in enumerate(line.get(key) or ()):
            item.require_unique(known, f"$.{key}[{i}]")
    for i, message in enumerate(line.get("messages")):
        _require_unique_in_blocks(message.get("content"), f"$.messages[{i}].content")
    for key, known in (("tool_choice", _CHOICE_KEYS), ("response_format", _FORMAT_KEYS)):
        value = line.get(key)
        if isinstance(value, Pairs):
            value.require_unique(known, f"$.{key}")
    for i, item in enumerate(line.get("attachments") or ()):
        data = request.attachments[i] if request.attachments else None
        if isinstance(data, attachments.Unknown | None) or data.data is None:
            continue
        if not attachments.is_canonical_base64(item.get("bytes"), data.data):
            raise DecodeError(f"Invalid base64 encoded string - at `$.attachments[{i}].bytes`", request.id)


def _require_unique_in_blocks(content: list[Pairs], where: str) -> None:
    left = [(where, content)]
    while left:
        where, blocks = left.pop()
        for j, block in enumerate(blocks):
            block.require_unique(_BLOCK_KEYS, f"{where}[{j}]")
            if block.get("type") == "tool_result":
                left.append((f"{where}[{j}].content", block.get("content")))


# Writing.

TEXT_SUFFIX = b'"}}\n'
LOGPROBS_OPENING, LOGPROBS_SUFFIX = b'"},"logprobs":[', b"]}\n"
"""The end of a text frame with token probabilities. The records of the tokens go between the two parts."""


def delta_prefix(request_id: str, kind: Literal["text", "thinking"]) -> bytes:
    """Encodes the start of a frame with a piece of text, the delta. A whole frame is this prefix, the
    JSON-escaped delta, and ``TEXT_SUFFIX``."""
    block = b',"block":{"type":"' + kind.encode() + b'","delta":"'
    return b'{"type":"frame","id":' + orjson.dumps(request_id) + block


def encode_tool_use(request_id: str, tool_call_id: str, tool: str, arguments: str) -> bytes:
    """Encodes the frame of a tool call. A tool call is always sent whole, in one frame. ``arguments`` is a
    JSON object as text."""
    compact = msgspec.json.format(arguments.encode(), indent=-1)
    block = {
        "type": "tool_use",
        "tool_call_id": tool_call_id,
        "name": tool,
        "input": orjson.Fragment(compact),
    }
    return frames.encode({"type": "frame", "id": request_id, "block": block})


def encode_done(
    request_id: str,
    *,
    input_tokens: int,
    output_tokens: int,
    cached_tokens: int,
    stop_reason: str,
    backend: str,
    model: str,
    timings: dict[str, float] | None,
    tool_choice_unsatisfied: bool,
    unenforced: tuple[str, ...] = (),
) -> bytes:
    """Encodes the ``done`` frame."""
    usage = {"input_tokens": input_tokens, "output_tokens": output_tokens}
    if cached_tokens:
        usage["cached_tokens"] = cached_tokens
    frame: dict[str, Any] = {
        "type": "done",
        "id": request_id,
        "usage": usage,
        "stop_reason": stop_reason,
        "backend": backend,
        "model": model,
    }
    if timings is not None:
        frame["timings"] = timings
    if tool_choice_unsatisfied:
        frame["tool_choice_unsatisfied"] = True
    if unenforced:
        frame["unenforced"] = unenforced
    return frames.encode(frame)
