"""Notifications to a service manager, and the sockets that it passes."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from inferd.daemon import systemd
from inferd.errors import AddressError
from inferd.serve.bind import Bound
from tests.in_process import Clock


@pytest.fixture
def manager(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(short_dir / "notify"))
        sock.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(short_dir / "notify"))
        yield sock


async def heard(manager: socket.socket) -> bytes:
    return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(manager, 200), 100)


def silent(manager: socket.socket) -> bool:
    try:
        return not manager.recv(200)
    except BlockingIOError:
        return True


def test_a_vanished_manager_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere/at/all")
    systemd.notify("READY=1")


# The watchdog.


async def test_watchdog_messages_come_while_healthy(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "4000000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    clock = Clock()
    dead: list[str] = []
    watchdog = systemd.Watchdog(asyncio.get_running_loop(), lambda: dead)
    for _ in range(3):
        assert await heard(manager) == b"WATCHDOG=1"
        assert silent(manager)
        await clock.advance(4000)
    assert await heard(manager) == b"WATCHDOG=1"
    dead.append("the engine")
    await clock.advance(4000)
    assert silent(manager)
    dead.clear()
    await clock.advance(4000)
    assert await heard(manager) == b"WATCHDOG=1"
    watchdog.close()


@pytest.mark.parametrize(("usec", "pid"), [("", ""), ("0", ""), ("nonsense", ""), ("-5", ""), ("20000", "1")])
async def test_without_a_watchdog_no_message_is_sent(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch, usec: str, pid: str
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    if pid:
        monkeypatch.setenv("WATCHDOG_PID", pid)
    systemd.Watchdog(asyncio.get_running_loop(), lambda: []).close()
    assert silent(manager)


# Passed sockets.


@pytest.fixture
def passing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Passing]:
    passing = Passing(monkeypatch)
    yield passing
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        assert name not in os.environ
    passing.close()


class Passing:
    """Listening sockets as a manager would pass them, but not from descriptor 3 on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self._fds: list[int] = []

    def pass_on(self, names: str, *sockets: socket.socket, pid: int | None = None) -> None:
        first = 200
        for fd, sock in enumerate(sockets, start=first):
            os.dup2(sock.fileno(), fd)
            self._fds.append(fd)
            sock.close()
        self._monkeypatch.setattr(systemd, "FIRST_FD", first)
        for name, value in {"PID": pid or os.getpid(), "FDS": len(sockets), "FDNAMES": names}.items():
            self._monkeypatch.setenv(f"LISTEN_{name}", str(value))

    def close(self) -> None:
        for fd in self._fds:
            try:
                os.close(fd)
            except OSError:
                continue  # the new owner has closed it
            raise AssertionError(f"descriptor {fd} was left open")


def unix(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen()
    return sock


def tcp(host: str = "127.0.0.1") -> socket.socket:
    return socket.create_server((host, 0))


def close(passed: dict[str, Bound]) -> None:
    for bound in passed.values():
        bound.close()


ADDRESSES = {"v1": "/run/x/infer.sock", "v2": "/run/x/infer.v2.sock", "admin": "/run/x/admin.sock"}


def test_a_socket_belongs_to_the_surface_that_it_is_named_after(short_dir: Path, passing: Passing) -> None:
    passing.pass_on("v2:admin", tcp(), unix(short_dir / "a"))
    passed = systemd.passed_sockets(ADDRESSES, has_key=False)
    assert {name: bound.is_tcp for name, bound in passed.items()} == {"v2": True, "admin": False}
    assert passed["admin"].address == str(short_dir / "a")
    assert not passed["v2"].sock.get_inheritable()
    assert not passed["v2"].sock.getblocking()
    close(passed)
    assert (short_dir / "a").is_socket(), "the file is the manager's"


def test_a_socket_without_such_a_name_is_known_by_its_address(short_dir: Path, passing: Passing) -> None:
    passing.pass_on("inferd.socket", unix(short_dir / "a"))
    passed = systemd.passed_sockets({**ADDRESSES, "v1": str(short_dir / "a")}, has_key=False)
    assert list(passed) == ["v1"]
    close(passed)


def test_sockets_for_another_process_are_ignored(short_dir: Path, passing: Passing) -> None:
    passing.pass_on("v1", unix(short_dir / "a"), pid=1)
    assert systemd.passed_sockets(ADDRESSES, has_key=False) == {}
    os.close(systemd.FIRST_FD)


def test_a_socket_of_no_surface_is_refused_and_closed(short_dir: Path, passing: Passing) -> None:
    passing.pass_on("v1:else", unix(short_dir / "a"), unix(short_dir / "b"))
    with pytest.raises(
        AddressError,
        match=r"else .* belongs to no surface; .* FileDescriptorName= to one of v1, v2, admin",
    ):
        systemd.passed_sockets(ADDRESSES, has_key=False)


def test_two_sockets_for_one_surface_are_refused(short_dir: Path, passing: Passing) -> None:
    passing.pass_on("v1:v1", unix(short_dir / "a"), unix(short_dir / "b"))
    with pytest.raises(AddressError, match="each once"):
        systemd.passed_sockets(ADDRESSES, has_key=False)


def test_an_open_address_needs_a_key_here_too(passing: Passing) -> None:
    passing.pass_on("v1", tcp("0.0.0.0"))
    with pytest.raises(AddressError, match="without an API key"):
        systemd.passed_sockets(ADDRESSES, has_key=False)


def test_with_a_key_it_does_not(passing: Passing) -> None:
    passing.pass_on("v1", tcp("0.0.0.0"))
    close(systemd.passed_sockets(ADDRESSES, has_key=True))


def test_a_socket_that_does_not_listen_is_refused(passing: Passing) -> None:
    passing.pass_on("v1", socket.socket(socket.AF_UNIX))
    with pytest.raises(AddressError, match="does not listen for streams"):
        systemd.passed_sockets(ADDRESSES, has_key=False)


def test_a_descriptor_that_is_not_a_socket_is_refused(short_dir: Path, passing: Passing) -> None:
    passing.pass_on("v1")
    with (short_dir / "file").open("w") as file:
        os.dup2(file.fileno(), systemd.FIRST_FD)
    os.environ["LISTEN_FDS"] = "1"
    with pytest.raises(AddressError, match="is not a socket"):
        systemd.passed_sockets(ADDRESSES, has_key=False)
    os.close(systemd.FIRST_FD)
