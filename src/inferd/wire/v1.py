"""The v1 surface: text in, text out.

``parse`` says whether a line is a request at all (``DecodeError``: the connection is closed afterwards),
``validate`` whether it can be served as it is (``InvalidRequest``: the connection stays open). A field that
is ``None`` was absent or ``null``; the constants below then hold. The encoders return whole lines.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
import orjson

from inferd.errors import DecodeError, InvalidRequest
from inferd.wire import frames
from inferd.wire.frames import encode_error as encode_error

name = "v1"

TEMPERATURE = 1.0
TOP_P = 0.95
TOP_K = 64
MAX_TOKENS = 1000

ROLES = ("system", "user", "assistant")
PRIORITIES = ("interactive", "batch")
IMAGE_TOKEN_BUDGETS = (70, 140, 280, 560, 1120)

# A grammar is compiled before the first token: these bound the memory and the time that takes.
MAX_GRAMMAR_BYTES = 65_536
MAX_GRAMMAR_ALTERNATIVES = 4_096
# Every stop string is looked for after every token.
MAX_STOPS = 16
# The name of a conversation becomes a key of caches.
MAX_SESSION_BYTES = 128
# Far beyond any use; it keeps float32 arithmetic on logits finite.
MAX_SAMPLING_NUMBER = 100.0

U32 = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
Priority = Literal["interactive", "batch"]


class Message(msgspec.Struct):
    """One turn; ``role`` is one of ``ROLES``, ``content`` may be empty."""

    role: str
    content: str


class Request(msgspec.Struct, kw_only=True):
    """A generation request, as it stood on the line."""

    messages: list[Message]
    id: str = ""
    temperature: float | None = None
    top_p: float | None = None
    top_k: U32 | None = None
    max_tokens: U32 | None = None
    stream: bool | None = None
    image_token_budget: U32 | None = None
    grammar: str = ""
    seed: U32 | None = None
    stop: list[str] | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    json_schema: msgspec.Raw = msgspec.Raw()
    priority: str | None = None
    deadline_ms: U32 | None = None
    session: str | None = None


_decoder = msgspec.json.Decoder(Request)
_KEYS = frozenset(Request.__struct_fields__)
_MESSAGE_KEYS = frozenset(Message.__struct_fields__)
_NEEDLES = tuple((key, f'"{key}"'.encode()) for key in Request.__struct_fields__)


def parse(line: bytes | memoryview) -> Request:
    """The request on one line, without its newline. Raises DecodeError."""
    raw = bytes(line)
    request = frames.decode(_decoder, raw)
    if _may_repeat_a_key(raw, request):
        _refuse_repeated_keys(raw)
    for i, message in enumerate(request.messages):
        if message.role not in ROLES:
            where = f"$.messages[{i}].role"
            raise DecodeError(f"Expected `system`, `user` or `assistant` - at `{where}`", request.id)
    if request.priority is not None and request.priority not in PRIORITIES:
        raise DecodeError("Expected `interactive` or `batch` - at `$.priority`", request.id)
    schema = bytes(request.json_schema)
    if schema == b"null":
        request.json_schema = msgspec.Raw()
    elif schema and not schema.startswith(b"{"):
        raise DecodeError("Expected `object` - at `$.json_schema`", request.id)
    return request


def _may_repeat_a_key(raw: bytes, request: Request) -> bool:
    # A key that stands twice as a key stands twice as bytes. So counting bytes clears nearly every line, at a
    # tenth of what a parse that keeps doubles costs. A field that is None can still hide a double of `null`.
    every = b"null" in raw
    for key, needle in _NEEDLES:
        if (every or getattr(request, key) is not None) and raw.count(needle) > 1:
            return True
    turns = len(request.messages)
    if raw.count(b'"role"') > turns or raw.count(b'"content"') > turns:
        return True
    return frames.has_escaped_key_letter(raw)


def _refuse_repeated_keys(raw: bytes) -> None:
    line = frames.pairs(raw)
    line.require_unique(_KEYS, "$")
    for i, message in enumerate(line.get("messages")):
        message.require_unique(_MESSAGE_KEYS, f"$.messages[{i}]")


def validate(request: Request) -> None:
    """Raises InvalidRequest, which names the field and its bounds."""
    if not request.messages:
        raise _invalid("messages must not be empty")
    _check_range("temperature", request.temperature, 0.0)
    if request.top_p is not None and not 0.0 < request.top_p <= 1.0:
        raise _invalid("top_p must be above 0 and at most 1")
    budget = request.image_token_budget
    if budget is not None and budget not in IMAGE_TOKEN_BUDGETS:
        raise _invalid(f"image_token_budget must be one of {', '.join(map(str, IMAGE_TOKEN_BUDGETS))}")
    if request.min_p is not None and not 0.0 <= request.min_p <= 1.0:
        raise _invalid("min_p must be between 0 and 1")
    if request.repeat_penalty is not None and not 0.0 < request.repeat_penalty <= MAX_SAMPLING_NUMBER:
        raise _invalid(f"repeat_penalty must be above 0 and at most {MAX_SAMPLING_NUMBER:g}")
    _check_range("presence_penalty", request.presence_penalty, -MAX_SAMPLING_NUMBER)
    _check_range("frequency_penalty", request.frequency_penalty, -MAX_SAMPLING_NUMBER)
    if request.stop is not None:
        _check_stop(request.stop)
    if request.grammar:
        _check_grammar(request)
    if request.session is not None and len(request.session.encode()) > MAX_SESSION_BYTES:
        raise _invalid(f"session must be at most {MAX_SESSION_BYTES} bytes")


def _invalid(reason: str) -> InvalidRequest:
    return InvalidRequest(f"invalid request: {reason}")


def _check_range(key: str, value: float | None, low: float) -> None:
    if value is not None and not low <= value <= MAX_SAMPLING_NUMBER:
        raise _invalid(f"{key} must be between {low:g} and {MAX_SAMPLING_NUMBER:g}")


def _check_stop(stop: list[str]) -> None:
    if len(stop) > MAX_STOPS:
        raise _invalid(f"stop must hold at most {MAX_STOPS} strings")
    for i, text in enumerate(stop):
        if not text:
            raise _invalid(f"stop[{i}] must not be empty")


def _check_grammar(request: Request) -> None:
    if bytes(request.json_schema):
        raise _invalid("grammar and json_schema exclude each other")
    if len(request.grammar.encode()) > MAX_GRAMMAR_BYTES:
        raise _invalid(f"grammar must be at most {MAX_GRAMMAR_BYTES} bytes")
    if request.grammar.count("|") > MAX_GRAMMAR_ALTERNATIVES:
        raise _invalid(f"grammar must hold at most {MAX_GRAMMAR_ALTERNATIVES} alternatives (`|`)")


TOKEN_SUFFIX = b'"}\n'


def token_prefix(request_id: str) -> bytes:
    """A token frame up to its content, which stands JSON-escaped between this and ``TOKEN_SUFFIX``."""
    return b'{"type":"token","id":' + orjson.dumps(request_id) + b',"content":"'


def encode_done(
    request_id: str,
    content: str | bytes,
    *,
    prompt_tokens: int,
    completion_tokens: int,
    cached_tokens: int,
    stop_reason: str,
    backend: str,
    model: str,
    timings: dict[str, float] | None,
) -> bytes:
    """The ``done`` frame. ``content`` as bytes is the inside of a JSON string, escaped already."""
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    if cached_tokens:
        usage["cached_tokens"] = cached_tokens
    frame: dict[str, Any] = {
        "type": "done",
        "id": request_id,
        "content": orjson.Fragment(b'"%b"' % content) if isinstance(content, bytes) else content,
        "usage": usage,
        "stop_reason": stop_reason,
        "backend": backend,
        "model": model,
    }
    if timings is not None:
        frame["timings"] = timings
    return frames.encode(frame)
