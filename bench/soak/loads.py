"""The kinds of load. Each is one visit to the daemon, with regular or malformed requests, and checks the
answer.

A visit returns its outcome as one word. Every exception that it raises is a finding, such as a request
without its terminal frame, an error without cause, or an inconsistent answer. The only exception is
``queue_full``, which any visit may get.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from bench.soak.served import KEPT
from inferd import (
    AnswerCancelled,
    AsyncAdminClient,
    AsyncClient,
    Attachment,
    Done,
    RequestFailed,
    Text,
    ToolUse,
)

SILENCE_SECS = 600.0
"""Longer than any request may wait for its turn on a busy machine."""

TOPICS = ("rivers", "mountains", "the sea", "bread", "winter", "trains", "a small town", "music")
TOOL = {
    "name": "look_up",
    "description": "Looks a word up",
    "input_schema": {
        "type": "object",
        "properties": {"word": {"type": "string", "maxLength": 12}},
        "required": ["word"],
    },
}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
FAT = {"id": "x" * 1024, "max_tokens": 300, "grammar": "root ::= [a-z ]{400}"}
"""Of a request whose answer fills all buffers: the id stands in every frame."""


class Guest:
    """The daemon's addresses, and the name of the visitor."""

    def __init__(self, runtime: Path, chance: random.Random) -> None:
        self.runtime = runtime
        self.chance = chance
        self.client = AsyncClient(runtime / "infer.sock", timeout=SILENCE_SECS)

    def model(self) -> str | None:
        """The model to ask: the first one, or the one that no reload replaces."""
        return self.chance.choice((None, KEPT))

    def prompt(self, words: int = 12) -> str:
        topic = self.chance.choice(TOPICS)
        return f"Tell me about {topic}. " + " ".join(self.chance.choices(TOPICS, k=words))

    async def raw(self, leaf: str = "infer.sock") -> Raw:
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, str(self.runtime / leaf))
        return Raw(sock)


