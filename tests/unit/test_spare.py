"""The spare engine process: who uses it, and what happens if it is gone."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path

import pytest

from inferd import log
from inferd.config.entries import MockEntry
from inferd.config.settings import Settings
from inferd.config.sources import LoadedConfig
from inferd.daemon import spare as spare_module
from inferd.daemon.daemon import Daemon
from inferd.daemon.places import Places
from inferd.daemon.spare import Spare
from inferd.engine.mock import Mock
from inferd.errors import ModelError
from tests.daemon_process import is_gone
from tests.in_process import open_files, until
from tests.unit.test_engine_process import ask, finish, hosted, pid_of, restarts_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spare_module, "AFTER_SECS", 0.0)


@asynccontextmanager
async def keeping(*, wanted: bool = True) -> AsyncIterator[Spare]:
    spare = Spare(wanted)
    try:
        yield spare
    finally:
        await spare.close()


async def pid_of_spare(spare: Spare) -> int:
    """Waits until there is a spare."""
    await until(lambda: spare._program is not None)
    assert spare._program is not None
    return spare._program.pid


async def some_turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0.001)


async def test_the_second_model_runs_in_the_spare() -> None:
    async with keeping() as spare, hosted(loading=spare.loading) as first:
        ready = await pid_of_spare(spare)
        assert ready != pid_of(first)
        async with hosted(loading=spare.loading) as second:
            assert pid_of(second) == ready
            assert (await finish(await second.generate(ask(max_tokens=2)))).stop_reason == "length"
            state = second.engine_state()
            assert state is not None
            assert state.cage["seccomp"] == "yes"


async def test_a_crashed_model_is_restarted_in_the_spare() -> None:
    async with keeping() as spare, hosted(loading=spare.loading) as model:
        for restarts in (1, 2):  # the end of a process that was a spare is not the end of the next spare
            ready = await pid_of_spare(spare)
            os.kill(pid_of(model), signal.SIGSEGV)
            await until(lambda: restarts_of(model) == restarts and pid_of(model) != 0)  # noqa: B023
            assert (await finish(await model.generate(ask(max_tokens=2)))).stop_reason == "length"
            assert pid_of(model) == ready


async def test_a_load_without_a_spare_starts_a_process() -> None:
    async with (
        keeping() as spare,
        hosted(loading=spare.loading) as first,
        hosted(loading=spare.loading) as second,  # at once, so no spare could be started
    ):
        assert pid_of(second) not in (0, pid_of(first))


async def test_a_spare_that_has_just_died_does_no_harm() -> None:
    async with keeping() as spare, hosted(loading=spare.loading):
        dead = await pid_of_spare(spare)
        os.kill(dead, signal.SIGKILL)  # its end is noticed only after it was taken
        async with hosted(loading=spare.loading) as model:
            assert pid_of(model) != dead
            assert is_gone(dead)
            assert (await finish(await model.generate(ask(max_tokens=2)))).stop_reason == "length"


async def test_a_spare_that_was_stopped_is_used() -> None:
    async with keeping() as spare, hosted(loading=spare.loading):
        ready = await pid_of_spare(spare)
        os.kill(ready, signal.SIGSTOP)
        state = Path(f"/proc/{ready}/stat")
        await until(lambda: state.read_text().rpartition(")")[2].split()[0] == "T")
        async with hosted(loading=spare.loading) as model:
            assert pid_of(model) == ready
            assert (await finish(await model.generate(ask(max_tokens=2)))).stop_reason == "length"


async def test_a_load_that_crashes_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has answered is not taken for a dead spare."""
    async with keeping() as spare, hosted(loading=spare.loading):
        ready = await pid_of_spare(spare)
        phases: list[str] = []

        def crash(phase: str, details: dict[str, object]) -> None:
            if not phases:
                os.kill(ready, signal.SIGSEGV)
            phases.append(phase)

        with pytest.raises(ModelError, match="SIGSEGV"):
            async with hosted(loading=spare.loading, progress=crash):
                raise AssertionError("it was loaded by another process")
        assert phases


