"""A reload in progress: no request reaches a model at rest, the memory of models that end is counted, and a
newer reload waits until the older one has ended what it began."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from inferd.config.entries import MockEntry
from inferd.config.settings import Settings
from inferd.daemon.backends import Backends
from inferd.daemon.room import Room
from inferd.engine.backend import EngineState
from inferd.engine.mock import Mock
from inferd.serve.queues import Queues
from inferd.serve.router import Route
from tests.home import MIB, Home
from tests.in_process import Gate, ask, serving, until

# A request whose backend has become unfit while it waited.


@pytest.mark.parametrize("pool", [False, True])
async def test_a_waiting_request_does_not_go_to_a_model_at_rest(tmp_path: Path, *, pool: bool) -> None:
    gate = Gate()
    first, second, far = Mock("first", pace=gate), Mock("second"), Mock("far", is_ready=False)
    routes = {first: Route(serves="m"), far: Route(serves="m", remote=True, limit=1)} if pool else None
    async with serving(tmp_path / "s", first, second, far, routes=routes) as server:
        router, queues = server.service.router, server.service.admission
        slots = {slot.backend: slot for slot in router.members}
        running, waiting = await server.connect(), await server.connect()
        await running.send(ask("running"))
        await until(lambda: gate.waiting == 1)
        await waiting.send(ask("waiting"))
        await until(lambda: queues.waiting == 1)
        slots[first].breaker.trip()
        resting = queues.of(router.queue_of(slots[second]))
        await resting.pause()
        gate.open(10)
        assert b"done" in await _last(running)
        # It waits for the model at rest, in the queue of that model.
        await until(lambda: resting.waiting == 1)
        assert slots[second].running == 0
        resting.resume()
        assert json.loads(await _last(waiting))["type"] == "done"


async def _last(client: object) -> bytes:
    while b'"token"' in (line := await client.line()):  # type: ignore[attr-defined]
        pass
    return line  # type: ignore[no-any-return]


# Memory.


class Large(Mock):
    """A mock that takes a mebibyte until it is closed, which waits for ``may_close``."""

    def __init__(self, name: str, living: list[Large]) -> None:
        super().__init__(name)
        self.living = living
        self.most = 0
        self.may_close = asyncio.Event()
        self.may_close.set()
        self.awake = True

    def engine_state(self) -> EngineState:
        return EngineState(estimate_bytes=MIB if self.awake else 0)

    async def start(self) -> None:
        self.living.append(self)
        self.most = len(self.living)

    async def rest(self) -> None:
        self.awake = False
        self.living.remove(self)

    def wake(self) -> None:
        self.awake = True
        self.living.append(self)
        self.most = len(self.living)

    async def close(self) -> None:
        await self.may_close.wait()
        if self in self.living:
            self.living.remove(self)


class Reloads:
    """Reloads of a daemon with a budget for two models of a mebibyte."""

    def __init__(self, directory: Path, budget: int = 2) -> None:
        home = Home(directory)
        home.router.replace([])
        self.router = home.router
        self.budget = budget
        self.living: list[Large] = []
        self.built: dict[str, Large] = {}
        self.told: list[str] = []
        self.room = Room(home.router, Queues(1, 4), home.models.residents)
        self.backends = Backends(home.router, lambda settings, entry, *_: self.build(entry.name), self.room)

    def build(self, name: str) -> Large:
        self.built[name] = Large(name, self.living)
        return self.built[name]

    def show(self, phase: str, details: Mapping[str, object]) -> None:
        self.told.append(phase)

    async def make(self, *names: str) -> None:
        entries = tuple(MockEntry(name=name) for name in names)
        wanted = Settings(backends=entries, memory_budget_bytes=self.budget * MIB)
        made = await self.backends.make(wanted, self.show)
        self.backends.use(made)
        await self.backends.settle()


async def rounds() -> None:
    """Lets everything run that can."""
    for _ in range(50):
        await asyncio.sleep(0)


async def test_a_replaced_model_takes_its_memory_until_its_requests_end(tmp_path: Path) -> None:
    reloads = Reloads(tmp_path)
    await reloads.make("a")
    with reloads.router.dispatch(model="a"):
        await reloads.make("b")
        third = asyncio.create_task(reloads.make("c"))
        await until(lambda: "c" in reloads.built)
        await rounds()
        assert [each.name for each in reloads.living] == ["a", "b"]
    await third
    assert max(each.most for each in reloads.built.values()) == 2
    assert reloads.told == [], "a ends anyway, so b need not rest"
    await reloads.backends.close()


async def test_a_model_on_its_way_out_takes_its_memory_until_its_process_has_ended(tmp_path: Path) -> None:
    home = Home(tmp_path, active_permits=1)
    need = home.need("a")
    home = Home(tmp_path, active_permits=1, memory_budget_bytes=2 * need + need // 2)
    await home.use("b")
    await home.use("a")
    ends = asyncio.Event()
    close = home.made[1].close

    async def close_later() -> None:
        await ends.wait()
        await close()

    home.made[1].close = close_later  # type: ignore[method-assign]
    unloading = asyncio.create_task(home.models.release("a"))
    await until(lambda: "a" not in home.resident())
    third = asyncio.create_task(home.use("c"))
    await until(lambda: "c" in home.models._loads)
    await rounds()
    assert [model.name for model in home.made] == ["b", "a"]
    ends.set()
    await asyncio.gather(unloading, third)
    assert home.resident() == {"b", "c"}, "b is idle, but need not leave"
    await home.models.close()


async def test_a_cancelled_end_of_a_reload_wakes_a_model_only_when_there_is_room(tmp_path: Path) -> None:
    reloads = Reloads(tmp_path, budget=1)
    await reloads.make("a")
    wanted = Settings(backends=(MockEntry(name="b"),), memory_budget_bytes=MIB)
    await reloads.backends.make(wanted, reloads.show)  # the next step fails
    a, b = reloads.built["a"], reloads.built["b"]
    assert (a.awake, reloads.living) == (False, [b])
    b.may_close.clear()
    settling = asyncio.create_task(reloads.backends.settle())
    await rounds()
    for _ in range(2):  # two newer reloads
        settling.cancel()
        await rounds()
    assert not a.awake, "b has not released its memory"
    b.may_close.set()
    with pytest.raises(asyncio.CancelledError):
        await settling
    assert (a.awake, a.most) == (True, 1)
    await reloads.backends.close()
