"""Gives all prompts of a conversation the same date for their chat template.

Many templates put the date into the system prompt. When the date changes, no token after it can come from the
prefix cache. So for a day, the template of each later request gets the time of the conversation's first
request. A conversation is identified by the ``scope`` of its requests and by the messages up to the first
user message. A request without an earlier answer begins a new conversation.

A ``Dates`` belongs to one model and is thread-safe.
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
        """Returns the time that the template of ``request`` gets. Both ``now`` and the result are in seconds
        since 1970."""
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
