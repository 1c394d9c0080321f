"""The blocking and the asyncio clients, against a scripted peer on a real socket.

(This file has over 400 lines, because both clients run every case, and share the scripts, the clock and the
fixtures.)
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from inferd import errors
from inferd.client import Done, Token, core, protocol
from inferd.config import paths
from tests.both_clients import Blocking
from tests.cases import cases
from tests.scripted_peer import AdminPeer, Peer, Script, frames

Clients = type[Blocking]

DONE = {
    "type": "done",
    "content": "Hello",
    "usage": {"prompt_tokens": 9, "completion_tokens": 2},
    "stop_reason": "end",
    "backend": "mock",
}


def token(text: str) -> dict[str, object]:
    return {"type": "token", "content": text}


def test_tokens_then_done(peer: Callable[[Script], Peer], clients: Clients) -> None:
    server = peer(frames(token("Hel"), token("lo"), DONE))
    with clients.client(server.path) as client, client.generate("Hi", seed=7, stop=["x"]) as answer:
        events = list(answer)
    assert events == [
        Token("Hel"),
        Token("lo"),
        Done(content="Hello", stop_reason="end", prompt_tokens=9, completion_tokens=2, backend="mock"),
    ]
    sent = orjson.loads(server.lines[0])
    assert sent == {"id": "c1", "messages": [{"role": "user", "content": "Hi"}], "seed": 7, "stop": ["x"]}


def test_load_phases_are_reported_but_are_not_events(
    peer: Callable[[Script], Peer], clients: Clients
) -> None:
    phases: list[object] = []
    load = {"type": "progress", "model": "m", "phase": "mmap", "progress": 0.5}
    server = peer(frames(load, token("Hel"), DONE))
    with (
        clients.client(server.path) as client,
        client.generate(
            "Hi", model="m", on_progress=lambda phase, details: phases.append((phase, details["progress"]))
        ) as answer,
    ):
        assert [type(event) for event in answer] == [Token, Done]
    assert phases == [("mmap", 0.5)]
    assert orjson.loads(server.lines[0])["progress"] is True


def test_the_next_generation_reuses_the_connection(peer: Callable[[Script], Peer], clients: Clients) -> None:
    server = peer(frames(DONE))
    with clients.client(server.path) as client:
        for _ in range(3):
            assert len(list(client.generate("Hi"))) == 1
    assert server.accepted == 1
    assert [orjson.loads(line)["id"] for line in server.lines] == ["c1", "c2", "c3"]


def test_concurrent_generations_have_a_connection_each(
    peer: Callable[[Script], Peer], clients: Clients
) -> None:
    server = peer(frames(token("a"), DONE))
    with clients.client(server.path) as client:
        first, second = client.generate("1"), client.generate("2")
        assert len(list(second)) == len(list(first)) == 2
    assert server.accepted == 2


def test_closing_a_generation_closes_its_connection(peer: Callable[[Script], Peer], clients: Clients) -> None:
    server = peer(frames(token("a")))
    with clients.client(server.path) as client:
        with client.generate("Hi") as answer:
            assert next(answer) == Token("a")
        assert server.closed_by_client.wait(100)
        assert list(answer) == []


def test_an_answer_ended_by_the_daemon_raises(peer: Callable[[Script], Peer], clients: Clients) -> None:
    cancelled = {**DONE, "content": "a", "stop_reason": "cancelled"}
    server = peer(frames(token("a"), cancelled))
    with clients.client(server.path) as client:
        with pytest.raises(errors.AnswerCancelled, match="its deadline passed") as caught:
            client.generate("Hi", deadline_ms=1).result()
        assert caught.value.done.content == "a"  # type: ignore[attr-defined]
        assert caught.value.retryable
        assert len(list(client.generate("Hi"))) == 2  # events are told as they are


def test_an_abandoned_generation_is_cancelled(peer: Callable[[Script], Peer], clients: Clients) -> None:
    server = peer(frames(token("a")))
    with clients.client(server.path) as client:
        for _ in client.generate("Hi"):
            break
        assert server.closed_by_client.wait(100)


def test_a_connection_that_the_daemon_closed_meanwhile_is_not_used(
    peer: Callable[[Script], Peer], clients: Clients
) -> None:
    def once(connection: socket.socket, line: bytes) -> None:
        frames(DONE)(connection, line)
        connection.shutdown(socket.SHUT_RDWR)

    server = peer(once)
    with clients.client(server.path) as client:
        for _ in range(2):
            assert len(list(client.generate("Hi"))) == 1
            assert server.closed_by_client.wait(100)
            server.closed_by_client.clear()
    assert server.accepted == 2


@cases(
    "code, exit_code, retryable",
    [
        ("queue_full", 4, True),
        ("backend_unavailable", 4, True),
        ("deadline_exceeded", 4, True),
        ("invalid_request", 5, False),
        ("frame_too_large", 5, False),
        ("internal", 4, False),
        ("embed_unsupported", 4, False),
        ("attachment_unsupported", 4, False),
        ("tool_call_malformed", 4, True),
        ("of a later version", 4, False),
    ],
)
def test_an_error_frame_is_a_typed_error(
    code: str, exit_code: int, retryable: bool, peer: Callable[[Script], Peer], clients: Clients
) -> None:
    server = peer(frames({"type": "error", "code": code, "message": "why"}))
    with clients.client(server.path) as client, pytest.raises(errors.RequestFailed, match="why") as caught:
        next(client.generate("Hi"))
    assert caught.value.wire_code == code
    assert (caught.value.exit_code, caught.value.retryable) == (exit_code, retryable)


def test_an_error_frame_of_an_unreadable_request_has_no_id(
    peer: Callable[[Script], Peer], clients: Clients
) -> None:
    server = peer(frames({"id": "", "type": "error", "code": "frame_too_large", "message": "cap"}))
    with clients.client(server.path) as client, pytest.raises(errors.RequestFailed, match="cap"):
        next(client.generate("Hi"))


@cases("said, lines", [(b"", 3), (b'{"id":"c2","type":"tok', 2)])
def test_a_request_on_a_stale_connection_is_sent_again(
    said: bytes, lines: int, peer: Callable[[Script], Peer], clients: Clients
) -> None:
    """The daemon closed the connection before the request arrived. A started request is never sent twice."""

    def close_at_the_second(connection: socket.socket, line: bytes) -> None:
        if len(server.lines) == 2:
            connection.sendall(said)
            connection.shutdown(socket.SHUT_RDWR)
        else:
            frames(DONE)(connection, line)

    server = peer(close_at_the_second)
    with clients.client(server.path) as client:
        assert client.generate("first").result().stop_reason == "end"
        again = client.generate("second")
        if said:
            with pytest.raises(errors.ConnectionLost):
                again.result()
        else:
            assert again.result().stop_reason == "end"
    assert len(server.lines) == lines
    assert server.accepted == lines - 1


@cases("sent", [b"", b'{"id":"c1","type":"tok', b'{"id":"c1","type":"token","content":"a"}\n'])
def test_an_end_before_the_terminal_frame_is_a_lost_connection(
    sent: bytes, peer: Callable[[Script], Peer], clients: Clients
) -> None:
    def cut(connection: socket.socket, line: bytes) -> None:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_RDWR)

    server = peer(cut)
    with clients.client(server.path) as client, pytest.raises(errors.ConnectionLost):
        list(client.generate("Hi"))


@cases(
    "sent",
    [
        b"garbage\n",
        b"[]\n",
        b'{"type":"token"}\n',
        b'{"id":"c1","type":"other"}\n',
        b'{"id":"c9","type":"token","content":"a"}\n',
        b'{"id":"c1","type":"done","content":"","stop_reason":"end"}\n',
    ],
)
def test_a_malformed_response_is_a_protocol_error(
    sent: bytes, peer: Callable[[Script], Peer], clients: Clients
) -> None:
    server = peer(lambda connection, line: connection.sendall(sent))
    with clients.client(server.path) as client:
        answer = client.generate("Hi")
        with pytest.raises(errors.ProtocolError):
            next(answer)
        assert server.closed_by_client.wait(100)
        assert list(answer) == []


def test_a_response_is_read_to_its_limit_and_no_further(
    peer: Callable[[Script], Peer], monkeypatch: pytest.MonkeyPatch, clients: Clients
) -> None:
    monkeypatch.setattr(protocol, "MAX_RESPONSE_BYTES", 1000)
    frame = orjson.dumps({"id": "c1", **DONE, "content": ""})

    def padded(content: int) -> Script:
        body = frame.replace(b'"content":""', b'"content":"' + b"x" * content + b'"') + b"\n"
        return lambda connection, line: connection.sendall(body)

    fits = 1000 - len(frame)
    with clients.client(peer(padded(fits)).path) as client:
        assert next(client.generate("Hi")).content == "x" * fits
    with clients.client(peer(padded(fits + 1)).path) as client, pytest.raises(errors.ProtocolError):
        next(client.generate("Hi"))


def test_a_silent_daemon_times_out(peer: Callable[[Script], Peer], clients: Clients) -> None:
    server = peer(lambda connection, line: None)
    with (
        clients.client(server.path, timeout=0.05) as client,
        pytest.raises(errors.ConnectionLost, match="in time"),
    ):
        next(client.generate("Hi"))


def test_values_that_json_cannot_hold_are_usage_errors(
    peer: Callable[[Script], Peer], clients: Clients
) -> None:
    server = peer(frames(DONE))
    with clients.client(server.path) as client:
        with pytest.raises(errors.UsageError, match="surrogates"):
            client.generate("\udcff")
        with pytest.raises(TypeError, match="no option 'temprature'"):
            client.generate("Hi", temprature=1)  # type: ignore[call-arg]
    assert server.lines == []


def test_the_error_frame_of_a_daemon_that_stopped_reading_is_read(
    peer: Callable[[Script], Peer], clients: Clients
) -> None:
    """A request over the cap is refused while it is still being sent."""
    refusal = b'{"type":"error","id":"","code":"frame_too_large","message":"cap"}\n'
    listener = peer(lambda connection, line: None)._listener

    path = Path(listener.getsockname()).with_name("deaf")
    deaf = socket.socket(socket.AF_UNIX)
    deaf.bind(str(path))
    deaf.listen()

    def refuse() -> None:
        connection, _ = deaf.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(refusal)

    thread = threading.Thread(target=refuse)
    thread.start()
    with clients.client(path, v2=path) as client, pytest.raises(errors.RequestFailed, match="cap"):
        next(client.generate("x" * 10_000_000))
    thread.join()
    deaf.close()


# TCP.


def test_the_key_is_sent_first_on_tcp_only(peer: Callable[[Script], Peer], clients: Clients) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        seen: list[bytes] = []

        def serve() -> None:
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as reader:
                seen.extend([reader.readline(), reader.readline()])
                frames(DONE)(connection, seen[1])

        thread = threading.Thread(target=serve)
        thread.start()
        with clients.client(f"tcp://127.0.0.1:{listener.getsockname()[1]}", api_key="k") as client:
            assert len(list(client.generate("Hi"))) == 1
        thread.join()
    assert orjson.loads(seen[0]) == {"type": "auth", "key": "k"}
    server = peer(frames(DONE))
    with clients.client(server.path, api_key="k") as client:
        assert len(list(client.generate("Hi"))) == 1
    assert b"auth" not in b"".join(server.lines)


@cases("api_key", ["wrong", None])
def test_a_refused_key_is_explained(clients: Clients, api_key: str | None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as reader:
                for _ in ("key", "request") if api_key else ("request",):
                    reader.readline()

        thread = threading.Thread(target=serve)
        thread.start()
        client = clients.client(f"tcp://127.0.0.1:{listener.getsockname()[1]}", api_key=api_key)
        with pytest.raises(errors.KeyRefused, match="check the API key") as caught:
            list(client.generate("Hi"))
        assert not caught.value.retryable
        thread.join()


@cases("address", ["tcp://", "tcp://127.0.0.1", "tcp://127.0.0.1:x", "http://127.0.0.1:1", "unix:///s"])
def test_a_malformed_address_is_a_usage_error(address: str, clients: Clients) -> None:
    with pytest.raises(errors.UsageError):
        clients.client(address).connect()


# Dialling.


def test_no_daemon(short_dir: Path, clients: Clients) -> None:
    with pytest.raises(errors.DaemonUnreachable, match="no daemon is running") as caught:
        clients.client(short_dir / "none").connect()
    assert (caught.value.exit_code, caught.value.retryable) == (3, True)
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(short_dir / "stale"))
    stale.close()
    with pytest.raises(errors.DaemonUnreachable, match="no daemon answers"):
        clients.client(short_dir / "stale").connect()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(errors.DaemonUnreachable, match="no daemon answers"):
        clients.client(f"tcp://127.0.0.1:{port}").connect()


def test_a_daemon_that_does_not_serve_a_surface_will_not_serve_it_later(
    short_dir: Path, clients: Clients
) -> None:
    with socket.socket(socket.AF_UNIX) as v1:
        v1.bind(str(short_dir / "infer.sock"))
        v1.listen()
        with pytest.raises(errors.SurfaceNotServed, match="serves embed") as caught:
            clients.client(short_dir / "infer.sock").embed("text")
    assert not caught.value.retryable


def test_connecting_has_its_own_time_out(short_dir: Path, clients: Clients) -> None:
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as ahead:
        busy.bind(str(short_dir / "busy"))
        busy.listen(0)
        ahead.connect(str(short_dir / "busy"))
        with pytest.raises(errors.DaemonUnreachable, match="no daemon answers"):
            clients.client(short_dir / "busy").connect(timeout=0.05)
        with pytest.raises(errors.DaemonUnreachable, match="no daemon answers"):
            clients.dial(short_dir / "busy", limit_secs=0.05, sleep=time.sleep)


def test_a_name_with_several_addresses_is_tried_at_each(
    monkeypatch: pytest.MonkeyPatch, clients: Clients
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        closed = gone.getsockname()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", at) for at in (closed, listener.getsockname())]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: found)
        with clients.client("tcp://two-addresses:1") as client:
            client.connect(timeout=10)
        listener.accept()[0].close()


class Clock:
    """A clock that only advances by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


