"""Client features above the wire: conversations, long texts, addresses, results and the state."""

from __future__ import annotations

import inspect
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

import inferd
from inferd import AsyncClient, Attachment, Client, Done, Text, Token, errors, tool_result
from inferd.client import protocol
from inferd.client.address import Addresses
from inferd.client.async_channel import AsyncReply
from inferd.client.asynchronous import AsyncChat
from inferd.client.blocking import Chat
from inferd.client.channel import Reply
from inferd.client.core import Core
from inferd.config import paths
from inferd.wire import v2, v2_rules
from tests.both_clients import Blocking
from tests.cases import cases
from tests.scripted_peer import AdminPeer, Peer, Script, after_attachments, frames

Start = Callable[[Script], Peer]
Clients = type[Blocking]

CALL = {"type": "tool_use", "tool_call_id": "t1", "name": "add", "input": {"a": 1}}
DONE: dict[str, object] = {
    "type": "done",
    "usage": {"input_tokens": 9, "output_tokens": 2, "cached_tokens": 3},
    "stop_reason": "max_tokens",
    "backend": "mock",
    "model": "m",
    "timings": {"ttft_ms": 1.5},
}


def says(text: str) -> dict[str, object]:
    return {"type": "frame", "block": {"type": "text", "delta": text}}


# Long texts.


def test_a_text_too_long_for_v1_is_sent_by_v2(peer: Start, clients: Clients) -> None:
    thought = {"type": "frame", "block": {"type": "thinking", "delta": "hm"}}
    server = peer(after_attachments(frames(thought, says("O"), says("K"), DONE)))
    long = "ü" * protocol.MAX_LINE_BYTES + "\n"
    turns = [{"role": "system", "content": ""}, {"role": "user", "content": long}]
    with clients.client("/none", v2=server.path) as client:
        assert list(client.generate(turns, max_tokens=2)) == [
            Token("O"),
            Token("K"),
            Done(
                content="OK",
                stop_reason="length",
                prompt_tokens=9,
                completion_tokens=2,
                cached_tokens=3,
                backend="mock",
                model="m",
                timings={"ttft_ms": 1.5},
            ),
        ]
        with pytest.raises(errors.DaemonUnreachable):
            client.generate("short")
    request = v2.parse(server.lines[0].removesuffix(b"\n"))
    v2_rules_without_bytes(request)
    assert server.lines[1].decode() == long
    assert request.max_tokens == 2


def v2_rules_without_bytes(request: v2.Request) -> None:
    for attachment in request.attachments or ():
        attachment.data = memoryview(b"")
    v2_rules.validate(request)


