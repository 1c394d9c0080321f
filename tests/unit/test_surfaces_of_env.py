"""The default addresses of a client: it follows the daemon's settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from inferd import AdminClient, AsyncClient, Client, errors
from inferd.cli.options import target
from inferd.client.address import Addresses, default_admin_address, endpoint
from inferd.config import paths, surfaces
from tests.cases import cases

Env = dict[str, str]


@pytest.fixture
def env(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Env:
    """The real environment, with a home and a runtime directory of its own."""
    for name in ("INFERD_ADDRESS", "INFERD_UDS", "INFERD_TCP", "INFERD_CONFIG", "INFERD_ADMIN_ADDR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(short_dir))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_dir))
    return {"HOME": str(short_dir), "XDG_RUNTIME_DIR": str(short_dir)}


def configure(env: Env, content: object) -> None:
    path = paths.config_path(env)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content), "utf-8-sig")


def test_without_settings_the_default_path_is_used(env: Env) -> None:
    assert surfaces.addresses(env) == {}
    assert Client().address == paths.socket_path("v1", env)


@pytest.mark.parametrize(
    ("variables", "file", "expected"),
    [
        ({"INFERD_ADDRESS": "/x/infer.sock", "INFERD_TCP": "127.0.0.1:1"}, {}, "/x/infer.sock"),
        ({"INFERD_ADDRESS": "tcp://127.0.0.1:7", "INFERD_ADMIN_ADDR": "/a"}, {}, "tcp://127.0.0.1:7"),
        ({"INFERD_UDS": "/x/own.sock"}, {}, "/x/own.sock"),
        ({"INFERD_TCP": "127.0.0.1:8"}, {}, "tcp://127.0.0.1:8"),
        ({}, {"listen": {"tcp": "127.0.0.1:9"}}, "tcp://127.0.0.1:9"),
        ({"INFERD_UDS": "/x/own.sock"}, {"listen": {"tcp": "127.0.0.1:9"}}, "/x/own.sock"),
    ],
)
def test_clients_follow_the_daemons_settings(
    env: Env, monkeypatch: pytest.MonkeyPatch, variables: Env, file: dict[str, object], expected: str
) -> None:
    configure(env, file)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert str(Client().address) == str(AsyncClient().address) == expected
    assert Client("/given").address == "/given"


def test_other_surfaces_follow(env: Env, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERD_ADDRESS", "/x/infer.sock")
    assert default_admin_address() == Path("/x/admin.sock")
    monkeypatch.setenv("INFERD_ADDRESS", "/x/inferd.sock")
    assert default_admin_address() == Path("/x/admin.sock")
    monkeypatch.setenv("INFERD_ADDRESS", "/x/own.sock")
    with pytest.raises(errors.UsageError, match="set INFERD_ADMIN_ADDR"):
        default_admin_address()
    monkeypatch.setenv("INFERD_ADMIN_ADDR", "/y/admin.sock")
    assert default_admin_address() == "/y/admin.sock"
    for name in ("INFERD_ADDRESS", "INFERD_ADMIN_ADDR"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("INFERD_UDS", "/x/own.sock")
    found = Addresses(surfaces.addresses())
    assert found.of("v2") == "/x/infer.v2.sock"
    assert found.of("admin") == str(paths.socket_path("admin", env))
    with pytest.raises(errors.DaemonUnreachable, match="no daemon is running"):
        AdminClient()


@cases("content", ["", "[]", '{"listen": 3}', "{", "\xff"])
def test_an_invalid_file_is_left_to_the_daemon(env: Env, content: str) -> None:
    path = paths.config_path(env)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content.encode("latin-1"))
    assert surfaces.addresses(env) == {}


def test_the_key_of_the_environment_is_for_its_address(env: Env, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERD_API_KEY", "k")
    monkeypatch.setenv("INFERD_TCP", "127.0.0.1:8")
    assert Client()._api_key == "k"
    assert Client("tcp://127.0.0.1:9")._api_key is None


def test_a_surface_is_found_next_to_the_address_of_a_command(env: Env) -> None:
    assert target("/x/infer.sock", None, "v2").address == "/x/infer.v2.sock"
    assert target("/x/infer.sock", None).v2_address == "/x/infer.v2.sock"
    assert target("/x/own.sock", None, "v2").address == "/x/own.sock"
    assert target("tcp://127.0.0.1:9", None, "v2").address == "tcp://127.0.0.1:9"


def test_every_socket_of_a_daemon_names_the_daemon(short_dir: Path) -> None:
    v1, v2 = short_dir / "infer.sock", short_dir / "infer.v2.sock"
    assert target(str(v2), None).address == str(v2)  # v1 may be elsewhere
    v1.touch()
    for name in (v2, short_dir / "inferd.sock"):
        assert Addresses({"v1": name}).of("v1") == v1
        assert target(str(name), None).address == str(v1)
        assert target(str(name), None).v2_address == str(v2)
    assert Addresses({"v1": v1}).of("v1") == v1


def test_a_shared_daemon_without_an_admin_socket_is_not_reported_as_missing(short_dir: Path) -> None:
    missing = endpoint(short_dir / "admin.sock", "admin")
    assert "no daemon is running" in str(missing.unreachable(FileNotFoundError()))
    (short_dir / "infer.sock").touch()
    assert "a daemon seems to run" in str(missing.unreachable(FileNotFoundError()))


def test_no_advice_to_join_a_group_without_access_to_the_status() -> None:
    denied = PermissionError(13, "Permission denied")
    assert "group" in str(endpoint("/x/infer.sock", "v1").unreachable(denied))
    told = str(endpoint("/x/admin.sock", "admin").unreachable(denied))
    assert "is only for the user that runs the daemon" in told
