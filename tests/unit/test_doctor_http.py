"""``inferd doctor`` on the address of the HTTP bridge."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import trustme

from inferd.cli import check_places
from inferd.config import sources
from inferd.errors import AddressError, ConfigError
from inferd.http import files


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
    keys = home / "keys"
    monkeypatch.setenv("INFERD_HTTP_KEY_FILE", str(keys))
    keys.write_text("ada sk-1f2e3d4c5b6a7988\n")
    keys.chmod(0o644)
    with pytest.raises(ConfigError, match="can be read by other users"):
        said()
    keys.chmod(0o600)
    assert said().startswith("ok: ")


def test_a_certificate_is_usable_with_its_own_private_key_alone(tmp_path: Path) -> None:
    ca = trustme.CA()
    for name in ("own", "other"):
        made = ca.issue_cert("localhost")
        made.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / name))
        made.private_key_pem.write_to_path(str(tmp_path / f"{name}.key"))
    files.check(None, tmp_path / "own", None)
    files.check(None, tmp_path / "own", tmp_path / "own.key")
    with pytest.raises(ConfigError, match=r"the certificate .* cannot be used"):
        files.check(None, tmp_path / "own", tmp_path / "other.key")


def test_a_key_file_without_a_key_is_refused_before_the_bridge_starts(tmp_path: Path) -> None:
    """Otherwise the bridge would end at each start, while its daemon says that it is ready."""
    empty = tmp_path / "keys"
    empty.touch(0o600)
    with pytest.raises(ConfigError, match="holds no key"):
        files.check(empty, None, None)
