"""Keeps the turns of a conversation, and makes the request for the next answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inferd.client.messages import Content, MessagesRequest


class Conversation:
    """The turns of a conversation. A question becomes a turn as soon as any part of the answer has arrived.

    If no part of the answer arrives, the question is dropped, so that the caller can ask the question again.
    """

    def __init__(
        self,
        system: str | None,
        options: Mapping[str, Any],
        kind: type[MessagesRequest] = MessagesRequest,
    ) -> None:
        self._kind = kind
        self.system = system
        self._options = options
        self._settled: list[dict[str, Any]] = []
        self._question: dict[str, Any] = {}
        self._answer: MessagesRequest | None = None

    @property
    def turns(self) -> list[dict[str, Any]]:
        """The turns so far without the system message, each as ``{"role", "content"}``."""
        if self._answer is None or not self._answer.blocks:
            return list(self._settled)
        return [*self._settled, self._question, {"role": "assistant", "content": list(self._answer.blocks)}]

    def ask(self, request_id: str, content: Content) -> MessagesRequest:
        """Returns the request for an answer to ``content``."""
        self._settled = self.turns
        self._question = {"role": "user", "content": content}
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        self._answer = self._kind(request_id, [*system, *self._settled, self._question], self._options)
        return self._answer

    def clear(self) -> None:
        """Forgets all turns. The system message stays."""
        self._settled, self._answer = [], None
