"""Binding and accepting: modes, refusals, limits, and errors that must not end the listener."""

from __future__ import annotations

import asyncio
import errno
import grp
import os
import socket
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from inferd.errors import AddressError
from inferd.serve import bind, listener
from inferd.serve.listener import ConnectionLimit, Listener
from tests.cases import cases
from tests.in_process import serving, until

ASK = b'{"id":"q","messages":[{"role":"user","content":"hi"}]}\n'


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


# Unix sockets.


@pytest.mark.parametrize("wanted", [0o600, 0o660])
def test_the_mode_does_not_depend_on_the_umask(short_dir: Path, wanted: int) -> None:
    before = os.umask(0)
    try:
        bound = bind.bind_unix(short_dir / "s", wanted)
        assert os.umask(0) == 0
    finally:
        os.umask(before)
    assert mode(short_dir / "s") == wanted
    bound.close()


def test_missing_directories_are_private(short_dir: Path) -> None:
    bound = bind.bind_unix(short_dir / "a" / "b" / "s", 0o660)
    assert mode(short_dir / "a") == mode(short_dir / "a" / "b") == 0o700
    bound.close()


def test_the_socket_has_its_mode_and_group_before_it_listens(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    path = short_dir / "s"
    real_listen = socket.socket.listen

    def listen(self: socket.socket, backlog: int) -> None:
        seen.append((mode(path), path.lstat().st_gid))
        real_listen(self, backlog)

    monkeypatch.setattr(socket.socket, "listen", listen)
    bind.bind_unix(path, 0o660, grp.getgrgid(os.getgid()).gr_name).close()
    assert seen == [(0o660, os.getgid())]


def test_a_link_swapped_for_a_fresh_socket_is_not_followed(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = short_dir / "victim"
    victim.touch(0o600)
    path = short_dir / "s"

    class Raced(socket.socket):
        """Its file is replaced in the moment after the bind, as by another user of the directory."""

        def bind(self, address: Any) -> None:
            super().bind(address)
            path.unlink()
            path.symlink_to(victim)

    monkeypatch.setattr(bind.socket, "socket", Raced)
    with pytest.raises(AddressError):
        bind.bind_unix(path, 0o660, grp.getgrgid(os.getgid()).gr_name)
    assert mode(victim) == 0o600


def test_the_group_is_set(short_dir: Path) -> None:
    group = next(entry for entry in grp.getgrall() if _may_use(entry.gr_gid))
    bound = bind.bind_unix(short_dir / "s", 0o660, group.gr_name)
    assert (short_dir / "s").stat().st_gid == group.gr_gid
    bound.close()


def _may_use(gid: int) -> bool:
    return os.geteuid() == 0 or gid in os.getgroups()


def test_an_unknown_group_is_refused(short_dir: Path) -> None:
    with pytest.raises(AddressError, match="there is no group 'nobody-has-this-name'"):
        bind.bind_unix(short_dir / "s", 0o660, "nobody-has-this-name")
    assert not (short_dir / "s").exists()


def test_a_symbolic_link_is_refused(short_dir: Path) -> None:
    (short_dir / "s").symlink_to(short_dir / "elsewhere")
    with pytest.raises(AddressError, match="is a symbolic link"):
        bind.bind_unix(short_dir / "s", 0o660)
    assert (short_dir / "s").is_symlink()


@pytest.mark.parametrize("kind", ["file", "directory", "fifo"])
def test_anything_else_than_a_socket_is_refused(short_dir: Path, kind: str) -> None:
    path = short_dir / "s"
    {"file": path.touch, "directory": path.mkdir, "fifo": lambda: os.mkfifo(path)}[kind]()
    with pytest.raises(AddressError, match="exists and is not a socket"):
        bind.bind_unix(path, 0o660)
    assert path.exists()


def test_a_stale_socket_is_replaced(short_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(short_dir / "s"))
        stale.listen()
    bound = bind.bind_unix(short_dir / "s", 0o660)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(short_dir / "s"))
    bound.close()


def test_a_socket_that_answers_is_left_alone(short_dir: Path) -> None:
    first = bind.bind_unix(short_dir / "s", 0o660)
    with pytest.raises(AddressError, match="another process serves on"):
        bind.bind_unix(short_dir / "s", 0o660)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(short_dir / "s"))
    first.close()


