"""The default paths, by environment."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from inferd.config import paths
from inferd.store.runtime import Lock

HOME = {"HOME": "/home/ada"}


def test_runtime_dir_on_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    assert paths.runtime_dir({**HOME, "XDG_RUNTIME_DIR": "/run/user/7"}) == Path("/run/user/7/inferd")
    assert paths.runtime_dir({**HOME, "TMPDIR": "/var/t"}) == Path("/home/ada/.inferd/run")
    assert paths.runtime_dir({}) == Path(f"/tmp/inferd-{os.getuid()}")


def test_with_and_without_the_variable_it_is_the_directory_in_which_a_daemon_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(paths, "_SESSIONS", tmp_path / "sessions")
    session = tmp_path / "sessions" / str(os.getuid())
    bare = {"HOME": str(tmp_path / "home")}
    logged_in = {**bare, "XDG_RUNTIME_DIR": str(session)}
    in_session, in_home = session / "inferd", tmp_path / "home" / ".inferd" / "run"
    assert (paths.runtime_dir(bare), paths.runtime_dir(logged_in)) == (in_home, in_session)
    for place in (in_session, in_home):
        with Lock.acquire(place / "inferd.lock"):
            assert paths.runtime_dir(bare) == paths.runtime_dir(logged_in) == place
            elsewhere = {**bare, "XDG_RUNTIME_DIR": str(tmp_path / "own")}  # a choice is never overruled
            assert paths.runtime_dir(elsewhere) == tmp_path / "own" / "inferd"
    assert (paths.runtime_dir(bare), paths.runtime_dir(logged_in)) == (in_home, in_session)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's directory")
def test_a_directory_of_another_user_is_not_looked_at(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(paths, "_SESSIONS", tmp_path)
    place = tmp_path / str(os.getuid()) / "inferd"
    with Lock.acquire(place / "inferd.lock"):
        os.chown(place, 65534, 65534)
        assert paths.runtime_dir(HOME) == Path("/home/ada/.inferd/run")


def test_runtime_dir_on_macos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    env = {**HOME, "TMPDIR": "/var/folders/T", "XDG_RUNTIME_DIR": "/run/user/7"}
    assert paths.runtime_dir(env) == Path("/var/folders/T/inferd")


@pytest.mark.parametrize("value", ["", "run/user/7", "."])
def test_an_empty_or_relative_variable_counts_as_unset(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    env = {**HOME, "XDG_RUNTIME_DIR": value, "XDG_DATA_HOME": value}
    assert paths.runtime_dir(env) == Path("/home/ada/.inferd/run")
    assert paths.models_home(env) == Path("/home/ada/.local/share/models")


def test_sockets_have_the_leaf_names_of_the_wire() -> None:
    directory = paths.runtime_dir(HOME)
    assert paths.socket_path("v1", HOME) == directory / "infer.sock"
    assert paths.socket_path("v2", HOME) == directory / "infer.v2.sock"
    assert paths.socket_path("framed", HOME) == directory / "inferd.sock"
    assert paths.socket_path("embed", HOME) == directory / "infer.embed.sock"
    assert paths.socket_path("admin", HOME) == directory / "admin.sock"
    assert paths.lock_path(HOME) == directory / "inferd.lock"


def test_state_lies_below_home() -> None:
    assert paths.config_path(HOME) == Path("/home/ada/.inferd/config.json")
    assert paths.history_path(HOME) == Path("/home/ada/.inferd/history")
    assert paths.log_dir(HOME) == Path("/home/ada/.inferd/logs")


def test_models_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    assert paths.models_home({**HOME, "XDG_DATA_HOME": "/data"}) == Path("/data/models")
    assert paths.models_home({**HOME, "XDG_DATA_HOME": "/data", "MODELS_HOME": "/m"}) == Path("/m")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert paths.models_home(HOME) == Path("/home/ada/Library/Application Support/models")


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/9")
    assert paths.runtime_dir() == Path("/run/user/9/inferd")
