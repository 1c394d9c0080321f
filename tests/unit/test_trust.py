"""A client sends nothing to a socket that another user may have placed there."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from inferd import AsyncClient, Client
from inferd.client import trust
from inferd.errors import DaemonUntrusted

OTHER = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")

# Serves as the user of its second argument, and says what it received from its first client.
SERVE = """
import os, socket, sys
os.setgid(int(sys.argv[2]))
os.setuid(int(sys.argv[2]))
with socket.socket(socket.AF_UNIX) as listener:
    listener.bind(sys.argv[1])
    os.chmod(sys.argv[1], 0o666)
    listener.listen()
    print("listening", flush=True)
    connection, _ = listener.accept()
    with connection:
        print(connection.recv(100), flush=True)
"""


@contextmanager
def served_by(uid: int, path: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", SERVE, str(path), str(uid)], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "listening\n"
        yield server
        server.kill()


@pytest.fixture
def planted() -> Iterator[Path]:
    """A directory in /tmp that another user has created first."""
    path = Path(tempfile.mkdtemp(prefix="i", dir="/tmp"))
    os.chown(path, OTHER, OTHER)
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@as_root
@pytest.mark.parametrize("client", ["blocking", "asyncio"])
def test_a_stranger_in_a_planted_directory_is_sent_nothing(planted: Path, client: str) -> None:
    async def ask() -> None:
        async with AsyncClient(planted / "infer.sock") as asynchronous:
            await asynchronous.generate("secret").result()

    def generate() -> None:
        if client == "asyncio":
            asyncio.run(ask())
        else:
            with Client(planted / "infer.sock") as blocking:
                blocking.generate("secret").result()

    with served_by(OTHER, planted / "infer.sock") as server:
        with pytest.raises(DaemonUntrusted, match=rf"served by another user \(uid {OTHER}\)"):
            generate()
        assert server.stdout is not None
        assert server.stdout.readline() == "b''\n"


@as_root
def test_a_link_planted_by_another_user_is_not_trusted(planted: Path, short_dir: Path) -> None:
    short_dir.chmod(0o755)
    home = short_dir / "home"
    home.mkdir()
    os.chown(home, OTHER, OTHER)
    link = Path(f"{planted}-link")
    link.symlink_to(home)
    os.chown(link, OTHER, OTHER, follow_symlinks=False)
    try:
        with served_by(OTHER, home / "s"), socket.socket(socket.AF_UNIX) as connected:
            connected.connect(str(link / "s"))
            with pytest.raises(DaemonUntrusted):
                trust.require_trusted(connected, str(link / "s"))
            trust.require_trusted(connected, str(home / "s"))  # a place that root gave to that user
    finally:
        link.unlink()


def test_a_server_of_the_same_user_is_trusted_anywhere(short_dir: Path) -> None:
    short_dir.chmod(0o777)
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as connected:
        listener.bind(str(short_dir / "s"))
        listener.listen()
        connected.connect(str(short_dir / "s"))
        trust.require_trusted(connected, str(short_dir / "s"))
