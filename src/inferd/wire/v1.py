"""The v1 surface: requests and answers are plain text.

``parse`` raises ``NotJson`` if a line is not JSON, and ``DecodeError`` if the JSON is not a request.
``validate`` raises ``InvalidRequest`` if a request has invalid values. Of these errors, only ``NotJson``
makes the daemon close the connection. A field is ``None`` if it was absent or ``null``. :func:`encode_done`
and :func:`encode_error` return whole lines.
"""

from __future__ import annotations

from typing import Any

import msgspec
import orjson

from inferd.errors import DecodeError
from inferd.fastpath import may_repeat_a_name
from inferd.wire import frames, sampling
from inferd.wire.frames import encode_error as encode_error
from inferd.wire.sampling import U32, Sampling, invalid

name = "v1"

ROLES = ("system", "user", "assistant")
IMAGE_TOKEN_BUDGETS = (70, 140, 280, 560, 1120)


class Message(msgspec.Struct):
    """One message of a conversation. ``role`` is one of ``ROLES``. ``content`` may be empty."""

    role: str
    content: str


class Request(Sampling, kw_only=True):
    """A parsed request to generate an answer."""

    messages: list[Message]
    image_token_budget: U32 | None = None


_decoder = msgspec.json.Decoder(Request)
_KEYS = frozenset(Request.__struct_fields__)
_MESSAGE_KEYS = frozenset(Message.__struct_fields__)


def parse(line: bytes | memoryview) -> Request:
    """Parses the request on ``line``, which has no newline. Raises DecodeError."""
    raw = bytes(line)
    request = frames.decode(_decoder, raw)
    if may_repeat_a_name(raw):
        _refuse_repeated_keys(raw)
    for i, message in enumerate(request.messages):
        if message.role not in ROLES:
            where = f"$.messages[{i}].role"
            raise DecodeError(f"Expected `system`, `user` or `assistant` - at `{where}`", request.id)
    sampling.read(request)
    return request


def _refuse_repeated_keys(raw: bytes) -> None:
    line = frames.pairs(raw)
    line.require_unique(_KEYS, "$")
    for i, message in enumerate(line.get("messages")):
        message.require_unique(_MESSAGE_KEYS, f"$.messages[{i}]")


def validate(request: Request) -> None:
    """Raises InvalidRequest if a field has a value that is not allowed. The message names the field and its
    bounds."""
    if not request.messages:
        raise invalid("messages must not be empty")
    budget = request.image_token_budget
    if budget is not None and budget not in IMAGE_TOKEN_BUDGETS:
        raise invalid(f"image_token_budget must be one of {', '.join(map(str, IMAGE_TOKEN_BUDGETS))}")
    sampling.check(request)


TOKEN_SUFFIX = b'"}\n'


def token_prefix(request_id: str) -> bytes:
    """Encodes the start of a ``token`` frame, up to the content.

    A whole frame is this prefix, the JSON-escaped content, and ``TOKEN_SUFFIX``.
    """
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
    unenforced: tuple[str, ...] = (),
) -> bytes:
    """Encodes the ``done`` frame. If ``content`` is bytes, the bytes are already JSON-escaped, without the
    enclosing quotes."""
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
    if unenforced:
        frame["unenforced"] = unenforced
    return frames.encode(frame)