async def test_a_spare_that_has_ended_is_reaped_and_leaves_nothing_open() -> None:
    async with keeping() as spare, hosted(loading=spare.loading):
        before = open_files()
        dead = await pid_of_spare(spare)
        assert open_files() != before
        os.kill(dead, signal.SIGKILL)
        await until(lambda: spare._program is None)
        assert is_gone(dead)
        assert open_files() == before
        async with hosted(loading=spare.loading) as model:
            assert pid_of(model) != 0


async def test_no_spare_is_started_before_the_last_load_has_ended() -> None:
    async with keeping() as spare:
        with spare.loading():
            pass
        with spare.loading():  # the spare was due already
            await some_turns()
            assert spare._program is None
            with spare.loading():
                pass
            await some_turns()
            assert spare._program is None
        await pid_of_spare(spare)


async def test_no_spare_is_started_before_a_model_was_loaded() -> None:
    async with keeping() as spare:
        with pytest.raises(ModelError), spare.loading():
            raise ModelError("it cannot be loaded")
        await some_turns()
        assert spare._program is None


async def test_a_daemon_that_wants_none_has_none() -> None:
    async with keeping(wanted=False) as spare:
        with spare.loading():
            pass
        await some_turns()
        assert spare._program is None


async def test_a_reload_ends_or_starts_the_spare() -> None:
    before = open_files()
    async with keeping() as spare:
        with spare.loading():
            pass
        ready = await pid_of_spare(spare)
        await spare.follow(wanted=False)
        assert is_gone(ready)
        assert open_files() == before
        with spare.loading() as program:
            assert program is None
        await some_turns()
        assert spare._program is None
        await spare.follow(wanted=True)
        assert not is_gone(await pid_of_spare(spare))
    assert open_files() == before


async def test_a_spare_that_cannot_be_started_is_tried_again_after_the_next_load(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*args: object, **options: object) -> None:
        tried.set()
        raise BlockingIOError("no more processes")

    tried, before, errors = asyncio.Event(), open_files(), []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context))
    async with keeping() as spare:
        with monkeypatch.context() as patch:
            patch.setattr(subprocess, "Popen", refuse)
            with spare.loading():
                pass
            await tried.wait()
        assert spare._program is None
        assert not errors
        assert open_files() == before
        with spare.loading():
            pass
        await pid_of_spare(spare)


@contextmanager
def daemon_of(given: LoadedConfig, then: LoadedConfig) -> Iterator[tuple[Daemon, log.ActivityLog]]:
    """A daemon that has not booted, whose next configuration is ``then``, and its log."""
    activity = log.ActivityLog(log.parse_level("info"))
    with closing(Places(given, early=False)) as places:
        yield Daemon(given, lambda: then, lambda *_: Mock("mock"), activity, places), activity


async def test_a_reload_that_is_cancelled_while_the_spare_ends_is_applied(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Settings(backends=(MockEntry(name="mock"),), spare_engine=True)
    given, then = (
        LoadedConfig(settings, Path("config.json"))
        for settings in (old, old.replaced(spare_engine=False, max_connections=7, log_level="debug"))
    )
    with daemon_of(given, then) as (daemon, activity):
        ends = asyncio.Event()

        async def end_slowly(wanted: bool) -> None:
            ends.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(daemon._spare, "follow", end_slowly)
        reload = asyncio.create_task(daemon._reload())
        await ends.wait()
        reload.cancel()
        await asyncio.wait((reload,))
        assert daemon._server.places.limit == 7
        assert activity.level == log.parse_level("debug")


async def test_a_daemon_that_stops_starts_no_spare(home: Path) -> None:
    given = LoadedConfig(Settings(backends=(MockEntry(name="mock"),), spare_engine=True), Path("config.json"))
    with daemon_of(given, given) as (daemon, _):
        with daemon._spare.loading():
            pass
        await daemon._drain()
        await some_turns()
        program = daemon._spare._program
        await daemon._spare.close()
        assert program is None
