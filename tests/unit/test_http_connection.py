"""A connection of the bridge: the writes of one loop iteration are sent together, and the user is looked up
once."""

from __future__ import annotations

import asyncio

import pytest

from inferd.http import local_user
from inferd.http.joining import JoiningTransport


class Recorder(asyncio.Transport):
    """A transport that records each write."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[bytes] = []
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.pieces.append(bytes(data))

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


async def test_writes_of_one_loop_turn_are_one_chunk() -> None:
    inner = Recorder()
    joined = JoiningTransport(inner, asyncio.get_running_loop())
    joined.write(b"head")
    joined.write(b"first")
    await asyncio.sleep(0)
    joined.write(b"second")
    await asyncio.sleep(0)
    assert inner.pieces == [b"headfirst", b"second"]
    joined.write(b"last")
    joined.close()
    assert (inner.pieces[2:], inner.closed) == ([b"last"], True)
    await asyncio.sleep(0)
    assert len(inner.pieces) == 3


async def test_buffered_writes_are_dropped_with_the_connection() -> None:
    for abort in (True, False):
        inner = Recorder()
        joined = JoiningTransport(inner, asyncio.get_running_loop())
        joined.write(b"late")
        if abort:
            joined.abort()
        else:
            inner.closed = True  # by the client, before the turn ended
        await asyncio.sleep(0)
        assert inner.pieces == []


def test_the_user_of_a_connection_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([None, 7, 8])
    monkeypatch.setattr(local_user, "uid_of", lambda client, server: next(answers))
    places = ("127.0.0.1", 1), ("127.0.0.1", 2)
    unknown, known = local_user.Peer(), local_user.Peer()
    assert [unknown.uid(*places), unknown.uid(*places)] == [None, None]
    assert [known.uid(*places), known.uid(*places)] == [7, 7]