def test_a_path_that_is_too_long_is_refused_and_one_that_just_fits_is_not(short_dir: Path) -> None:
    fits = short_dir / ("x" * (bind.MAX_UNIX_PATH_BYTES - len(str(short_dir)) - 1))
    bind.bind_unix(fits, 0o660).close()
    with pytest.raises(AddressError, match="is longer than the 107 bytes"):
        bind.bind_unix(Path(f"{fits}x"), 0o660)


def test_a_directory_that_cannot_be_made_is_one_sentence(short_dir: Path) -> None:
    (short_dir / "file").touch()
    with pytest.raises(AddressError, match=r"cannot make the socket .*: (Not a directory|File exists)"):
        bind.bind_unix(short_dir / "file" / "s", 0o660)


def test_closing_removes_our_file_and_no_other(short_dir: Path) -> None:
    path = short_dir / "s"
    bind.bind_unix(path, 0o660).close()
    assert not path.exists()
    bound = bind.bind_unix(path, 0o660)
    path.unlink()
    path.touch()
    bound.close()
    assert path.exists()


# TCP.


@cases("address", ["0.0.0.0:0", "[::]:0", "10.1.2.3:0", "[::ffff:10.0.0.1]:0"])
def test_off_loopback_a_key_is_needed(address: str) -> None:
    with pytest.raises(AddressError, match="without an API key"):
        bind.bind_tcp(address, has_key=False)


def test_with_a_key_any_address_may_be_bound() -> None:
    bind.bind_tcp("0.0.0.0:0", has_key=True).close()


@pytest.mark.parametrize("address", ["127.0.0.1:0", "127.9.9.9:0", "[::1]:0"])
def test_loopback_needs_no_key(address: str) -> None:
    if address.startswith("[") and not Path("/proc/net/if_inet6").exists():
        pytest.skip("this machine has no IPv6")
    bound = bind.bind_tcp(address, has_key=False)
    assert bound.address.rpartition(":")[0] == address.rpartition(":")[0]
    assert bound.address.rpartition(":")[2] != "0"
    bound.close()


NO_ADDRESS = [
    "", "127.0.0.1", "127.0.0.1:", ":80", "localhost:80", "example.org:80", "127.0.0.1:x", "127.0.0.1:65536",
    "127.0.0.1:-1", "127.0.0.1:٣", "::1:80", "[127.0.0.1]:80", "[::1]", "1.2.3:80", "127.0.0.1:8 ",
]  # fmt: skip


@cases("address", NO_ADDRESS)
def test_only_a_literal_address_is_taken(address: str) -> None:
    with pytest.raises(AddressError, match="literal IP:port"):
        bind.bind_tcp(address, has_key=True)


def test_a_taken_port_is_one_sentence() -> None:
    first = bind.bind_tcp("127.0.0.1:0", has_key=False)
    with pytest.raises(AddressError, match=f"cannot serve on {first.address}: Address already in use"):
        bind.bind_tcp(first.address, has_key=False)
    first.close()


# Accepting.

both_loops = pytest.mark.both_loops


@both_loops
async def test_small_writes_are_not_held_back_on_tcp() -> None:
    async with serving("127.0.0.1:0") as server:
        await server.connect()
        await until(lambda: len(server.service.sessions) == 1)
        (session,) = server.service.sessions
        assert session._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@both_loops
