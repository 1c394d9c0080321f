"""Starting a background daemon."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from inferd import errors
from inferd.cli import background
from inferd.config import sources
from inferd.config.settings import DEFAULT_MODEL
from inferd.store.catalogue import CATALOGUE
from inferd.store.models import ModelStore
from tests.tiny_model import CONTENT, stock

# The background daemon.


def test_testing_a_lock_creates_nothing(home: Path) -> None:
    assert not background.is_held(home / "a" / "lock")
    assert not (home / "a").exists()


def test_a_daemon_in_another_directory_gets_absolute_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = {
        "INFERD_UDS": "s",
        "INFERD_CONFIG": "c.json",
        "MODELS_HOME": "/m",
        "INFERD_LOCK": "",
        "OTHER": "o",
    }
    assert background._absolute(given) == {
        **given,
        "INFERD_UDS": str(tmp_path / "s"),
        "INFERD_CONFIG": str(tmp_path / "c.json"),
    }


@pytest.mark.parametrize(("given", "flags"), [("", ["--idle-exit-secs", "900"]), ("5", [])])
def test_a_background_daemon_is_detached_and_stops_when_idle(
    given: str, flags: list[str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if given:
        monkeypatch.setenv("INFERD_IDLE_EXIT_SECS", given)
    seen: list[tuple[list[str], dict[str, Any]]] = []
    monkeypatch.setattr(background.subprocess, "Popen", lambda command, **how: seen.append((command, how)))
    settings, _ = sources.load({})
    background._start(settings)
    command, how = seen[0]
    assert command == [sys.executable, "-m", "inferd", "serve", *flags]
    assert (how["start_new_session"], how["cwd"], how["stdin"]) == (True, "/", subprocess.DEVNULL)
    assert how["stdout"] == how["stderr"]
    assert background.log_path(settings).stat().st_mode & 0o777 == 0o600


def test_a_stored_model_replaces_the_default_one_only_if_that_must_be_downloaded(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(background.subprocess, "Popen", lambda command, **how: seen.append(command))
    settings, _ = sources.load({})
    store = ModelStore(settings.models_home)
    stock(store, "mine", CONTENT)

    def flags(model: str | None) -> list[str]:
        background._start(sources.load({})[0], model)
        return seen[-1][6:]

    assert flags("mine") == ["--model", "mine"]
    assert flags(None) == flags("other") == []
    monkeypatch.setenv("INFERD_MODEL", "chosen")
    assert flags("mine") == []
    monkeypatch.delenv("INFERD_MODEL")
    blob = store.blob_path(CATALOGUE[DEFAULT_MODEL].sha256)
    blob.parent.mkdir(parents=True)
    blob.touch()
    assert flags("mine") == []


def test_the_log_of_the_previous_background_daemon_is_kept(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background.subprocess, "Popen", lambda command, **how: None)
    settings, _ = sources.load({})
    log = background.log_path(settings)
    background._start(settings)
    log.write_text("last words\n\n")
    assert background._last_words(settings) == "last words"
    background._start(settings)
    assert log.with_suffix(".log.1").read_text() == "last words\n\n"
    assert "said nothing" in background._last_words(settings)


class World:
    """A starter's view at each poll: whether the lock is held, and when the admin socket answers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, held: list[bool], *, child_lives: bool) -> None:
        self.held = held
        self.started_at: list[int] = []
        self.looks = 0
        self.child = SimpleNamespace(poll=lambda: None if child_lives else 1)
        monkeypatch.setattr(background, "AdminClient", self.dial)
        monkeypatch.setattr(background, "is_held", lambda lock: self.held[self.looks - 1])
        monkeypatch.setattr(background, "_start", self.start)
        monkeypatch.setattr(background.time, "sleep", lambda seconds: None)

    def dial(self, address: Path) -> str:
        self.looks += 1
        if self.looks > len(self.held):
            return "admin"
        raise errors.DaemonUnreachable("nobody")

    def start(self, settings: object, model: object) -> SimpleNamespace:
        self.started_at.append(self.looks)
        return self.child


def booting(home: Path) -> object:
    return background._booting_daemon(sources.load({})[0])


def test_a_daemon_is_started_once_and_only_when_the_lock_is_free(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(monkeypatch, [True, True, False, True, True], child_lives=True)
    assert booting(home) == ("admin", world.child)
    assert world.started_at == [3]


def test_a_daemon_that_lost_the_lock_race_is_not_restarted(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(monkeypatch, [False, True, True, True], child_lives=False)
    assert booting(home) == ("admin", None)
    assert world.started_at == [1]


def test_a_daemon_is_started_after_the_winner_of_the_lock_race_ends(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(monkeypatch, [False, True, False, True], child_lives=False)
    assert booting(home) == ("admin", None)
    assert world.started_at == [1, 3]


def test_a_daemon_that_ends_at_once_is_not_restarted(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, [False] * 9, child_lives=False)
    log = background.log_path(sources.load({})[0])
    log.parent.mkdir(parents=True)
    log.write_text("INFO starting\ninferd: the disk is full; free some space\n")
    with pytest.raises(errors.BootFailed, match=r"^the disk is full; free some space$"):
        booting(home)
    assert world.started_at == [1]