def test_dialling_backs_off_and_never_overshoots_its_limit(short_dir: Path, clients: Clients) -> None:
    clock = Clock()
    with pytest.raises(errors.DaemonUnreachable):
        clients.dial(short_dir / "none", limit_secs=20, clock=clock, sleep=clock.sleep)
    assert clock.pauses[:7] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0])
    assert max(clock.pauses) == core.LONGEST_PAUSE_SECS
    assert clock.now == pytest.approx(20)


def test_dialling_ends_as_soon_as_the_daemon_listens(
    short_dir: Path, peer: Callable[[Script], Peer], clients: Clients
) -> None:
    clock = Clock()

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        if len(clock.pauses) == 3:
            peer(frames(DONE))

    with clients.dial(short_dir / "s0", limit_secs=60, clock=clock, sleep=sleep) as client:
        assert len(list(client.generate("Hi"))) == 1
    assert len(clock.pauses) == 3


def test_the_default_addresses_are_those_of_the_daemon(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch, clients: Clients
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_dir))
    assert clients.client().address == paths.socket_path("v1")
    with pytest.raises(errors.DaemonUnreachable, match=r"admin\.sock"):
        clients.admin()


# The admin socket.


CAPABILITIES: dict[str, object] = {"status": "capabilities", "backend": "mock", "v2": False}


