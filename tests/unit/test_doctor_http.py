"""``inferd doctor`` on the address of the HTTP bridge."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from inferd.cli import check_places
from inferd.config import sources
from inferd.errors import AddressError


def said(name: str = "HTTP bridge") -> str:
    found = {finding.name: finding for finding in check_places.sockets(sources.read({}).settings)}
    return f"{found[name].state}: {found[name].detail}"


def test_doctor_looks_at_the_address_of_the_http_bridge(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("INFERD_HTTP", address)
        assert said() == f"fail: {address} is taken by another program"
    assert said() == f"ok: {address} is free"


def test_an_address_beyond_loopback_needs_keys(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERD_HTTP", "0.0.0.0:0")
    with pytest.raises(AddressError, match="without an API key"):
        said()
    monkeypatch.setenv("INFERD_HTTP_KEY_FILE", str(home / "keys"))
    assert said().startswith("ok: ")
