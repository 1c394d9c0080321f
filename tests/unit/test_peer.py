"""Peer identity: the kernel's credentials of a connection, and the caller derived from them."""

from __future__ import annotations

import os
import socket
import struct

from inferd.serve import peer
from inferd.serve.peer import Peer


def test_a_unix_peer_is_the_process_at_the_other_end() -> None:
    left, right = socket.socketpair()
    with left, right:
        found = peer.of(left)
    assert found == Peer("unix", uid=os.getuid(), gid=os.getgid(), pid=os.getpid())
    assert found.fields() == {
        "peer": "unix", "peer_uid": os.getuid(), "peer_gid": os.getgid(), "peer_pid": os.getpid(),
    }  # fmt: skip


def test_a_tcp_peer_is_its_address_alone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        connection, _ = server.accept()
        with connection:
            found = peer.of(connection)
    assert found == Peer("tcp", address="127.0.0.1")
    assert found.fields() == {"peer": "tcp:127.0.0.1"}


def test_peer_data_missing_from_the_system_is_unknown() -> None:
    with socket.socket(socket.AF_INET) as unconnected:
        assert peer.of(unconnected) == Peer("tcp", address="unknown")


def test_a_caller_is_a_process_or_a_host() -> None:
    assert Peer("unix", uid=1, gid=2, pid=3).caller == Peer("unix", uid=1, gid=9, pid=3).caller
    assert Peer("unix", uid=1, gid=2, pid=3).caller != Peer("unix", uid=1, gid=2, pid=4).caller
    assert Peer("tcp", address="10.0.0.1").caller != Peer("tcp", address="10.0.0.2").caller


def test_the_credentials_of_macos_are_read_in_its_layout() -> None:
    groups = [20, 12, *[0] * 14]
    data = struct.pack("@IIh16I", 0, 501, 2, *groups)
    assert peer.parse_xucred(data) == (501, 20)
