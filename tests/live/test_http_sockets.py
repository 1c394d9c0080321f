"""HTTP on raw sockets: malformed and unfinished requests, and their effect on other clients."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator

import pytest

from tests.http_bridge import BridgeProcess, web

BODY = json.dumps({"model": "mock", "messages": [{"role": "user", "content": "hi"}]}).encode()
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
WHOLE = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
IDLE = 1000


@pytest.fixture(scope="module")
def bridge() -> Iterator[BridgeProcess]:
    with BridgeProcess(mock={}, max_connections=IDLE + 100) as process:
        yield process


def connect(bridge: BridgeProcess) -> socket.socket:
    return socket.create_connection(("127.0.0.1", bridge.port), timeout=100)


def until(sock: socket.socket, end: bytes) -> bytes:
    """What is received up to ``end``, or up to the end of the stream."""
    received = b""
    while end not in received and (chunk := sock.recv(65536)):
        received += chunk
    return received


def test_expect_continue(bridge: BridgeProcess) -> None:
    with connect(bridge) as sock:
        sock.sendall(HEAD + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(BODY))
        assert until(sock, b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
        sock.sendall(BODY)
        assert b"mock-response" in until(sock, b"mock-response")


def test_a_chunked_body(bridge: BridgeProcess) -> None:
    with connect(bridge) as sock:
        sock.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        for at in range(0, len(BODY), 7):
            piece = BODY[at : at + 7]
            sock.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
        sock.sendall(b"0\r\n\r\n")
        assert b"mock-response" in until(sock, b"mock-response")


def test_pipelined_requests_are_answered_in_order(bridge: BridgeProcess) -> None:
    with connect(bridge) as sock:
        sock.sendall(WHOLE + b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        received = until(sock, b'"version"')
    assert received.index(b"mock-response") < received.index(b'"version"')


def test_a_stream_ends_with_the_zero_chunk(bridge: BridgeProcess) -> None:
    body = BODY[:-1] + b',"stream":true}'
    with connect(bridge) as sock:
        sock.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        received = until(sock, b"0\r\n\r\n")
    assert received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert b"cache-control: no-cache" in received


def test_a_body_of_65_mib_is_refused_before_it_is_sent(bridge: BridgeProcess) -> None:
    with connect(bridge) as sock:
        sock.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % (65 << 20))
        received = until(sock, b"request_too_large")
    assert received.startswith(b"HTTP/1.1 413 ")
    assert b"request_too_large" in received


def test_a_head_without_end_is_dropped(bridge: BridgeProcess) -> None:
    with connect(bridge) as sock, contextlib.suppress(ConnectionError):
        sock.sendall(b"GET / HTTP/1.1\r\n" + b"X-Long: " + b"x" * (80 << 10))
        assert until(sock, b"nothing") == b""


def test_head_is_answered_as_get_without_the_body(bridge: BridgeProcess) -> None:
    for path in ("/", "/health", "/api/hello", "/api/version", "/api/tags", "/v1/models"):
        head, whole = web.head(f"{bridge.base}{path}"), web.get(f"{bridge.base}{path}")
        assert head.status_code == whole.status_code == 200, path
        assert head.headers["content-length"] == str(len(whole.content))
        assert not head.content


def test_no_websocket(bridge: BridgeProcess) -> None:
    headers = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    assert web.get(f"{bridge.base}/v1/responses", headers=headers).status_code == 404


def test_non_http_bytes_get_400(bridge: BridgeProcess) -> None:
    with connect(bridge) as sock:
        sock.sendall(b"\x16\x03\x01\x00hello\r\n\r\n")
        assert until(sock, b"\r\n\r\n").startswith(b"HTTP/1.1 400 ")


def test_partial_and_cut_requests_leak_nothing(bridge: BridgeProcess) -> None:
    for data, shut in (
        (WHOLE[:-10], False),
        (WHOLE[:-10], True),
        (HEAD[:20], True),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab", False),
    ):
        with connect(bridge) as sock:
            sock.sendall(data)
            if shut:
                sock.shutdown(socket.SHUT_WR)
                until(sock, b"nothing")
    bridge.wait_idle()
    assert web.post(f"{bridge.base}/v1/chat/completions", content=BODY).status_code == 200


def test_a_thousand_idle_connections(bridge: BridgeProcess) -> None:
    with contextlib.ExitStack() as held:
        for _ in range(IDLE):
            sock = held.enter_context(connect(bridge))
            sock.sendall(b"GET /api/hello HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert until(sock, b"{}").startswith(b"HTTP/1.1 200 ")
        assert web.post(f"{bridge.base}/v1/chat/completions", content=BODY).status_code == 200


def test_a_long_conversation_arrives_whole(bridge: BridgeProcess) -> None:
    """More than the cap of a line, more texts than allowed attachments, and large tools and arguments."""
    turns = []
    for number in range(60):
        function = {"name": "f", "arguments": json.dumps({"a": "y" * 3000})}
        call = {"id": f"c{number}", "type": "function", "function": function}
        turns += [
            {"role": "user", "content": "x" * 20_000},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": f"c{number}", "content": "z" * 2000},
        ]
    tool = {"type": "function", "function": {"name": "f", "description": "d" * 100_000}}
    body = {"model": "mock", "messages": turns, "tools": [tool]}
    answer = web.post(f"{bridge.base}/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == "mock-response"
