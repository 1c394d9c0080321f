"""The tokens of earlier answers, for the turns that come back.

The next request of a conversation has the answer in it, and the model's template writes it anew: the
arguments of a call with other spaces and in another order, the text without the spaces around it. Then
neither its text nor its tokens are those that the cache holds, and all behind it would be computed again. A
turn with the same text, thoughts and calls in the same place of the same conversation has the same meaning,
so its own tokens take its place in the prompt. Whatever differs in that is rendered as it is.

Belongs to one model. May be used from several threads.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import orjson

from inferd.engine.backend import GenerateRequest, Message, ToolCall

MOST_BYTES = 16 << 20
"""What the answers may take together."""

Kept = tuple[int, int, bytes]
"""How long the prompt before an answer was in characters of its text, the hash of that text, and the answer's
token ids."""

_ENTRY_BYTES = 200


@dataclass(slots=True)
class Turn:
    """An answer as the client got it, piece by piece."""

    thinking: list[str] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)


class Answers:
    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._kept: OrderedDict[bytes, Kept] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, request: GenerateRequest, prompt: tuple[int, int], turn: Turn, tokens: bytes) -> None:
        """The answer to ``request`` is finished; ``prompt`` is length and hash of what it was rendered to."""
        key = _key(
            request.scope, len(request.messages), "".join(turn.thinking), "".join(turn.text), turn.calls
        )
        with self._lock:
            self._drop(key)
            self._kept[key] = (*prompt, tokens)
            self._bytes += len(tokens) + _ENTRY_BYTES
            while self._bytes > self._most_bytes:
                self._drop(next(iter(self._kept)))

    def of(self, request: GenerateRequest) -> list[Kept]:
        """The kept answers among the messages of ``request``, in their order."""
        found = []
        for place, message in enumerate(request.messages):
            if message.role != "assistant":
                continue
            text = _text(message)
            if text is None:
                continue
            key = _key(request.scope, place, message.thinking, text, message.tool_calls)
            with self._lock:
                if key in self._kept:
                    self._kept.move_to_end(key)
                    found.append(self._kept[key])
        return found

    def _drop(self, key: bytes) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self._bytes -= len(kept[2]) + _ENTRY_BYTES


class Keeper:
    """Keeps the answer to one request: ``tokens`` are set when it has ended by itself, then ``keep`` is
    called."""

    def __init__(self, answers: Answers, request: GenerateRequest, prompt: tuple[int, int]) -> None:
        self._answers = answers
        self._request = request
        self._prompt = prompt
        self.tokens = b""

    def keep(self, turn: Turn) -> None:
        if self.tokens:
            self._answers.keep(self._request, self._prompt, turn, self.tokens)


def _text(message: Message) -> str | None:
    """The text of a message; ``None`` with media in it."""
    if isinstance(message.content, str):
        return message.content
    parts = [part for part in message.content if isinstance(part, str)]
    return "".join(parts) if len(parts) == len(message.content) else None


def _key(scope: str, place: int, thinking: str, text: str, calls: Sequence[ToolCall]) -> bytes:
    called = [(call.name, _value(call.arguments)) for call in calls]
    turn = orjson.dumps((scope, place, thinking.strip(), text.strip(), called), option=orjson.OPT_SORT_KEYS)
    return hashlib.blake2b(turn, digest_size=16).digest()


def _value(arguments: str) -> object:
    """The arguments of a call: equal for equal values, however they are written."""
    try:
        return _plain(orjson.loads(arguments))
    except orjson.JSONDecodeError:
        return arguments


def _plain(value: object) -> object:
    if isinstance(value, float) and value.is_integer():
        return int(value) if abs(value) < 2**53 else value
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
