"""Memory for the models of a reload: which models are unloaded for it, in which order, and when they are
loaded again."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from inferd.config.entries import MockEntry
from inferd.config.settings import Settings
from inferd.daemon.backends import Backends
from inferd.daemon.room import Room
from inferd.engine.backend import EngineState
from inferd.engine.mock import Mock
from inferd.errors import ModelTooLarge
from inferd.serve.pool import BackendSlot
from inferd.serve.queues import Queues
from inferd.serve.router import Router
from tests.daemon_process import is_gone
from tests.home import MIB, Home, Model
from tests.in_process import PATIENCE_SECS, until
from tests.unit.test_engine_process import ask, finish, hosted, pid_of, restarts_of


class Large(Mock):
    """A mock that takes a mebibyte unless it rests."""

    resting = False
    living = True

    def alive(self) -> bool:
        return self.living

    def engine_state(self) -> EngineState:
        return EngineState(estimate_bytes=0 if self.resting else MIB)

    async def rest(self) -> None:
        self.resting = True

    def wake(self) -> None:
        self.resting = False


class Reload:
    """A reload that drops the backends ``a``, ``b`` and ``c`` for new ones."""

    def __init__(self, home: Home, budget: int) -> None:
        self.home = home
        self.settings = Settings(memory_budget_bytes=budget)
        self.queues = Queues(1, 4)
        self.old = [Large(name) for name in "abc"]
        self.router: Router = home.router
        self.router.replace(self.old)
        self.room = Room(self.router, self.queues, home.models.residents)
        self.told: list[object] = []

    async def make(self, new: Mock | None = None) -> None:
        await self.room.make(
            self.settings,
            new or Large("new"),
            self.router.members,
            lambda phase, details: self.told.append(details["unloading"]),
        )

    def resting(self) -> list[str]:
        return [backend.name for backend in self.old if backend.resting]

    def slot(self, name: str) -> BackendSlot:
        return next(slot for slot in self.router.members if slot.backend.name == name)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@pytest.mark.parametrize(
    ("room_for", "resting"), [(4, []), (3, ["a"]), (2, ["a", "b"]), (0, ["a", "b", "c"])]
)
async def test_no_more_models_rest_than_must(home: Home, room_for: int, resting: list[str]) -> None:
    reload = Reload(home, max(1, room_for * MIB))
    await reload.make()
    assert reload.resting() == reload.told == resting
    assert [name for name in "abc" if reload.room.rests(reload.slot(name))] == resting
    assert reload.room.end() == resting
    assert reload.resting() == []


async def test_a_backend_without_a_model_needs_no_room(home: Home) -> None:
    reload = Reload(home, MIB)
    await reload.make(Mock("new"))
    assert reload.resting() == []


async def test_a_reload_waits_for_no_replaced_backend_without_a_model(home: Home) -> None:
    reload = Reload(home, 3 * MIB)
    request = asyncio.create_task(asyncio.Event().wait())
    home.models.residents.retiring[request] = Mock("remote")  # type: ignore[index]
    await asyncio.wait_for(reload.make(), PATIENCE_SECS)
    assert reload.resting() == ["a"]
    request.cancel()


async def test_idle_models_on_demand_leave_first(home: Home) -> None:
    await home.use("a")
    await home.use("b")
    assert home.resident() == {"a", "b"}
    reload = Reload(home, 4 * MIB + home.need("b"))
    await reload.make()
    assert [model.closed for model in home.made] == [True, False], "the least recently used one"
    assert reload.resting() == []
    await home.models.close()


async def test_a_first_backend_gets_the_room_of_models_on_demand(home: Home) -> None:
    home.router.replace([])
    room = Room(home.router, Queues(1, 4), home.models.residents)
    backends = Backends(home.router, lambda settings, entry, *_: Large(entry.name), room)
    backends.use([])
    await home.use("a")
    wanted = Settings(backends=(MockEntry(name="new"),), memory_budget_bytes=MIB)
    backends.use(await backends.make(wanted, lambda phase, details: None))
    await backends.settle()
    assert [model.closed for model in home.made] == [True]
    await backends.close()
    await home.models.close()


async def test_a_broken_model_gives_its_room_to_its_successor(home: Home) -> None:
    home.router.replace([])
    room = Room(home.router, Queues(1, 4), home.models.residents)
    backends = Backends(home.router, lambda settings, entry, *_: Large(entry.name), room)
    wanted = Settings(backends=(MockEntry(name="model"),), memory_budget_bytes=MIB)
    (broken,) = await backends.make(wanted, lambda phase, details: None)
    assert isinstance(broken, Large)
    backends.use([broken])
    broken.living = False
    backends.use(await backends.make(wanted, lambda phase, details: None))
    assert broken.resting
    await backends.settle()
    await backends.close()


async def test_a_model_on_demand_leaves_the_room_to_the_reload(tmp_path: Path) -> None:
    need = Home(tmp_path).need("a")
    home = Home(tmp_path, memory_budget_bytes=need + MIB // 2)
    reload = Reload(home, MIB)
    await reload.make()
    reload.router.replace([])  # so that `a` is a model on demand
    with pytest.raises(ModelTooLarge):
        await home.use("a")
    reload.room.end()
    await home.use("a")
    await home.models.close()


async def test_a_model_on_demand_takes_no_room_that_a_reload_makes(tmp_path: Path) -> None:
    need = Home(tmp_path).need("a")
    home = Home(tmp_path, memory_budget_bytes=need + MIB + MIB // 2)
    reload = Reload(home, MIB)
    with await reload.queues.of("c").admit("caller"):
        making = asyncio.ensure_future(reload.make())
        await until(lambda: reload.told == ["a", "b", "c"])
        reload.router.replace(reload.old[2:])  # so that `a` is a model on demand
        with pytest.raises(ModelTooLarge):
            await home.use("a")
    await making
    reload.room.end()
    await home.models.close()


async def test_a_reload_takes_no_room_of_a_model_on_demand_whose_file_is_still_read(tmp_path: Path) -> None:
    need = Home(tmp_path).need("a")
    home = Home(tmp_path, memory_budget_bytes=need + 2 * MIB)
    reload = Reload(home, need + 2 * MIB)
    reload.router.replace(reload.old[1:])  # so that `a` is a model on demand
    reads, read = threading.Event(), threading.Event()

    def build(*given: Any) -> Model:
        reads.set()
        read.wait(PATIENCE_SECS)
        return home.build(*given)

    home.models._build = build
    loading = asyncio.ensure_future(home.use("a"))
    await until(reads.is_set)
    await reload.make()
    resting = reload.resting()
    read.set()
    await loading
    assert resting == ["b"]
    reload.room.end()
    assert not home.models.residents.granted
    await home.models.close()


async def test_a_model_rests_once_its_requests_have_ended_and_queued_ones_wait(home: Home) -> None:
    reload = Reload(home, 3 * MIB)
    queue = reload.queues.of("a")
    running = await queue.admit("caller")
    queued = asyncio.ensure_future(queue.admit("caller"))
    making = asyncio.ensure_future(reload.make())
    await until(lambda: reload.told == ["a"])
    await asyncio.sleep(0)
    assert (reload.resting(), making.done()) == ([], False)
    with running:
        pass
    await making
    assert reload.resting() == ["a"]
    late = asyncio.ensure_future(queue.admit("another"))
    await asyncio.sleep(0)
    assert (queued.done(), late.done(), queue.waiting) == (False, False, 2)
    reload.room.end()
    with await queued:
        pass
    with await late:
        pass


async def test_a_model_that_was_replaced_does_not_return(home: Home) -> None:
    reload = Reload(home, 2 * MIB)
    await reload.make()
    reload.router.replace(reload.old[1:])
    assert reload.room.end() == ["b"]
    assert reload.resting() == ["a"]


async def test_a_cancelled_rest_leaves_no_process_behind() -> None:
    async with hosted() as model:
        os.kill(pid_of(model), signal.SIGKILL)
        await until(lambda: restarts_of(model) == 1 and model._serving is not None)
        old = pid_of(model)
        resting = asyncio.create_task(model.rest())
        await asyncio.sleep(0)
        resting.cancel()
        await asyncio.wait((resting,))
        model.wake()
        await until(lambda: is_gone(old))
        assert (await finish(await model.generate(ask(max_tokens=2)))).stop_reason == "length"


async def test_a_model_takes_its_memory_until_its_process_has_ended() -> None:
    async with hosted() as model:
        model._gpu_bytes = {"G0": MIB}
        pid = pid_of(model)
        os.kill(pid, signal.SIGSTOP)
        resting = asyncio.create_task(model.rest())
        await until(lambda: model._serving is None)
        assert (pid_of(model), model.engine_state().gpu_bytes) == (pid, {"G0": MIB})
        await resting
        assert (pid_of(model), model.engine_state().gpu_bytes) == (0, {})