async def test_over_the_limit_the_newcomer_is_closed(short_dir: Path) -> None:
    async with serving(short_dir / "s", max_connections=2) as server:
        first, second = await server.connect(), await server.connect()
        await until(lambda: server.places.taken == 2)
        third = await server.connect()
        assert await third.receive() == b""
        await second.send(ASK)
        assert (await second.frame())["type"] == "token"
        first.close()
        await until(lambda: server.places.taken == 1)
        fourth = await server.connect()
        await fourth.send(ASK)
        assert (await fourth.frame())["type"] == "token"


class Flaky:
    """A listening socket whose first accepts fail."""

    def __init__(self, sock: socket.socket, *errors: OSError) -> None:
        self._sock = sock
        self.errors = list(errors)

    def accept(self) -> tuple[socket.socket, Any]:
        if self.errors:
            raise self.errors.pop(0)
        return self._sock.accept()

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()


@both_loops
@pytest.mark.parametrize("number", [errno.ECONNABORTED, errno.EMFILE, errno.ENFILE, errno.ENOBUFS])
async def test_errors_of_accept_do_not_end_the_listening(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(listener, "BACKOFF_SECS", 0.01)
    bound = bind.bind_unix(short_dir / "s", 0o660)
    flaky = Flaky(bound.sock, OSError(number, os.strerror(number)), OSError(number, os.strerror(number)))
    served = asyncio.Event()

    async def serve(sock: socket.socket, *_: object) -> None:
        sock.close()
        served.set()

    accepting = Listener(bind.Bound(flaky, bound.address, bound.file), serve, ConnectionLimit(10))  # type: ignore[arg-type]
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(bound.address)
        await asyncio.wait_for(served.wait(), 100)
    assert flaky.errors == []
    await accepting.close(1)
    assert not (short_dir / "s").exists()


@both_loops
async def test_stopping_during_a_pause_is_final(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "BACKOFF_SECS", 0.01)
    bound = bind.bind_unix(short_dir / "s", 0o660)
    flaky = Flaky(bound.sock, OSError(errno.EMFILE, "too many"))
    places = ConnectionLimit(10)
    accepting = Listener(bind.Bound(flaky, bound.address), lambda *_: asyncio.sleep(0), places)  # type: ignore[arg-type]
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(bound.address)
        await until(lambda: not flaky.errors)
        accepting.stop()
        accepting.stop()
        await asyncio.sleep(0.03)
    assert places.taken == 0


@both_loops
async def test_an_open_connection_outlives_the_stop(short_dir: Path) -> None:
    async with serving(short_dir / "s") as server:
        client = await server.connect()
        await client.send(ASK)
        assert (await client.frame())["type"] == "token"
        server.listener.stop()
        with pytest.raises(FileNotFoundError):
            await server.connect()
        assert (await client.frame())["type"] == "done"
        await client.send(ASK)
        assert (await client.frame())["type"] == "token"


@both_loops
async def test_every_change_of_the_number_is_reported(short_dir: Path) -> None:
    numbers: list[int] = []
    leave = asyncio.Event()

    async def serve(sock: socket.socket, *_: object) -> None:
        await leave.wait()
        sock.close()

    places = ConnectionLimit(10)
    bound = bind.bind_unix(short_dir / "s", 0o660)
    accepting = Listener(bound, serve, places, lambda: numbers.append(places.taken))
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as two:
        one.connect(accepting.address)
        two.connect(accepting.address)
        await until(lambda: places.taken == 2)
        leave.set()
        await until(lambda: places.taken == 0)
    assert numbers == [1, 2, 1, 0]
    await accepting.close(1)


@both_loops
async def test_many_short_connections_leak_nothing(short_dir: Path) -> None:
    async with serving(short_dir / "s", max_connections=1000) as server:

        def crowd() -> None:
            for n in range(200):
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.connect(server.listener.address)
                    if n % 2:
                        sock.sendall(ASK)

        thread = threading.Thread(target=crowd)
        thread.start()
        await until(lambda: not thread.is_alive() and server.places.taken == 0)
        thread.join()
        client = await server.connect()
        await client.send(ASK)
        assert (await client.frame())["type"] == "token"
