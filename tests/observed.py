"""Helpers for tests of metrics: a snapshot of a server, and a mock that measures itself."""

from __future__ import annotations

from typing import Any

from inferd.engine.backend import Stream
from inferd.engine.events import Done, Timings, Usage
from inferd.engine.mock import Mock, MockStream
from inferd.engine.requests import GenerateRequest
from inferd.serve.observe.snapshot import Snapshot
from inferd.wire import admin
from tests.in_process import Server


def snapshot_of(server: Server) -> Snapshot:
    service = server.service
    return Snapshot(service.admission, service.router, service.metrics)


def seen(server: Server) -> dict[str, Any]:
    """A snapshot, as it comes out of the wire."""
    frame = admin.snapshot(admin.READY, snapshot_of(server).snapshot())
    return admin.parse(frame.removesuffix(b"\n"))


class Measuring(Mock):
    """A mock that measures itself: 30 tokens of prompt, 10 of them cached, in 10 ms."""

    async def generate(self, request: GenerateRequest) -> Stream:
        stream = _MeasuringStream(self, request)
        self.open_streams.add(stream)
        return stream


class _MeasuringStream(MockStream):
    async def __anext__(self) -> Any:
        event = await super().__anext__()
        if isinstance(event, Done):
            return Done("end", Usage(30, event.usage.completion_tokens, 10), Timings(10.0, 40.0, 12.0, 75.0))
        return event
