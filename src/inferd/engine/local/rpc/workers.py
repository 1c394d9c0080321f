"""Connects to llama.cpp's RPC workers, which compute a part of a model's layers on other hosts.

The engine process is the workers' client, and connects when it loads a model. If ggml cannot reach a worker,
or loses the connection later, ggml aborts the engine process. So :func:`reach` checks each worker before a
load, and the supervisor restarts an engine that lost a worker. The protocol has no encryption and no
authentication, and a worker does whatever a client asks.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import time
from pathlib import Path

from inferd.errors import ModelError

DEFAULT_ADDRESS = "127.0.0.1:50052"
REACH_SECS = 10.0
_PAUSE_SECS = 0.1

# The greeting of ggml-rpc: a command, the size of its body, and the body; the answer has no command.
_HELLO, _CAPABILITIES_BYTES = 14, 24
_SIZE = struct.Struct("<Q")
_PROTOCOL = 7
"""The major version of the protocol, from ggml-rpc.h."""


def parts_of(endpoint: str) -> tuple[str, int]:
    """Splits ``IP:port`` into the address and the port."""
    host, _, port = endpoint.rpartition(":")
    return host, int(port)


def reach(endpoint: str, absent_secs: float = 0.0, seconds: float = REACH_SECS) -> None:
    """Waits at most ``seconds`` until the worker at ``endpoint`` answers a greeting. Raises ModelError if it
    does not.

    A worker serves one client at a time and does not answer others meanwhile. If the connection fails, tries
    again for ``absent_secs``, because the worker may be restarting.
    """
    end = time.monotonic() + absent_secs
    while True:
        try:
            _greet(endpoint, seconds)
            return
        except _Refused as error:
            if time.monotonic() >= end:
                raise ModelError(str(error)) from None
        time.sleep(_PAUSE_SECS)


class _Refused(Exception):
    """Raised if the worker cannot be reached. It may still be starting."""


def _greet(endpoint: str, seconds: float) -> None:
    try:
        with socket.create_connection(parts_of(endpoint), seconds) as sock:
            sock.sendall(bytes((_HELLO,)) + _SIZE.pack(_CAPABILITIES_BYTES) + bytes(_CAPABILITIES_BYTES))
            size = _SIZE.unpack(_exactly(sock, _SIZE.size))[0]
            major = _exactly(sock, 1)[0] if size else 0
    except TimeoutError:
        raise ModelError(
            f"the RPC worker {endpoint} does not answer; it serves one engine at a time, and may have one"
        ) from None
    except (OSError, EOFError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it closed the connection"
        raise _Refused(
            f"the RPC worker {endpoint} cannot be reached ({reason}); start it there with"
            " `inferd rpc-worker`, or take it out of `rpc`"
        ) from None
    if major != _PROTOCOL:
        raise ModelError(
            f"the RPC worker {endpoint} speaks version {major} of the protocol, and this build version"
            f" {_PROTOCOL}; install the same inferd on both hosts"
        )


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def is_protected(host: str) -> bool:
    """Returns whether traffic with the IPv4 address ``host`` stays on this machine or in a WireGuard
    tunnel."""
    if ipaddress.ip_address(host).is_loopback:
        return True
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))  # sends nothing, and chooses the local address by the route
            local = probe.getsockname()[0]
        except OSError:
            return False
    return _interface_kind(local) == "wireguard"


def _interface_kind(address: str) -> str:
    """Returns the kernel's type of the network interface that has the local ``address``, or ``""`` if the
    interface is unknown or has no type."""
    import fcntl

    for _, name in socket.if_nameindex():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            try:
                found = fcntl.ioctl(sock, 0x8915, struct.pack("256s", name.encode()[:15]))  # SIOCGIFADDR
            except OSError:
                continue
        if socket.inet_ntoa(found[20:24]) == address:
            return _device_type(name)
    return ""


def _device_type(interface: str) -> str:
    try:
        lines = Path(f"/sys/class/net/{interface}/uevent").read_text().splitlines()
    except OSError:
        return ""
    return dict(line.partition("=")[::2] for line in lines).get("DEVTYPE", "")
