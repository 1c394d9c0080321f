"""Keeps the time that the template of a conversation sees.

Many templates put the date into the system prompt. When the date changes, all tokens after it differ from
those in the prefix cache. So the template sees the time of a conversation's first request, for a day. The
messages up to the first user message identify a conversation. A request without an answer among its messages
begins a conversation.

Belongs to one model. Thread-safe.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict

import orjson

from inferd.engine.local.child import turns
from inferd.engine.requests import GenerateRequest

MOST_CONVERSATIONS = 4096
LONGEST_SECS = 24 * 60 * 60


class Dates:
    def __init__(self) -> None:
        self._begun: OrderedDict[bytes, int] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, request: GenerateRequest, now: int) -> int:
        """The time for the template of ``request``, in seconds since 1970 like ``now``."""
        key = _key(request)
        continues = any(message.role == "assistant" for message in request.messages)
        with self._lock:
            begun = self._begun.pop(key, now) if continues else now
            if not 0 <= now - begun < LONGEST_SECS:
                begun = now
            self._begun[key] = begun
            if len(self._begun) > MOST_CONVERSATIONS:
                self._begun.popitem(last=False)
        return begun


def _key(request: GenerateRequest) -> bytes:
    head = []
    for message in request.messages:
        head.append((message.role, turns.text(message)))
        if message.role == "user":
            break
    return hashlib.blake2b(orjson.dumps((request.scope, head)), digest_size=16).digest()
