"""The fields that v1 and v2 requests share: for sampling, for the queue, and for the owner of the request.

``read`` is part of parsing and raises DecodeError. ``check`` is part of validation and raises InvalidRequest.
A field is ``None`` if it was absent or ``null``.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Annotated

import msgspec

from inferd.errors import DecodeError, InvalidRequest
from inferd.sampling import NAMES, NOTHING_GIVEN, SamplingParams
from inferd.wire.bounds import MAX_SAMPLING_NUMBER, PRIORITIES

# A grammar is compiled before the first token; these limits bound its memory and time.
MAX_GRAMMAR_BYTES = 65_536
MAX_GRAMMAR_ALTERNATIVES = 4_096
# Every stop string is searched for after every token.
MAX_STOPS = 16
# The name of a conversation is used as a cache key.
MAX_SESSION_BYTES = 128
# Logits are divided by the penalty, so it must not be near 0.
MIN_REPEAT_PENALTY = 0.01

U32 = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
# Other APIs send -1 for no seed.
Seed = Annotated[int, msgspec.Meta(ge=-1, le=2**32 - 1)]
# Seconds; -1 keeps the model loaded always.
KeepAlive = Annotated[float, msgspec.Meta(ge=-1, le=1e9)]


class Behalf(msgspec.Struct):
    """The HTTP client (``caller``) on whose behalf the HTTP bridge sends a request, and the token that
    identifies the HTTP bridge."""

    caller: str
    token: str


class Sampling(msgspec.Struct, kw_only=True):
    """The parsed fields that v1 and v2 requests share."""

    id: str = ""
    temperature: float | None = None
    top_p: float | None = None
    top_k: U32 | None = None
    max_tokens: U32 | None = None
    stream: bool | None = None
    grammar: str = ""
    seed: Seed | None = None
    stop: list[str] | str | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    json_schema: msgspec.Raw = msgspec.Raw()
    schema_lenient: bool | None = None
    priority: str | None = None
    deadline_ms: U32 | None = None
    session: str | None = None
    on_behalf_of: Behalf | None = None
    model: str | None = None
    lora: str | None = None
    keep_alive: KeepAlive | None = None
    progress: bool | None = None
    cache: bool | None = None
    model_defaults: bool | None = None

    def params(self) -> SamplingParams:
        """Returns the sampling settings that the request gives."""
        given = _sampler(self)
        return NOTHING_GIVEN if given == _NOTHING else SamplingParams(**dict(zip(NAMES, given, strict=True)))


_sampler = attrgetter(*NAMES)
_NOTHING = (None,) * len(NAMES)


def invalid(reason: str) -> InvalidRequest:
    """Returns the error for a request in which every field has the right type, but another rule is broken.
    ``reason`` names the field."""
    return InvalidRequest(f"invalid request: {reason}")


def read(request: Sampling) -> None:
    """Completes the parsing of ``request``: checks the rules that the fields' types do not express, and
    normalises some values. Raises DecodeError.

    A ``null`` schema and a seed of -1 are treated as absent. A single stop string becomes a list.
    """
    if request.seed == -1:
        request.seed = None
    if isinstance(request.stop, str):
        request.stop = [request.stop]
    if request.priority is not None and request.priority not in PRIORITIES:
        raise DecodeError("Expected `interactive` or `batch` - at `$.priority`", request.id)
    request.json_schema = read_object(request.json_schema, "$.json_schema", request.id)


def read_object(raw: msgspec.Raw, where: str, request_id: str) -> msgspec.Raw:
    """Returns ``raw`` if ``raw`` is a JSON object, and an empty ``Raw`` if ``raw`` is empty or ``null``.
    Raises DecodeError for any other JSON value."""
    text = bytes(raw)
    if text == b"null":
        return msgspec.Raw()
    if text and not text.startswith(b"{"):
        raise DecodeError(f"Expected `object` - at `{where}`", request_id)
    return raw


def check(request: Sampling) -> None:
    """Raises InvalidRequest if the value of a field is out of its bounds, or two fields exclude each other.
    The message names the field and the bounds."""
    _check_range("temperature", request.temperature, 0.0)
    if request.top_p is not None and not 0.0 < request.top_p <= 1.0:
        raise invalid("top_p must be above 0 and at most 1")
    if request.min_p is not None and not 0.0 <= request.min_p <= 1.0:
        raise invalid("min_p must be between 0 and 1")
    _check_range("repeat_penalty", request.repeat_penalty, MIN_REPEAT_PENALTY)
    _check_range("presence_penalty", request.presence_penalty, -MAX_SAMPLING_NUMBER)
    _check_range("frequency_penalty", request.frequency_penalty, -MAX_SAMPLING_NUMBER)
    if isinstance(request.stop, list):
        _check_stop(request.stop)
    if request.grammar:
        _check_grammar(request)
    if request.session is not None and len(request.session.encode()) > MAX_SESSION_BYTES:
        raise invalid(f"session must be at most {MAX_SESSION_BYTES} bytes")


def _check_range(key: str, value: float | None, low: float) -> None:
    if value is not None and not low <= value <= MAX_SAMPLING_NUMBER:
        raise invalid(f"{key} must be between {low:g} and {MAX_SAMPLING_NUMBER:g}")


def _check_stop(stop: list[str]) -> None:
    if len(stop) > MAX_STOPS:
        raise invalid(f"stop must hold at most {MAX_STOPS} strings")
    for i, text in enumerate(stop):
        if not text:
            raise invalid(f"stop[{i}] must not be empty")


def _check_grammar(request: Sampling) -> None:
    if bytes(request.json_schema):
        raise invalid("grammar and json_schema exclude each other")
    if len(request.grammar.encode()) > MAX_GRAMMAR_BYTES:
        raise invalid(f"grammar must be at most {MAX_GRAMMAR_BYTES} bytes")
    if request.grammar.count("|") > MAX_GRAMMAR_ALTERNATIVES:
        raise invalid(f"grammar must hold at most {MAX_GRAMMAR_ALTERNATIVES} alternatives (`|`)")
