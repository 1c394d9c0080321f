"""The sockets of all surfaces in one daemon: their addresses, when they appear, and their shared limits."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.daemon_process import DaemonProcess, Wire, until

Start = Callable[..., DaemonProcess]

ASK: dict[str, dict[str, Any]] = {
    "v1": {"id": "q", "messages": [{"role": "user", "content": "hi"}]},
    "v2": {"id": "q", "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]},
    "embed": {"id": "q", "input": ["a"], "dimensions": 1},
    "rerank": {"id": "q", "query": "q", "documents": ["a"]},
}
LAST = {"v1": "done", "v2": "done", "embed": "embeddings", "rerank": "rerank"}


def answer(wire: Wire, surface: str) -> dict[str, Any]:
    """The last frame of an answer."""
    wire.send(ASK[surface])
    while (frame := wire.frame())["type"] not in (LAST[surface], "error"):
        pass
    return frame


def sockets(process: DaemonProcess) -> set[str]:
    return {path.name for path in process.uds.parent.iterdir() if stat.S_ISSOCK(path.lstat().st_mode)}


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, {"infer.v2.sock"}),
        ({"v2": 0}, set()),
        ({"embed": 1}, {"infer.v2.sock", "infer.embed.sock"}),
        ({"rerank": 1, "v2": "no"}, {"infer.rerank.sock"}),
    ],
)
def test_the_sockets_of_each_configuration(
    daemon: Start, options: dict[str, object], names: set[str]
) -> None:
    process = daemon(**options).wait_ready()
    assert sockets(process) == {*names, "infer.sock", "inferd.sock", "admin.sock"}
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    assert sockets(process) == set()


def test_every_surface_answers_in_one_daemon(daemon: Start) -> None:
    process = daemon(embed=1, rerank=1).wait_ready()
    for surface, last in LAST.items():
        with process.connect(surface) as wire:
            assert answer(wire, surface)["type"] == last
    seen = {event["surface"] for event in process.wait_event("request_done", 4)}
    assert seen == set(LAST)


def test_configured_socket_paths(daemon: Start, short_dir: Path) -> None:
    process = daemon(v2_addr=short_dir / "two", embed=1, embed_addr=short_dir / "e").wait_ready()
    assert sockets(process) == {"infer.sock", "inferd.sock", "admin.sock"}
    for name, surface in (("two", "v2"), ("e", "embed")):
        with Wire(short_dir / name) as wire:
            assert answer(wire, surface)["type"] == LAST[surface]


def test_a_second_daemon_with_its_own_sockets(daemon: Start, short_dir: Path) -> None:
    first = daemon().wait_ready()
    own = {name: short_dir / name for name in ("lock", "uds", "admin_addr")}
    second = daemon(XDG_RUNTIME_DIR=first.dir, **own)
    second.admin, second.uds = own["admin_addr"], own["uds"]
    second.wait_ready()
    assert sockets(second) == {"admin_addr", "uds", "infer.v2.sock", "inferd.sock"}
    for process in (first, second):
        for surface in ("v2", "v1"):
            at = process.uds if surface == "v1" else process.uds.with_name("infer.v2.sock")
            with Wire(at) as wire:
                assert answer(wire, surface)["type"] == LAST[surface]


def test_an_implicit_surface_without_an_address_is_a_warning(daemon: Start, short_dir: Path) -> None:
    first = daemon(uds=short_dir / "one").wait_ready()
    second = daemon(uds=short_dir / "two").wait_ready()
    told = {event["surface"] for event in second.wait_event("surface not served", 2)}
    assert told == {"v2", "framed"}
    with Wire(short_dir / "two") as wire:
        assert answer(wire, "v1")["type"] == LAST["v1"]
    assert not first.events("surface not served")


def test_a_requested_surface_without_an_address_ends_the_boot(daemon: Start, short_dir: Path) -> None:
    daemon(uds=short_dir / "one", v2_addr=short_dir / "v2").wait_ready()
    process = daemon(v2_addr=short_dir / "v2")
    assert process.wait() == 1
    assert f"another process serves on {short_dir / 'v2'}" in process.stderr


def test_no_socket_before_ready(daemon: Start) -> None:
    process = daemon(mock={"hold": "ready"}, embed=1)
    process.wait_for("capabilities")
    assert sockets(process) == {"admin.sock"}
    process.release()
    process.wait_for("ready")
    assert sockets(process) == {
        "admin.sock",
        "infer.sock",
        "infer.v2.sock",
        "infer.embed.sock",
        "inferd.sock",
    }


def test_each_surface_on_tcp_with_the_key(daemon: Start) -> None:
    local = "127.0.0.1:0"
    options = {
        "tcp": local,
        "v2_tcp": local,
        "embed_tcp": local,
        "rerank_tcp": local,
        "embed": 1,
        "rerank": 1,
    }
    process = daemon(**options, api_key="k").wait_ready()
    assert sockets(process) == {"admin.sock", "inferd.sock"}
    # First the admin socket, then the surfaces in their order.
    addresses = [event["address"] for event in process.wait_event("listening", 6)][1:5]
    for surface, address in zip(LAST, addresses, strict=True):
        port = int(address.rpartition(":")[2])
        with Wire(("127.0.0.1", port)) as wire:
            wire.send({"type": "auth", "key": "k"})
            assert answer(wire, surface)["type"] == LAST[surface]
        with Wire(("127.0.0.1", port)) as wire:
            wire.send(ASK[surface])
            assert wire.rest() == b""


@pytest.mark.parametrize("surface", ["v2", "embed", "rerank"])
def test_off_loopback_a_key_is_needed_on_every_surface(daemon: Start, surface: str) -> None:
    process = daemon(**{surface: 1, f"{surface}_tcp": "0.0.0.0:0"})
    assert process.wait() == 1
    assert "without an API key" in process.stderr


def test_an_address_that_is_taken_fails_the_boot_and_leaves_nothing(daemon: Start) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = daemon(v2_tcp=f"127.0.0.1:{taken.getsockname()[1]}")
        assert process.wait() == 1
    assert "Address already in use" in process.stderr
    assert sockets(process) == set()


def test_a_surface_that_no_backend_can_serve_is_a_warning(daemon: Start) -> None:
    process = daemon(mock={"able": {"v2": True}}, embed=1, rerank=1).wait_ready()
    assert sockets(process) == {"infer.sock", "infer.v2.sock", "inferd.sock", "admin.sock"}
    warned = process.wait_event("surface not served, no backend is capable of it", 2)
    assert [(event["level"], event["surface"]) for event in warned] == [("warn", "embed"), ("warn", "rerank")]


def test_connections_are_counted_over_all_surfaces(daemon: Start) -> None:
    process = daemon(max_connections=2, embed=1).wait_ready()
    with process.connect("v1") as one, process.connect("embed") as two:
        assert answer(one, "v1")["type"] == "done"
        assert answer(two, "embed")["type"] == "embeddings"
        with process.connect("v2") as three:
            assert three.rest() == b""
    process.wait_event("connection_closed", 2)
    with process.connect("v2") as wire:
        assert answer(wire, "v2")["type"] == "done"


def test_a_place_in_the_queue_is_a_place_on_every_surface(daemon: Start) -> None:
    process = daemon(mock={"gate": True}, active_permits=1, queue_depth=0, embed=1).wait_ready()
    with process.connect("v1") as busy, process.connect("v2") as two, process.connect("embed") as embed:
        busy.send(ASK["v1"])
        until(lambda: answer(two, "v2").get("code") == "queue_full")
        assert answer(embed, "embed")["code"] == "queue_full"
        process.release(2)
        assert [frame["type"] for frame in busy.frames()] == ["token", "done"]


def test_a_connection_of_any_surface_keeps_an_idle_daemon(daemon: Start, short_dir: Path) -> None:
    with contextlib.ExitStack() as held:
        passed = {name: held.enter_context(socket.socket(socket.AF_UNIX)) for name in ("v1", "v2")}
        for name, sock in passed.items():
            sock.bind(str(short_dir / name))
            sock.listen()
        wire = Wire(short_dir / "v1")  # before the daemon starts: it always has a client
        process = daemon(idle_exit_secs=0.1, passed=passed)
        for surface in ("v1", "v2"):
            assert answer(wire, surface)["type"] == "done"
            wire.sock.settimeout(0.3)
            with pytest.raises(TimeoutError):
                wire.line()
            next_wire = Wire(short_dir / "v2")
            wire.close()
            wire = next_wire
        wire.close()
        assert process.wait() == 0


def test_a_stop_waits_for_the_requests_of_every_surface(daemon: Start) -> None:
    process = daemon(mock={"gate": True}, embed=1).wait_ready()
    with process.connect("v2") as two, process.connect("embed") as embed, process.subscribe() as admin:
        two.send(ASK["v2"])
        process.release()
        assert two.frame()["type"] == "frame"
        embed.send(ASK["embed"])
        embed.wait_until_read()
        process.signal(signal.SIGTERM)
        while json.loads(admin.line())["status"] != "draining":
            pass
        process.release(2)
        assert two.frame()["type"] == "done"
        assert embed.frame()["type"] == "embeddings"
    assert process.wait() == 0


def test_a_drain_that_takes_too_long_ends_every_request(daemon: Start) -> None:
    process = daemon(mock={"gate": True}, embed=1, drain_timeout_secs=0.2).wait_ready()
    with process.connect("v2") as two, process.connect("embed") as embed:
        two.send(ASK["v2"])
        embed.send(ASK["embed"])
        process.wait_event("connection_accepted", 2)
        two.wait_until_read()
        embed.wait_until_read()
        process.signal(signal.SIGTERM)
        assert two.frame()["stop_reason"] == "cancelled"
        assert embed.frame()["message"] == "admission closed"
    assert process.wait() == 0


def test_capabilities_match_the_surfaces(daemon: Start) -> None:
    (frame,) = [f for f in daemon().wait_for("ready") if f["status"] == "capabilities"]
    names = ("v2", "vision", "audio", "tools", "thinking", "embed", "rerank")
    assert {name: frame[name] for name in names} == dict.fromkeys(names, True)


def test_the_config_file_asks_for_surfaces(daemon: Start, short_dir: Path) -> None:
    config = short_dir / "c.json"
    config.write_text(
        json.dumps({"backends": [{"kind": "mock", "name": "m"}], "listen": {"tcp_v2": "127.0.0.1:0"}})
    )
    process = daemon(config=config).wait_ready()
    assert sockets(process) == {"infer.sock", "inferd.sock", "admin.sock"}
    listening = process.wait_event("listening", 3)
    (address,) = [event["address"] for event in listening if event["address"].startswith("127")]
    with Wire(("127.0.0.1", int(address.rpartition(":")[2]))) as wire:
        assert answer(wire, "v2")["type"] == "done"