@cases("above, surface", [(0, "v1"), (1, "v2")])
def test_the_line_of_v1_is_used_up_to_its_end(
    above: int, surface: str, peer: Start, clients: Clients
) -> None:
    v1_done = {**DONE, "content": "", "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
    servers = {"v1": peer(frames(v1_done)), "v2": peer(after_attachments(frames(DONE)))}
    empty = orjson.dumps({"id": "c1", "messages": [{"role": "user", "content": ""}]})
    text = (
        "x" * (protocol.MAX_LINE_BYTES - len(empty) - 2 + above) + "\n"
    )  # which takes two bytes on the line
    with clients.client(servers["v1"].path, v2=servers["v2"].path) as client:
        client.generate(text).result()
    assert [name for name, server in servers.items() if server.lines] == [surface]


def test_the_requests_of_two_programs_or_clients_have_different_ids() -> None:
    ids = [Core("/s", {}).next_id() for _ in range(2)]
    assert len(set(ids)) == 2
    assert all(each.startswith(f"c{os.getpid()}-") for each in ids)
    assert [Core("/s", {}, "mine-").next_id() for _ in range(2)] == ["mine-1", "mine-1"]


# Conversations.


def conversation(server: Peer) -> list[list[tuple[str, Any]]]:
    lines = [orjson.loads(line) for line in server.lines if line.startswith(b"{")]
    return [[(turn["role"], turn["content"]) for turn in line["messages"]] for line in lines]


def text(content: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": content}]


def test_a_chat_sends_its_history(peer: Start, clients: Clients) -> None:
    server = peer(frames(says("one"), {"type": "frame", "block": CALL}, DONE))
    with clients.client(v2=server.path) as client:
        chat = client.chat("Be brief.", seed=7, tools=[])
        answer = chat.ask("a").result()
        assert answer.content == (*text("one"), CALL)
        chat.ask([tool_result("t1", "3"), "b"]).result()
        chat.clear()
        chat.ask("c").result()
        assert chat.turns == [
            {"role": "user", "content": "c"},
            {"role": "assistant", "content": [*text("one"), CALL]},
        ]
    system = ("system", text("Be brief."))
    answered = ("assistant", [*text("one"), CALL])
    result = {"type": "tool_result", "tool_call_id": "t1", "content": text("3")}
    assert conversation(server) == [
        [system, ("user", text("a"))],
        [system, ("user", text("a")), answered, ("user", [result, *text("b")])],
        [system, ("user", text("c"))],
    ]
    assert all(orjson.loads(line)["seed"] == 7 for line in server.lines)


def test_a_chat_keeps_a_partial_answer_and_drops_an_unanswered_question(
    peer: Start, clients: Clients
) -> None:
    failure = {"type": "error", "code": "backend_unavailable", "message": "no more"}
    replies = [frames(says("half"), failure), frames(failure), frames(says("ok"), DONE)]
    server = peer(lambda connection, line: replies.pop(0)(connection, line))
    with clients.client(v2=server.path) as client:
        chat = client.chat()
        for question in ("a", "b"):
            with pytest.raises(errors.RequestFailed, match="no more"):
                chat.ask(question).result()
        chat.ask("c").result()
    assert conversation(server)[2] == [("user", text("a")), ("assistant", text("half")), ("user", text("c"))]


def test_an_attachment_stays_in_the_conversation(peer: Start, clients: Clients) -> None:
    server = peer(after_attachments(frames(says("x"), DONE)))
    with clients.client(v2=server.path) as client:
        chat = client.chat()
        chat.ask([Attachment("image", b"picture\n", mime="image/png"), "What is it?"]).result()
        chat.ask("Sure?").result()
    assert server.lines[1] == server.lines[3] == b"picture\n"


# Results.


def test_a_result_is_read_to_the_end_and_stays(peer: Start, clients: Clients) -> None:
    server = peer(frames(says("a"), DONE))
    with clients.client(v2=server.path) as client, client.messages("Hi") as answer:
        assert next(answer) == Text("a")
        assert answer.result().content == ({"type": "text", "text": "a"},)
        assert answer.result().stop_reason == "max_tokens"


def test_a_closed_reply_has_no_result(peer: Start, clients: Clients) -> None:
    server = peer(frames(says("a"), DONE))
    with clients.client(v2=server.path) as client:
        answer = client.messages("Hi")
        answer.close()
        with pytest.raises(errors.ConnectionLost, match="closed before it was complete"):
            answer.result()


def test_a_closed_client_keeps_nothing_of_a_reply_that_ends_later(peer: Start, clients: Clients) -> None:
    server = peer(frames(says("a"), DONE))
    client = clients.client(v2=server.path)
    answer = client.messages("Hi")
    client.close()
    assert answer.result().backend == "mock"
    assert server.closed_by_client.wait(100)


# Addresses.


def test_other_surfaces_are_found_next_to_the_given_one(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_dir))

    def of(v1: str | None, surface: paths.Surface, given: str | None = None) -> str:
        addresses = Addresses({**dict.fromkeys(("v2", "embed", "rerank", "admin")), "v1": v1, "v2": given})
        return str(addresses.of(surface))

    assert of(None, "embed") == str(paths.socket_path("embed"))
    assert of("/elsewhere/infer.sock", "embed") == "/elsewhere/infer.embed.sock"
    assert of("/elsewhere/infer.sock", "admin") == "/elsewhere/admin.sock"
    assert of("/elsewhere/infer.sock", "v2", "tcp://127.0.0.1:1") == "tcp://127.0.0.1:1"
    for v1 in ("/elsewhere/mine.sock", "tcp://127.0.0.1:1"):
        assert of(v1, "v1") == v1
        assert of(v1, "v2") == v1  # in frames
        with pytest.raises(errors.UsageError, match="give the client embed=ADDRESS"):
            of(v1, "embed")


def test_a_surface_that_is_not_served_is_named(short_dir: Path, clients: Clients) -> None:
    with socket.socket(socket.AF_UNIX) as v1:
        v1.bind(str(short_dir / "infer.sock"))
        client = clients.client(short_dir / "infer.sock")
        with pytest.raises(errors.DaemonUnreachable, match="no daemon is running that serves embed"):
            client.embed("a")


# The state.

STATE: dict[str, Any] = {
    "status": "snapshot",
    "lifecycle": {"status": "ready"},
    "version": "1",
    "pid": 7,
    "uptime_secs": 1.5,
    "active_permits": 4,
    "queue_depth": 10,
    "running": [{"id": "a"}],
    "waiting": [],
    "backends": [{"name": "mock"}],
    "metrics": {},
}


def test_the_state_of_a_daemon(short_dir: Path, clients: Clients) -> None:
    capabilities = {"status": "capabilities", "backend": "mock"}
    server = AdminPeer(short_dir / "a", capabilities, {"status": "ready"}, STATE)
    with clients.client(admin=server.path) as client:
        state = client.status()
    server.stop()
    assert (state.pid, state.lifecycle, state.waiting) == (7, {"status": "ready"}, ())
    assert state.running == ({"id": "a"},)
    assert [frame["backend"] for frame in state.capabilities] == ["mock"]


def test_half_a_state_is_a_protocol_error(short_dir: Path, clients: Clients) -> None:
    server = AdminPeer(short_dir / "a", {"status": "ready"}, {"status": "snapshot", "pid": 7})
    with clients.client(admin=server.path) as client, pytest.raises(errors.ProtocolError, match="not whole"):
        client.status()
    server.stop()


# Names.


def test_every_public_name_exists() -> None:
    for name in inferd.__all__:
        assert getattr(inferd, name) is not None
    with pytest.raises(AttributeError, match="'nonsense'"):
        _ = inferd.nonsense  # type: ignore[attr-defined]


def test_importing_the_package_loads_nothing_of_it() -> None:
    code = "import inferd, sys; print([name for name in sys.modules if name.startswith('inferd.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_blocking_client_loads_no_event_loop() -> None:
    code = "import inferd, sys; inferd.Client, inferd.AdminClient; print('asyncio' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def methods(kind: type) -> dict[str, list[str]]:
    """The public methods of a class with the names of their arguments; ``aclose`` counts as ``close``."""
    return {
        "close" if name == "aclose" else name: list(inspect.signature(method).parameters)
        for name, method in inspect.getmembers(kind, callable)
        if not name.startswith("_") or name == "__init__"
    }


def test_both_clients_have_the_same_methods_with_the_same_arguments() -> None:
    for blocking, asynchronous in ((Client, AsyncClient), (Chat, AsyncChat), (Reply, AsyncReply)):
        assert methods(blocking) == methods(asynchronous)
