"""The activity log's records of connections and requests; prompts and answers are never logged."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Callable
from typing import Any

from tests.daemon_process import DaemonProcess, Wire

Start = Callable[..., DaemonProcess]

PROMPT, ANSWER, SECRET_FIELD = "the-words-of-the-prompt", "the-words-of-the-answer", "the-words-of-a-field"


def ask(request_id: str = "q", **more: Any) -> dict[str, Any]:
    return {"id": request_id, "messages": [{"role": "user", "content": PROMPT}], **more}


def us() -> dict[str, object]:
    return {"peer": "unix", "peer_uid": os.getuid(), "peer_gid": os.getgid(), "peer_pid": os.getpid()}


def test_connections_and_requests_record_the_caller(daemon: Start) -> None:
    process = daemon(active_permits=1, queue_depth=0, mock={"gate": True, "tape": [ANSWER]}).wait_ready()
    with process.connect() as first, process.connect() as second:
        first.send(ask("done"))
        first.wait_until_read()
        second.send(ask("full"), ask("invalid", top_p=2))
        assert [second.frame()["code"] for _ in range(2)] == ["queue_full", "invalid_request"]
        process.release(2)
        assert len(list(first.frames())) == 2
    closed = process.wait_event("connection_closed", 2)
    accepted = process.wait_event("connection_accepted", 2)
    assert len({event["conn"] for event in accepted}) == 2
    requests = [process.wait_event(name)[0] for name in ("request_done", "queue_full", "request_error")]
    assert [event["req_id"] for event in requests] == ["done", "full", "invalid"]
    for event in (*accepted, *closed, *requests):
        assert {key: event.get(key) for key in us()} == us()
        assert event["component"] == "session"
    by_conn = {event["conn"] for event in accepted}
    assert {event["conn"] for event in requests} == by_conn


def test_a_request_record_has_all_fields(daemon: Start) -> None:
    process = daemon(mock={"tape": [ANSWER, ANSWER]}).wait_ready()
    with process.connect() as wire:
        wire.send(ask("a" * 500))
        assert len(list(wire.frames())) == 3
    (done,) = process.wait_event("request_done")
    assert done["req_id"] == "a" * 128
    assert (done["surface"], done["backend"], done["stop_reason"]) == ("v1", "mock", "end")
    assert (done["prompt_tokens"], done["completion_tokens"], done["cached_tokens"]) == (0, 2, 0)
    assert 0 <= done["queue_ms"] <= done["total_ms"]
    assert "ttft_ms" in done


def test_failed_requests_are_recorded_by_kind(daemon: Start) -> None:
    mock = {"gate": True, "tape": [ANSWER], "drop_after": 0}
    process = daemon(mock=mock, max_frame_bytes=1024).wait_ready()
    with process.connect() as wire:
        wire.send(b"no json\n")
        wire.finish_sending()
        wire.rest()
    with process.connect() as wire:
        wire.send(b"x" * 1025)
        wire.finish_sending()
        wire.rest()
    wire = process.connect()
    wire.send(ask("left"))
    wire.wait_until_read()
    wire.close()
    (cancelled,) = process.wait_event("request_cancelled")
    assert (cancelled["req_id"], cancelled["reason"]) == ("left", "hang-up")
    with process.connect() as wire:
        for _ in range(3):
            wire.send(ask("cut"))
            process.release()
            assert wire.frame()["code"] == "backend_unavailable"
    process.wait_event("breaker_opened")
    errors = process.wait_event("request_error")
    assert [(event["code"], event["stage"]) for event in errors] == [("invalid_request", "decode")]
    assert [event["cap"] for event in process.wait_event("request_oversized")] == [1024]
    cut = process.wait_event("request_error_mid_stream", 3)
    assert [event["message"] for event in cut] == ["backend ended stream without terminal frame"] * 3
    assert all("total_ms" in event for event in cut)


def test_a_slow_reader_is_recorded_as_such(daemon: Start) -> None:
    process = daemon(mock={"tape": ["x" * 50_000], "repeat": 100}, write_timeout_secs=0.1).wait_ready()
    with process.connect() as slow:
        slow.send(ask("slow"))
        (cancelled,) = process.wait_event("request_cancelled")
    assert (cancelled["req_id"], cancelled["reason"]) == ("slow", "write timeout")


def test_prompts_and_answers_are_never_logged(daemon: Start) -> None:
    process = daemon(mock={"tape": [ANSWER]}, log="trace", max_frame_bytes=4096).wait_ready()
    lines = [
        ask(stop=[SECRET_FIELD], grammar=SECRET_FIELD, session=SECRET_FIELD),
        ask(stream=False),
        ask(temperature=-1, session=SECRET_FIELD),
        ask(grammar=SECRET_FIELD, json_schema={"x": SECRET_FIELD}),
        ask(priority=SECRET_FIELD),
        {"id": "q", "messages": [{"role": SECRET_FIELD, "content": PROMPT}]},
        {"id": "q", "messages": PROMPT},
        ask(top_k=PROMPT),
        f"{PROMPT} is no JSON\n".encode(),
        b'{"id":"q","messages":[],"%b":1,"x":"%b' % (PROMPT.encode(), PROMPT.encode()),
        ask(x=PROMPT * 300),
        b'{"id":"a","id":"%b","messages":[]}\n' % PROMPT.encode(),
    ]
    for line in lines:
        with process.connect() as wire:
            wire.send(line)
            wire.finish_sending()
            assert wire.rest()
    process.wait_event("connection_closed", len(lines))
    said = process.log_file.read_text() + process.stderr
    for words in (PROMPT, ANSWER, SECRET_FIELD):
        assert words not in said


def test_a_tcp_peer_is_recorded_by_its_address(daemon: Start) -> None:
    process = daemon(tcp="127.0.0.1:0").wait_ready()
    (ready,) = process.wait_event("ready")
    with Wire(("127.0.0.1", int(ready["address"].rpartition(":")[2]))) as wire:
        wire.send(ask())
        assert len(list(wire.frames())) == 2
    (done,) = process.wait_event("request_done")
    assert done["peer"] == "tcp:127.0.0.1"
    assert any("tcp without an API key" in event["msg"] for event in process.events())


def test_over_the_limit_of_connections(daemon: Start) -> None:
    process = daemon(max_connections=1).wait_ready()
    with process.connect() as first:
        first.send(ask())
        assert len(list(first.frames())) == 2
        with process.connect() as second:
            assert second.rest() == b""
        process.wait_event("too_many_connections")
        first.send(ask())
        assert len(list(first.frames())) == 2


def test_out_of_descriptors_the_daemon_lives(daemon: Start) -> None:
    process = daemon().wait_ready()
    process.wait_event("ready")  # the log has its descriptor
    before = resource.prlimit(process.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(process.process.pid, resource.RLIMIT_NOFILE, (24, before[1]))
    crowd = []
    for _ in range(40):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(process.uds))
        crowd.append(sock)
    process.wait_event("accept_failed")
    crowd[0].sendall(b'{"id":"q","messages":[{"role":"user","content":"x"}]}\n')
    assert crowd[0].recv(65536).startswith(b'{"type":"token"')
    for sock in crowd:
        sock.close()
    with process.connect() as wire:
        wire.send(ask())
        assert len(list(wire.frames())) == 2