def test_a_snapshot_is_the_capabilities_and_the_lifecycle(short_dir: Path, clients: Clients) -> None:
    server = AdminPeer(short_dir / "a", CAPABILITIES, {"status": "ready"}, {"status": "draining"})
    with clients.admin(server.path) as admin:
        state = admin.snapshot()
    server.stop()
    assert [frame["backend"] for frame in state.capabilities] == ["mock"]
    assert state.lifecycle["status"] == "ready"


def test_waiting_shows_every_frame_up_to_ready(short_dir: Path, clients: Clients) -> None:
    loading = {"status": "loading_model", "phase": "kv_cache", "n_ctx": 8}
    server = AdminPeer(short_dir / "a", {"status": "starting"}, loading, CAPABILITIES, {"status": "ready"})
    seen: list[str] = []
    with clients.admin(server.path) as admin:
        admin.wait_ready(lambda frame: seen.append(frame["status"]))
    server.stop()
    assert seen == ["starting", "loading_model", "capabilities", "ready"]


def test_a_failed_boot_raises_the_daemons_message(short_dir: Path, clients: Clients) -> None:
    server = AdminPeer(short_dir / "a", {"status": "failed", "message": "no such model"}, hang_up=True)
    with clients.admin(server.path) as admin, pytest.raises(errors.BootFailed, match="no such model"):
        admin.wait_ready()
    server.stop()


def test_a_daemon_that_ends_is_a_lost_connection(short_dir: Path, clients: Clients) -> None:
    server = AdminPeer(short_dir / "a", {"status": "starting"}, hang_up=True)
    with clients.admin(server.path) as admin, pytest.raises(errors.ConnectionLost):
        admin.wait_ready()
    server.stop()
