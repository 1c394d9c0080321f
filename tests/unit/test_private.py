"""The modes of directories that inferd makes, and the owner of the config file that it reads."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from inferd import AdminClient, AsyncClient, Client, log
from inferd.config import sources
from inferd.errors import ConfigError
from inferd.private import make_private_dirs
from tests.shell import Shell

NOBODY = 65534

as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to another user")


@pytest.fixture(params=[0o022, 0o000])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(top: Path) -> dict[str, int]:
    """The mode of every directory below ``top``."""
    return {
        str(path.relative_to(top)): stat.S_IMODE(path.stat().st_mode)
        for path in top.rglob("*")
        if path.is_dir()
    }


def test_every_parent_that_is_made_is_private(tmp_path: Path, umask: int) -> None:
    make_private_dirs(tmp_path / "a" / "b" / "c")
    assert modes(tmp_path) == {"a": 0o700, "a/b": 0o700, "a/b/c": 0o700}


def test_the_log_makes_its_parents_private(tmp_path: Path, umask: int) -> None:
    activity = log.setup("info", tmp_path / "home" / ".inferd" / "logs", stderr=False)
    log.get("x").info("event")
    activity.close()
    assert set(modes(tmp_path).values()) == {0o700}


def test_the_commands_make_nothing_that_others_enter(short_dir: Path, umask: int) -> None:
    inferd = Shell(short_dir / "home")
    inferd.home.mkdir(0o700)
    done = inferd("config", "init")
    assert done.returncode == 0, done.stderr
    assert modes(short_dir) == {"home": 0o700, "home/.inferd": 0o700}


def config(path: Path, mode: int = 0o600) -> Path:
    path.write_text('{"backends": [{"kind": "mock", "name": "m"}]}')
    path.chmod(mode)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        sources.load({"config": path}, {"HOME": str(path.parent)})
    return str(caught.value)


def test_a_config_file_that_others_may_write_is_refused(tmp_path: Path) -> None:
    path = config(tmp_path / "config.json", 0o666)
    assert f"{path} can be written by other users (run: chmod go-w {path})" in refusal(path)


def test_a_config_file_in_a_directory_that_others_may_write_is_refused(tmp_path: Path) -> None:
    path = config(tmp_path / "config.json")
    tmp_path.chmod(0o777)
    assert f"chmod go-w {tmp_path})" in refusal(path)
    tmp_path.chmod(0o1777)  # no user can replace another user's file
    assert sources.load({"config": path}, {"HOME": str(tmp_path)})[0].backends


def test_the_directories_of_a_link_target_count(tmp_path: Path) -> None:
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    config(open_to_all / "config.json")
    link = tmp_path / "config.json"
    link.symlink_to(open_to_all / "config.json")
    assert sources.load({"config": link}, {"HOME": str(tmp_path)})[0].backends
    open_to_all.chmod(0o777)
    assert f"chmod go-w {open_to_all})" in refusal(link)


@as_root
def test_a_config_file_of_another_user_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    path = config(tmp_path / "config.json")
    os.chown(path, NOBODY, NOBODY)
    assert f"{path} belongs to another user" in refusal(path)


@as_root
def test_a_group_of_others_counts_and_a_group_of_ones_own_does_not(tmp_path: Path) -> None:
    path = config(tmp_path / "config.json", 0o660)
    os.chown(path, 0, 0)
    assert sources.load({"config": path}, {"HOME": str(tmp_path)})[0].backends
    os.chown(path, 0, NOBODY)
    assert f"chmod go-w {path})" in refusal(path)


def test_a_config_file_that_others_may_write_steers_no_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"listen": {"tcp": "127.0.0.1:9"}, "admin_addr": "/elsewhere"}')
    for name in ("INFERD_ADDRESS", "INFERD_UDS", "INFERD_TCP", "INFERD_ADMIN_ADDR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("INFERD_CONFIG", str(path))
    path.chmod(0o600)
    assert Client().address == "tcp://127.0.0.1:9"
    path.chmod(0o666)
    for client in (Client, AsyncClient, AdminClient):
        with pytest.raises(ConfigError, match="who could redirect your prompts"):
            client()


@as_root
def test_a_planted_config_does_not_start_a_daemon(short_dir: Path) -> None:
    """With umask 000, an older inferd left a world-writable directory, and another user put a file there."""
    inferd = Shell(short_dir)
    (short_dir / ".inferd").mkdir()
    (short_dir / ".inferd").chmod(0o777)
    os.chown(config(short_dir / ".inferd" / "config.json", 0o644), NOBODY, NOBODY)
    done = inferd("run", "hello")
    assert done.returncode == 1
    assert "belongs to another user, who could redirect your prompts" in done.stderr
    assert not inferd.is_running()
