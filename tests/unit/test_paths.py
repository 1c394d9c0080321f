"""Where things lie, by environment."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from inferd.config import paths

HOME = {"HOME": "/home/ada"}


def test_runtime_dir_on_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    assert paths.runtime_dir({**HOME, "XDG_RUNTIME_DIR": "/run/user/7"}) == Path("/run/user/7/inferd")
    assert paths.runtime_dir({**HOME, "TMPDIR": "/var/t"}) == Path("/home/ada/.inferd/run")
    assert paths.runtime_dir({}) == Path(f"/tmp/inferd-{os.getuid()}")


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
