"""Converts the conversations of every API to one canonical form.

The same history must always give the same prompt, or else the daemon's prefix cache misses. No content is
lost:

* system texts at the start are joined by blank lines to one system message;
* a later system message becomes text of the user, because many chat templates refuse a second system message
  or keep only one; the first such text is put before the user's own text;
* consecutive messages of one role are merged, a string is treated as a list of one text block, and ``null``
  as an empty list;
* the arguments of a tool call keep their bytes; if two calls have the same id, the second gets another id.
"""

from __future__ import annotations

from typing import Any

import orjson

from inferd.client.messages import Attachment
from inferd.http.failures import BadField

BILLING_LINE = "x-anthropic-billing-header:"
"""Prefix of the line that Claude Code puts before its system prompt; the line changes with each session."""

Block = dict[str, Any] | Attachment


def text_block(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


class Turns:
    """Collects the messages of a conversation in order."""

    def __init__(self) -> None:
        self._system: list[str] = []
        self._turns: list[dict[str, Any]] = []
        self._late_system = False
        self._ids: dict[str, str] = {}
        self._used: set[str] = set()
        self._calls: list[tuple[str, str]] = []
        self.ignored: set[str] = set()
        """The types of the blocks that were left out."""

    def system(self, text: str) -> None:
        """Adds a system text. A system text that comes after the first turn is added as text of the user."""
        if text.startswith(BILLING_LINE):
            text = text.partition("\n")[2].lstrip("\n")
        if not text:
            return
        if not self._turns:
            self._system.append(text)
        elif not self._late_system and self._turns[-1]["role"] == "user":
            content = self._turns[-1]["content"]
            # Results of tools must directly follow their calls.
            place = next((n for n, block in enumerate(content) if not _is_result(block)), len(content))
            content.insert(place, text_block(text))
            self._late_system = True
        else:
            self._late_system = True
            self.user([text_block(text)])

    def user(self, blocks: list[Block]) -> None:
        self._add("user", blocks)

    def assistant(self, blocks: list[Block]) -> None:
        self._add("assistant", blocks)

    def call(self, call_id: str, name: str, arguments: str, where: str) -> None:
        """Adds a tool call. ``arguments`` is the JSON text of an object, and ``where`` its path in
        the body."""
        try:
            if not isinstance(orjson.loads(arguments or "{}"), dict):
                raise ValueError
        except ValueError:
            raise BadField(where, f"{where} must be the JSON text of an object") from None
        own = call_id or f"call_{len(self._used) + 1}"
        while own in self._used:
            own = f"{own}-{len(self._used) + 1}"
        self._used.add(own)
        self._ids[call_id] = own
        self._calls.append((own, name))
        block = {
            "type": "tool_use",
            "tool_call_id": own,
            "name": name,
            "input": orjson.Fragment(arguments or "{}"),
        }
        self._add("assistant", [block])

    def result(self, call_id: str | None, name: str | None, blocks: list[Block], where: str) -> None:
        """Adds the result of a tool call. Without ``call_id``, the result belongs to the first call that has
        no result yet. If ``name`` is given, only calls of the tool ``name`` are considered."""
        if call_id:
            own = self._ids.get(call_id)
        else:
            own = next((own for own, of in self._calls if name is None or of == name), None)
        if own is None:
            raise BadField(where, f"{where} answers no tool call of the messages before it")
        self._calls = [call for call in self._calls if call[0] != own]
        self._add("user", [{"type": "tool_result", "tool_call_id": own, "content": blocks}])

    def finish(self) -> list[dict[str, Any]]:
        """Returns the turns in the form of v2."""
        for turn in self._turns:
            turn["content"] = turn["content"] or [text_block("")]
        if not self._system:
            return self._turns
        system = {"role": "system", "content": [text_block("\n\n".join(self._system))]}
        return [system, *(self._turns or [{"role": "user", "content": [text_block("")]}])]

    def _add(self, role: str, blocks: list[Block]) -> None:
        kept = [block for block in blocks if isinstance(block, Attachment) or not _is_empty(block)]
        if self._turns and self._turns[-1]["role"] == role:
            self._turns[-1]["content"] += kept
        else:
            self._turns.append({"role": role, "content": kept})


def _is_empty(block: dict[str, Any]) -> bool:
    return block["type"] in ("text", "thinking") and not block["text"]


def _is_result(block: Block) -> bool:
    return not isinstance(block, Attachment) and block["type"] == "tool_result"
