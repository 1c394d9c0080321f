"""The bridge on real sockets: access, refusals, and abandoned requests."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from inferd import __version__
from tests.daemon_process import Wire, until
from tests.http_bridge import BridgeProcess, web
from tests.lazy import Lazy

openai = Lazy("openai")

CHAT = {"model": "mock", "messages": [{"role": "user", "content": "hi"}]}
KEY = "sk-inferd-0123456789abcdef"


@pytest.fixture
def bridge() -> Iterator[Callable[..., BridgeProcess]]:
    started: list[BridgeProcess] = []

    def start(mock: dict[str, object] | None = None, **options: object) -> BridgeProcess:
        started.append(BridgeProcess(mock={} if mock is None else mock, **options))
        return started[-1].wait_ready()

    yield start
    for process in started:
        process.end()


@pytest.fixture(scope="module")
def shared() -> Iterator[BridgeProcess]:
    """The shared bridge, for tests that do not change it."""
    with BridgeProcess(mock={}, http_hosts="box.example", http_origins="https://app.example") as process:
        yield process


def test_invalid_requests(shared: BridgeProcess) -> None:
    with httpx.Client(base_url=shared.base, verify=False) as client:
        for path, body, status, code, param in (
            ("/v1/chat/completions", {"messages": []}, 400, None, "model"),
            ("/v1/chat/completions", {**CHAT, "messages": []}, 400, None, "messages"),
            ("/v1/chat/completions", {**CHAT, "temperature": "hot"}, 400, None, "temperature"),
            ("/chat/completions", {**CHAT, "n": 3}, 400, "unsupported_value", "n"),
            ("/v1/chat/completions", {**CHAT, "model": "gpt-9"}, 404, "model_not_found", "model"),
            ("/v1/embeddings", {"model": "mock", "input": [[1, 2]]}, 400, "unsupported_value", "input"),
            ("/v1/nothing", {}, 404, "not_found", None),
            ("/v1/models", {}, 405, "method_not_allowed", None),
        ):
            answer = client.post(path, json=body)
            error = answer.json()["error"]
            assert (answer.status_code, error["code"], error["param"]) == (status, code, param), path
            assert error["message"]
            assert answer.headers["x-should-retry"] == "false"
            assert answer.headers["x-request-id"] == answer.headers["request-id"]
        assert client.post("/v1/chat/completions", content=b"{").status_code == 400
        null = dict.fromkeys(("temperature", "tools", "stop", "stream", "n", "response_format"))
        assert client.post("/v1/chat/completions?beta=true", json={**CHAT, **null}).status_code == 200
        assert client.head("/v1/models").content == b""


def test_a_full_queue_is_429_with_a_time(bridge: Callable[..., BridgeProcess]) -> None:
    process = bridge({"gate": True}, active_permits=1, queue_depth=0)
    with (
        ThreadPoolExecutor(1) as pool,
        httpx.Client(base_url=process.base, timeout=100, verify=False) as client,
    ):
        running = pool.submit(web.post, f"{process.base}/v1/chat/completions", json=CHAT)
        process.wait_running(1)
        answer = client.post("/v1/chat/completions", json=CHAT)
        assert answer.status_code == 429
        assert answer.json()["error"]["code"] == "queue_full"
        assert 1 <= int(answer.headers["retry-after"]) <= 30
        assert "x-should-retry" not in answer.headers
        process.release(10)
        assert running.result().status_code == 200


def test_headers_set_deadline_and_priority(bridge: Callable[..., BridgeProcess]) -> None:
    process = bridge({"gate": True}, active_permits=1)
    with (
        ThreadPoolExecutor(1) as pool,
        httpx.Client(base_url=process.base, timeout=100, verify=False) as client,
    ):
        running = pool.submit(web.post, f"{process.base}/v1/chat/completions", json=CHAT)
        process.wait_running(1)
        late = client.post("/v1/chat/completions", json=CHAT, headers={"X-Inferd-Deadline-Ms": "20"})
        assert late.status_code == 408
        assert late.json()["error"]["code"] == "deadline_exceeded"
        assert late.headers["x-should-retry"] == "false"
        odd = client.post("/v1/chat/completions", json=CHAT, headers={"X-Inferd-Priority": "first"})
        assert odd.status_code == 400
        process.release(10)
        assert running.result().status_code == 200


def test_a_deadline_ends_a_stream_with_an_error(bridge: Callable[..., BridgeProcess]) -> None:
    process = bridge({"gate": True, "tape": ["a", "b"]})
    process.release(1)
    with httpx.Client(base_url=process.base, timeout=100, verify=False) as client:
        answer = client.post(
            "/v1/chat/completions", json={**CHAT, "stream": True}, headers={"X-Inferd-Deadline-Ms": "700"}
        )
    lines = [line for line in answer.text.split("\n\n") if line]
    assert '"content":"a"' in lines[-2]
    assert '"code":"deadline_exceeded"' in lines[-1]
    assert "[DONE]" not in answer.text


def test_an_interrupted_answer_ends_with_an_error(bridge: Callable[..., BridgeProcess]) -> None:
    process = bridge({"tape": ["a", "b", "c"], "drop_after": 1})
    answer = web.post(f"{process.base}/v1/chat/completions", json={**CHAT, "stream": True})
    assert '"content":"a"' in answer.text
    assert answer.text.rstrip().split("\n\n")[-1].startswith('data: {"error":')
    whole = web.post(f"{process.base}/v1/chat/completions", json=CHAT)
    assert whole.status_code == 503


def test_a_client_that_leaves_frees_its_place(bridge: Callable[..., BridgeProcess]) -> None:
    process = bridge({"gate": True, "tape": ["a"], "repeat": 1000})
    body = json.dumps({**CHAT, "stream": True}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    for leave in ("queued", "streaming", "pipelined"):
        with socket.create_connection(("127.0.0.1", process.port)) as sock:
            sock.sendall((head % len(body) + body) * (2 if leave == "pipelined" else 1))
            process.wait_running(1)
            if leave == "streaming":
                process.release(1)
                assert b"200 OK" in sock.recv(4096)
        process.wait_idle()


def test_foreign_hosts_and_origins_are_refused(shared: BridgeProcess) -> None:
    for host, allowed in (
        ("localhost:11434", True),
        ("127.0.0.1", True),
        ("[::1]:11434", True),
        ("box.example:11434", True),
        ("evil.example", False),
        ("localhost.evil.example", False),
    ):
        answer = web.get(f"{shared.base}/v1/models", headers={"Host": host})
        assert (answer.status_code == 200) is allowed, host
    for origin, allowed in (
        ("http://localhost:3000", True),
        ("https://app.example", True),
        ("https://evil.example", False),
        ("http://localhost.evil.example", False),
        ("null", False),
    ):
        answer = web.get(f"{shared.base}/v1/models", headers={"Origin": origin})
        assert (answer.status_code == 200) is allowed, origin
        assert answer.headers.get("access-control-allow-origin") == (origin if allowed else None)
        asked = web.options(
            f"{shared.base}/v1/chat/completions",
            headers={"Origin": origin, "Access-Control-Request-Method": "POST"},
        )
        assert (asked.status_code == 204) is allowed, origin


def test_keys(bridge: Callable[..., BridgeProcess], tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(
        f"ada {KEY}\nbob {KEY}-b scopes=embed\neve {KEY}-e requests=1\nops {KEY}-o scopes=admin\n"
    )
    file.chmod(0o600)
    process = bridge(http_key_file=file, http_ollama_version="0.99.1")
    url = f"{process.base}/v1/chat/completions"

    def ask(**headers: str) -> int:
        return web.post(url, json=CHAT, headers=headers).status_code

    assert web.get(f"{process.base}/health").status_code == 200
    assert web.get(f"{process.base}/api/version").json() == {"version": "0.99.1", "inferd": __version__}
    assert ask() == 401
    assert ask(Authorization="Bearer wrong") == 401
    assert ask(Authorization=f"Bearer {KEY}") == 200
    assert ask(**{"x-api-key": KEY}) == 200
    assert ask(Authorization=f"Bearer {KEY}-b") == 403
    # Any key may list the models; only an admin's key may change them.
    for path in ("/v1/models", "/v1/models/mock", "/api/tags", "/status"):
        told = web.get(f"{process.base}{path}", headers={"x-api-key": f"{KEY}-b"})
        assert told.status_code == 200, path
    unload = f"{process.base}/unload"
    refused = web.post(unload, json={"model": "mock"}, headers={"x-api-key": KEY})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")
    admin = web.post(unload, json={"model": "mock"}, headers={"x-api-key": f"{KEY}-o"})
    assert admin.json()["error"]["message"] == "the model 'mock' is of the configuration and stays"
    assert ask(Authorization=f"Bearer {KEY}-e") == 200
    assert ask(Authorization=f"Bearer {KEY}-e") == 429
    stranger = openai.OpenAI(base_url=f"{process.base}/v1", api_key="wrong")
    with stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()
    file.write_text(f"zoe {KEY}-z\n")
    while ask(Authorization=f"Bearer {KEY}-z") != 200:
        pass
    assert ask(Authorization=f"Bearer {KEY}") == 401
    assert KEY not in process.stderr
    wanted = {"key:ada", "key:eve", "key:zoe"}
    until(lambda: wanted <= {event.get("caller") for event in process.events("http_request")})


_CONNECT = """
import os, socket, sys
import encodings.idna
port, uid = map(int, sys.argv[1:])
os.setuid(uid)
sock = socket.create_connection(("127.0.0.1", port))
sock.sendall(b"GET /v1/models HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n")
sys.stdout.write(sock.recv(4096).decode())
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_of_this_machine_needs_a_key(shared: BridgeProcess) -> None:
    for uid, status in ((0, "200"), (65534, "401")):
        done = subprocess.run(
            [sys.executable, "-c", _CONNECT, str(shared.port), str(uid)], capture_output=True, text=True
        )
        assert done.stdout.split()[1] == status, done.stderr


