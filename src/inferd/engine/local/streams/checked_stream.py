"""A stream that checks the finished answer against its schemas.

The token loop enforces the part of a schema that a grammar can express. This stream checks the whole schema,
in a thread of the pool, because a schema and a value may be large.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import Executor

import orjson
from msgspec.structs import replace

from inferd import log
from inferd.engine.backend import Stream
from inferd.engine.events import Done, Event, Text, ToolUse
from inferd.engine.local.schema.guides import Held
from inferd.errors import SchemaViolation, ToolCallMalformed

_log = log.get("llamacpp")


class CheckedStream(Stream):
    """The events of ``source``. If the answer breaks its schema, raises ``SchemaViolation`` instead of
    ``Done``. If a call breaks its tool's schema, raises ``ToolCallMalformed`` instead of the call.

    An answer that was cut short is not checked. ``held`` is the schema of the whole answer. ``tools`` maps
    the name of a tool to the schema of its arguments. ``unenforced`` is copied into ``Done``.
    """

    def __init__(
        self,
        source: Stream,
        held: Held | None,
        tools: Mapping[str, Held],
        unenforced: tuple[str, ...],
        pool: Executor,
    ) -> None:
        self._source = source
        self._held = held
        self._tools = tools
        self._unenforced = unenforced
        self._pool = pool
        self._texts: list[str] = []

    async def __anext__(self) -> Event:
        event = await anext(self._source)
        if isinstance(event, Text):
            self._texts.append(event.text)
        elif isinstance(event, ToolUse) and event.call.name in self._tools:
            fault = await self._fault(self._tools[event.call.name], event.call.arguments)
            if fault is not None:
                _log.warn("tool_call_malformed", fault=fault)
                raise ToolCallMalformed(
                    f"the arguments of a tool call break the tool's schema: {fault}; ask again"
                )
        elif isinstance(event, Done):
            if self._held is not None and event.stop_reason == "end":
                fault = await self._fault(self._held, self._answer(event))
                if fault is not None:
                    _log.warn("schema_violation", fault=fault)
                    raise SchemaViolation(f"the answer breaks its JSON Schema: {fault}; ask again")
            return replace(event, unenforced=self._unenforced)
        return event

    def _answer(self, done: Done) -> str:
        if done.content is None:
            return "".join(self._texts)
        return str(orjson.loads(b'"' + done.content + b'"'))

    async def _fault(self, held: Held, text: str) -> str | None:
        return await asyncio.get_running_loop().run_in_executor(self._pool, held.check.fault, text)

    def prompt_read(self) -> float | None:
        return self._source.prompt_read()

    def cancel(self) -> None:
        self._source.cancel()

    def close(self) -> None:
        self._source.close()