class Raw:
    """A plain connection, to do things that no client library does."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._received = b""

    async def send(self, data: bytes) -> None:
        await asyncio.wait_for(asyncio.get_running_loop().sock_sendall(self.sock, data), SILENCE_SECS)

    async def read(self, most: int = 65536) -> bytes:
        return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.sock, most), SILENCE_SECS)

    async def frame(self, most: int = 65536, pause: float = 0.0) -> dict[str, Any]:
        while b"\n" not in self._received:
            chunk = await self.read(most)
            if not chunk:
                raise AssertionError("the connection ended without a terminal frame")
            self._received += chunk
            await asyncio.sleep(pause)
        line, _, self._received = self._received.partition(b"\n")
        frame: dict[str, Any] = json.loads(line)
        return frame

    async def terminal(self, most: int = 65536, pause: float = 0.0) -> dict[str, Any]:
        while (frame := await self.frame(most, pause))["type"] in ("token", "frame"):
            pass
        return frame

    async def end(self) -> None:
        assert not self._received, "something followed the last frame"
        assert not await self.read(), "something followed the last frame"

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()


def v1(prompt: str, **more: Any) -> bytes:
    messages = [{"role": "user", "content": prompt}]
    return json.dumps({"id": "s", "messages": messages, "max_tokens": 8, **more}).encode() + b"\n"


# Answered requests.


async def short(guest: Guest) -> str:
    asked = guest.client.generate(guest.prompt(), model=guest.model(), max_tokens=8)
    return (await asked.result()).stop_reason


async def long(guest: Guest) -> str:
    said = ""
    tokens = guest.chance.randint(20, 80)
    asked = guest.client.generate(guest.prompt(150), model=guest.model(), max_tokens=tokens)
    async with asked as answer:
        async for event in answer:
            if isinstance(event, Done):
                assert event.content == said, "the answer is not the sum of its tokens"
                return event.stop_reason
            said += event.content
    raise AssertionError("an answer ended without its last event")


async def conversation(guest: Guest) -> str:
    session = f"s{guest.chance.randint(0, 3)}"
    chat = guest.client.chat("Be brief.", model=guest.model(), max_tokens=12, session=session)
    for _ in range(3):
        await chat.ask([Attachment("text", guest.prompt().encode()), "Go on."]).result()
    assert len(chat.turns) in (0, 2, 4, 6), "a turn is missing"
    return "done"


async def tool(guest: Guest) -> str:
    asked = guest.client.messages(
        guest.prompt(2), model=guest.model(), tools=[TOOL], tool_choice="required", max_tokens=60
    )
    async with asked as answer:
        events = [event async for event in answer]
    called = any(isinstance(event, ToolUse) for event in events)
    done = await answer.result()
    assert called or done.tool_choice_unsatisfied, "no tool was called and the answer does not say so"
    return done.stop_reason


async def schema(guest: Guest) -> str:
    asked = guest.client.generate("Invent a person.", model=guest.model(), json_schema=PERSON, max_tokens=60)
    done = await asked.result()
    if done.stop_reason == "end":
        assert json.loads(done.content).keys() == {"name", "age"}
    return done.stop_reason


async def pipelined(guest: Guest) -> str:
    """Sends three requests in one write and then no more: all are answered in order."""
    with await guest.raw() as raw:
        await raw.send(b"".join(v1(guest.prompt(2), id=str(i), max_tokens=3) for i in range(3)))
        raw.sock.shutdown(socket.SHUT_WR)
        for i in range(3):
            frame = await raw.terminal()
            assert frame["id"] == str(i), frame
            if frame["type"] == "error":
                _only_full(frame)
        await raw.end()
    return "done"


async def vectors(guest: Guest) -> str:
    texts = [guest.prompt() for _ in range(guest.chance.randint(1, 600))]
    assert len((await guest.client.embed(texts, dimensions=4)).embeddings) == len(texts)
    assert len((await guest.client.rerank("which?", texts)).results) == len(texts)
    return "done"


async def watcher(guest: Guest) -> str:
    async with AsyncAdminClient(guest.runtime / "admin.sock", SILENCE_SECS) as admin:
        for _ in range(guest.chance.randint(0, 3)):
            await admin.status()
    return "done"


# Refused requests.


async def burst(guest: Guest) -> str:
    asked = [guest.client.generate(guest.prompt(2), max_tokens=3).result() for _ in range(24)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException):
            _expect(answer, "queue_full")
    return "refused in part" if any(isinstance(each, BaseException) for each in answers) else "done"


async def hurried(guest: Guest) -> str:
    try:
        limit = guest.chance.randint(1, 400)
        answer = guest.client.generate(guest.prompt(60), model=guest.model(), deadline_ms=limit)
        return (await answer.result()).stop_reason
    except RequestFailed as error:
        return _expect(error, "deadline_exceeded")
    except AnswerCancelled:
        return "cancelled"


async def too_long(guest: Guest) -> str:
    try:
        await guest.client.generate(guest.prompt(20_000), max_tokens=4).result()
    except RequestFailed as error:
        return _expect(error, "invalid_request")
    raise AssertionError("a prompt beyond the context was taken")


async def invalid(guest: Guest) -> str:
    """Sends a request that cannot be served; the connection must then serve the next one."""
    with await guest.raw() as raw:
        await raw.send(b'{"id":"s","messages":[]}\n' + v1(guest.prompt(2), grammar="root ::= (") + v1("Hi"))
        for _ in range(2):
            frame = await raw.terminal()
            assert frame["code"] in ("invalid_request", "queue_full"), frame
        frame = await raw.terminal()
        assert frame["type"] == "done" or _only_full(frame)
    return "refused"


MALFORMED = (
    (b"garbage\n", "invalid_request"),
    (b"\n", "invalid_request"),
    (b'{"messages":"x"}\n', "invalid_request"),
    (b'{"messages":[{"role":"king","content":""}]}\n', "invalid_request"),
    (b'{"messages":[{"role":"user","content":"\xff"}]}\n', "invalid_request"),
    (v1("x")[:-1] + b"}\n", "invalid_request"),
    (b"[" * 60_000 + b"\n", "invalid_request"),
    (b"x" * 70_000, "frame_too_large"),
)


async def malformed(guest: Guest) -> str:
    """Sends bytes that are not a request; the daemon must answer with the reason and close the connection."""
    for line, code in MALFORMED:
        with await guest.raw(guest.chance.choice(("infer.sock", "infer.v2.sock"))) as raw:
            await raw.send(line)
            frame = await raw.frame()
            assert (frame["type"], frame["code"]) == ("error", code), f"{line[:40]!r}: {frame}"
            await raw.end()
    return "refused"


async def cut(guest: Guest) -> str:
    """Ends the stream in the middle of a line; the end must end the line, too."""
    with await guest.raw() as raw:
        await raw.send(v1(guest.prompt(2))[: guest.chance.randint(5, 40)])
        raw.sock.shutdown(socket.SHUT_WR)
        frame = await raw.frame()
        assert frame["code"] == "invalid_request", frame
        await raw.end()
    return "refused"


# Clients that disconnect, and slow clients.


async def leaver(guest: Guest) -> str:
    """Disconnects after some tokens, or while it waits for the first one."""
    tokens = guest.chance.choice((0, 0, 1, 2, 5))
    prompt = guest.prompt(guest.chance.choice((2, 150)))
    async with guest.client.generate(prompt, model=guest.model()) as answer:
        if not tokens:
            await asyncio.sleep(guest.chance.random() * 0.5)
        for _ in range(tokens):
            if isinstance(await anext(answer), Done):
                return "done"
    return "left"


async def hung_up(guest: Guest) -> str:
    """A client whose task is cancelled at any moment."""
    asked = guest.client.messages(guest.prompt(100), model=guest.model(), max_tokens=100)
    task = asyncio.create_task(asked.result())
    await asyncio.sleep(guest.chance.random())
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return "left"
    return "done"


async def reconnecter(guest: Guest) -> str:
    for _ in range(guest.chance.randint(1, 20)):
        with await guest.raw(guest.chance.choice(("infer.sock", "infer.v2.sock", "admin.sock"))) as raw:
            if guest.chance.random() < 0.5:
                await raw.send(v1("Hi")[: guest.chance.randint(1, 60)])
    return "left"


async def half_attached(guest: Guest) -> str:
    """Announces an attachment and disconnects in the middle of it."""
    attachment = {"kind": "text", "id": "a", "size": 5_000_000}
    block = {"type": "text", "attachment_id": "a"}
    request = {"messages": [{"role": "user", "content": [block]}], "attachments": [attachment]}
    with await guest.raw("infer.v2.sock") as raw:
        await raw.send(json.dumps(request).encode() + b"\n" + b"x" * guest.chance.randint(0, 2_000_000))
    return "left"


async def slow(guest: Guest) -> str:
    """Reads its answer in small pieces with pauses; the unread part must wait."""
    with await guest.raw() as raw:
        await raw.send(v1(guest.prompt(2), **FAT))
        frame = await raw.terminal(4096, 0.02)
    return str(frame["stop_reason"] if frame["type"] == "done" else _only_full(frame))


async def deaf(guest: Guest) -> str:
    """Reads nothing, and disconnects."""
    with await guest.raw() as raw:
        await raw.send(v1(guest.prompt(2), **FAT))
        await asyncio.sleep(guest.chance.random() * 3)
    return "left"


async def idle(guest: Guest) -> str:
    """Sends nothing for longer than the daemon allows."""
    with await guest.raw() as raw:
        await raw.end()
    return "dropped"


async def blocks(guest: Guest) -> str:
    said: list[str] = []
    asked = guest.client.messages(guest.prompt(), model=guest.model(), max_tokens=30, stop=["the"])
    async with asked as answer:
        async for event in answer:
            if isinstance(event, Text):
                said.append(event.text)
    done = await answer.result()
    texts = [block["text"] for block in done.content if block["type"] == "text"]
    assert "".join(texts) == "".join(said)
    return done.stop_reason


def _only_full(frame: dict[str, Any]) -> str:
    assert frame["code"] == "queue_full", (frame["code"], frame["message"])
    return "queue_full"


def _expect(error: BaseException, *codes: str) -> str:
    if not isinstance(error, RequestFailed) or error.wire_code not in codes:
        raise error
    return error.wire_code


Visit = Callable[[Guest], Awaitable[str]]

VISITS: tuple[Visit, ...] = (
    *(short, short, short, long, long, blocks, conversation, tool, schema, pipelined, vectors, watcher),
    *(burst, hurried, too_long, invalid, malformed, malformed, cut),
    *(leaver, leaver, hung_up, reconnecter, half_attached, slow, deaf, idle),
)
"""Each as often as its share of the load."""