def test_a_killed_bridge_is_restarted(bridge: Callable[..., BridgeProcess]) -> None:
    process = bridge()
    pid = int(re.findall(r"http_bridge_started pid=(\d+)", process.stderr)[-1])
    os.kill(pid, signal.SIGKILL)
    process.wait_ready()
    assert web.post(f"{process.base}/v1/chat/completions", json=CHAT).status_code == 200


def test_the_bridge_ends_with_its_daemon(bridge: Callable[..., BridgeProcess]) -> None:
    process = BridgeProcess(mock={})
    process.wait_ready()
    pid = int(re.findall(r"http_bridge_started pid=(\d+)", process.stderr)[-1])
    process.process.kill()
    process.process.wait()
    fd = os.pidfd_open(pid)
    try:
        assert select.select([fd], [], [], 30)[0]
    except ProcessLookupError:
        pass
    finally:
        os.close(fd)
        process.close()


def test_a_taken_port_is_named(bridge: Callable[..., BridgeProcess]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = BridgeProcess(mock={}, http=f"127.0.0.1:{port}")
        assert process.process.wait(100) == 1
        assert f"(pid {os.getpid()})" in process.stderr
        assert "--http IP:PORT" in process.stderr
        process.close()


def test_the_log_holds_no_text(shared: BridgeProcess) -> None:
    before, warnings = (len(shared.events(msg)) for msg in ("http_request", "library_record"))
    body = {**CHAT, "messages": [{"role": "user", "content": "SECRETPROMPT"}]}
    web.post(f"{shared.base}/v1/chat/completions?key=SECRETQUERY", json=body)
    web.get(f"{shared.base}/SECRETPATH")
    with socket.create_connection(("127.0.0.1", shared.port)) as junk:
        junk.sendall(b"SECRET NOISE\r\n\r\n")
        assert junk.recv(100).startswith(b"HTTP/1.1 400")
    events = shared.wait_event("http_request", before + 2)
    # The server's own warning is an event of the log, and not a line of stderr.
    assert shared.wait_event("library_record", warnings + 1)[-1]["logger"] == "uvicorn.error"
    assert "SECRET" not in shared.stderr
    assert "Invalid" not in shared.stderr
    assert all("mock-response" not in str(event) for event in events)


def test_metrics(shared: BridgeProcess) -> None:
    labels = 'client="other",path="/v1/chat/completions",status="200",stream="true"'
    row = f"inferd_http_requests_total{{{labels}}} 1.0"
    assert row not in web.get(f"{shared.base}/metrics").text
    body = {**CHAT, "stream": True}
    web.post(f"{shared.base}/v1/chat/completions", json=body, headers={"User-Agent": "x/SECRET"})
    text = web.get(f"{shared.base}/metrics").text
    assert row in text
    assert "SECRET" not in text


def test_a_foreign_token_is_not_believed(bridge: Callable[..., BridgeProcess]) -> None:
    process = bridge({"gate": True})
    behalf = {"caller": "key:ada", "token": "0" * 64}
    with Wire(process.dir / "inferd" / "infer.v2.sock") as wire, ThreadPoolExecutor(1) as pool:
        turn = {"role": "user", "content": [{"type": "text", "text": "hi"}]}
        wire.send({"id": "q", "messages": [turn], "on_behalf_of": behalf})
        running = pool.submit(web.post, f"{process.base}/v1/chat/completions", json=CHAT)
        process.wait_running(2)
        callers = {row["peer_pid"]: row.get("caller") for row in process.status().running}
        assert callers.pop(os.getpid()) is None
        assert list(callers.values()) == [f"uid:{os.getuid()}"]
        process.release(20)
        assert [frame["type"] for frame in wire.frames()][-1] == "done"
        assert running.result().status_code == 200
