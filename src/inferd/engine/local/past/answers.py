"""Keeps the tokens of answers, which later prompts of the same conversation reuse.

The next request of a conversation contains the answer. The model's template may write the answer differently
than the model did: it reorders a call's arguments, changes their spaces, and strips the text. Then the tokens
of the answer differ from those in the prefix cache, and the model would have to compute everything after them
again. To avoid that, the answer's original tokens replace the assistant turn in the next prompt, if this turn
has the same text, thoughts and calls as the answer, and the same place in the conversation. A turn with any
difference is rendered normally.

An ``Answers`` belongs to one model and is thread-safe.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import orjson

from inferd.engine.requests import GenerateRequest, Message, ToolCall

MOST_BYTES = 16 << 20
"""The memory limit for all kept answers together."""

Kept = tuple[int, int, bytes]
"""A kept answer: the length and the hash of the prompt's text before the answer, and the answer's token
ids."""

_ENTRY_BYTES = 200


@dataclass(slots=True)
class Turn:
    """The pieces of an answer, as the client received them."""

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
        """Keeps the tokens of the finished answer to ``request``.

        ``prompt`` is the length and the hash of the rendered prompt's text.
        """
        key = _key(
            request.scope, len(request.messages), "".join(turn.thinking), "".join(turn.text), turn.calls
        )
        with self._lock:
            self._drop(key)
            self._kept[key] = (*prompt, tokens)
            self._bytes += len(tokens) + _ENTRY_BYTES
            while self._bytes > self._most_bytes:
                self._drop(next(iter(self._kept)))

    def of(self, request: GenerateRequest, *, thoughts: bool = True) -> list[Kept]:
        """Returns the kept answers among the messages of ``request``, in order.

        If ``thoughts`` is false, the template omits thinking before the last user message. Answers with such
        thinking are left out, because their kept tokens include it.
        """
        found = []
        asked = max((i for i, message in enumerate(request.messages) if message.role == "user"), default=0)
        for place, message in enumerate(request.messages):
            if message.role != "assistant" or (message.thinking and place < asked and not thoughts):
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
    """Keeps the answer to one request. If the answer was ended by the model, and not by a limit or a
    cancellation, the caller sets ``tokens``. Then the caller calls ``keep``, which also calls ``ended`` with
    the answer."""

    def __init__(
        self,
        answers: Answers,
        request: GenerateRequest,
        prompt: tuple[int, int],
        ended: Callable[[Turn], None] = lambda turn: None,
    ) -> None:
        self._answers = answers
        self._request = request
        self._prompt = prompt
        self._ended = ended
        self.tokens = b""

    def keep(self, turn: Turn) -> None:
        if self.tokens:
            self._answers.keep(self._request, self._prompt, turn, self.tokens)
            self._ended(turn)


def _text(message: Message) -> str | None:
    """Returns the text of a message, or ``None`` if the message contains media."""
    if isinstance(message.content, str):
        return message.content
    parts = [part for part in message.content if isinstance(part, str)]
    return "".join(parts) if len(parts) == len(message.content) else None


def _key(scope: str, place: int, thinking: str, text: str, calls: Sequence[ToolCall]) -> bytes:
    called = [(call.name, _value(call.arguments)) for call in calls]
    turn = orjson.dumps((scope, place, thinking.strip(), text.strip(), called), option=orjson.OPT_SORT_KEYS)
    return hashlib.blake2b(turn, digest_size=16).digest()


def _value(arguments: str) -> object:
    """Returns the arguments of a call in a normal form: arguments with the same meaning compare equal."""
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
