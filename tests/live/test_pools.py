"""A daemon with a pool: a local backend with a gate, and scripted servers."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inferd.client import AdminClient
from inferd.config import sources
from tests.daemon_process import DaemonProcess, until
from tests.http_bridge import BridgeProcess, web
from tests.remote_server import Exchange, RemoteServer, says

Start = Callable[..., DaemonProcess]
Serve = Callable[..., RemoteServer]
ASK = {"id": "q", "messages": [{"role": "user", "content": "hi"}]}
METRICS = b"""# HELP llamacpp:requests_processing Number of requests processing.
llamacpp:requests_processing 3
llamacpp:requests_deferred 4
"""


def server(requests_there: bytes = b"") -> Callable[[Exchange], None]:
    """Answers with one word, and reports its health and load."""
    answer = says("remote")

    def script(exchange: Exchange) -> None:
        path = exchange.request.path
        if path == "/metrics" and requests_there:
            exchange.whole(200, requests_there)
        elif path == "/health":
            exchange.whole(200, b'{"status":"ok"}')
        elif path == "/v1/chat/completions":
            answer(exchange)
        else:
            exchange.whole(404, b"")

    return script


def write(path: Path, *servers: RemoteServer, serves: str = "m") -> Path:
    remote = [
        {"kind": "openai-compat", "name": f"r{n}", "base_url": s.url, "model": "x", "serves": serves}
        for n, s in enumerate(servers)
    ]
    backends = [{"kind": "mock", "name": "local", "serves": "m"}, *remote]
    engine = {"active_permits": 1, "queue_depth": 4, "spill_after_ms": 0}
    path.write_text(json.dumps({"backends": backends, "engine": engine}))
    return path


def backends(process: DaemonProcess) -> dict[str, Any]:
    with AdminClient(process.admin, timeout=100) as admin:
        return {row["name"]: row for row in admin.status().backends}


def test_spill_retry_load_and_a_lost_upstream(daemon: Start, remote: Serve, short_dir: Path) -> None:
    one, two = remote(server(METRICS)), remote(server())
    for each in (one, two):
        each.keep = False
    config = write(short_dir / "c.json", one, two)
    process = daemon(mock={"gate": True}, config=config, backend="").wait_ready()
    with process.connect() as local, process.connect() as other:
        local.send(ASK)
        process.wait_event("connection_accepted", 1)
        until(lambda: backends(process)["local"]["running"] == 1)
        until(lambda: backends(process)["r0"]["others"] == 7)
        other.send(ASK)
        *_, done = other.frames()
        assert done["content"] == "remote"
        assert process.wait_event("request_done")[0]["backend"] == "r1"  # r0 has the requests of others
        two.script = lambda exchange: exchange.cut()
        other.send(ASK)
        *_, done = other.frames()
        assert done["content"] == "remote"
        assert process.wait_event("request_done", 2)[1]["route"] == "retry"
        assert process.events("request_retried")[0]["backend"] == "r1"
        until(lambda: not backends(process)["r1"]["ready"])
        two.script = server()
        until(lambda: backends(process)["r1"]["ready"])
        process.release(2)
        assert [frame["type"] for frame in local.frames()] == ["token", "done"]
    with AdminClient(process.admin, timeout=100) as admin:
        metrics = admin.status().metrics["backends"]
    assert metrics["local"]["routed"] == {"local": 1}
    assert metrics["r0"]["routed"] == {"retry": 1}
    assert metrics["r1"]["routed"] == {"spill": 1, "affinity": 1}


def test_over_http_another_pool_member_retries_a_failed_request(remote: Serve, short_dir: Path) -> None:
    well = server()

    def failing(exchange: Exchange) -> None:
        (exchange.cut if exchange.request.path == "/v1/chat/completions" else lambda: well(exchange))()

    one, two = remote(well), remote(well)
    config = write(short_dir / "c.json", one, two, serves="far")
    with BridgeProcess(mock={}, config=config, INFERD_BACKEND="") as process:
        for one.script, two.script in ((failing, well), (well, failing)):
            for name in ("far", "x"):
                body = {"model": name, "messages": [{"role": "user", "content": "hi"}]}
                answer = web.post(f"{process.base}/v1/chat/completions", json=body)
                assert answer.status_code == 200, answer.text
                assert answer.json()["choices"][0]["message"]["content"] == "remote"


def test_a_reload_changes_pools_without_rebuilding_backends(
    daemon: Start, remote: Serve, short_dir: Path
) -> None:
    one = remote(server())
    one.keep = False
    config = write(short_dir / "c.json", one, serves="apart")
    process = daemon(config=config, backend="").wait_ready()
    assert {name: row["pool"] for name, row in backends(process).items()} == {"local": "", "r0": ""}
    write(config, one)
    process.signal(signal.SIGHUP)
    process.wait_event("reloaded")
    assert {name: row["pool"] for name, row in backends(process).items()} == {"local": "m", "r0": "m"}
    assert not process.events("backend_closed")


DOCS = Path(__file__).parents[2] / "docs"
PAGES = ["scale.md", "rpc.md", *sorted(page.name for page in DOCS.glob("upstream-*.md"))]


@pytest.mark.parametrize("name", PAGES)
def test_the_configuration_of_a_page(name: str, tmp_path: Path) -> None:
    shown = re.findall(r"^```json\n(.*?)^```$", (DOCS / name).read_text(), re.M | re.S)
    assert shown
    for text in shown:
        path = tmp_path / "config.json"
        path.write_text(text)
        settings, notes = sources.load({"config": path}, {"HOME": str(tmp_path), "LITELLM_MASTER_KEY": "k"})
        assert notes == []
        assert settings.backends


def test_every_page_is_listed_as_run_or_not_run() -> None:
    overview = (DOCS / "scale.md").read_text()
    for name in PAGES[2:]:
        not_run = f"[{name}]({name}) | not run |" in overview
        assert not_run or f"[{name}]({name}) | run" in overview
        assert ("**not run**" in (DOCS / name).read_text()) == not_run
