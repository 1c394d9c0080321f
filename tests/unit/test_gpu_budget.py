"""The memory of GPUs: which models leave a GPU for another one, and which get fewer layers there.

The models say what they need as an engine process does. tests/live/test_gpu.py has real ones.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from inferd.config.entries import LlamaCppEntry, ModelSpec
from inferd.config.settings import Settings
from inferd.daemon import memory
from inferd.daemon.room import Room
from inferd.engine.backend import EngineState, GpuRoom, Grant, Need, Needs
from inferd.engine.mock import Mock
from inferd.errors import AdmissionClosed, ModelError, ModelTooLarge
from inferd.serve.queues import Queues
from tests.home import MIB, Home
from tests.in_process import PATIENCE_SECS, until


def needs(
    *sizes: tuple[int, int], free: int = 10, whole: int = 10, gpu: str = "G0", layers: int = -1
) -> Needs:
    """Pairs of a context and its MiB on the GPU; ``free`` and ``whole`` MiB of the GPU."""
    needed = tuple(Need(n_ctx, MIB, {gpu: size * MIB}, layers) for n_ctx, size in sizes)
    return Needs(needed, {gpu: free * MIB}, {gpu: whole * MIB})


def home_of(directory: Path, budget: int, **more: object) -> Home:
    """A home with a budget of MiB on each GPU, and enough RAM."""
    budgets = {"memory_budget_bytes": 1 << 40, "gpu_memory_budget_bytes": budget * MIB}
    return Home(directory, active_permits=1, **budgets, **more)


# The budget.


def test_the_budget_of_a_gpu() -> None:
    asked = needs((1, 1), free=6, whole=10)
    usual, limited = Settings(), Settings(gpu_memory_budget_bytes=3)
    assert memory.gpu_budgets(usual, asked, {}) == {"G0": int(0.8 * 6 * MIB)}
    assert memory.gpu_budgets(usual, asked, {"G0": 2 * MIB}) == {"G0": int(0.8 * 8 * MIB)}
    assert memory.gpu_budgets(usual, asked, {"G0": 9 * MIB}) == {"G0": 8 * MIB}, "not more than there is"
    assert memory.gpu_budgets(usual, asked, {}, share=1) == {"G0": 6 * MIB}
    assert memory.gpu_budgets(limited, asked, {}, share=1) == {"G0": 3}


# Models on demand.


async def test_the_least_recently_used_model_on_the_gpu_leaves(tmp_path: Path) -> None:
    home = home_of(tmp_path, 5)
    home.needs = needs((48, 2))
    await home.use("a")
    await home.use("b")
    await home.use("a")
    assert home.resident() == {"a", "b"}
    home.needs = needs((48, 3))
    await home.use("c")
    assert home.resident() == {"a", "c"}
    await home.models.close()


async def test_a_model_that_is_not_on_the_gpu_stays(tmp_path: Path) -> None:
    home = home_of(tmp_path, 3)
    await home.use("a")
    home.needs = needs((48, 2))
    await home.use("b")
    await home.use("c")
    assert home.resident() == {"a", "c"}
    await home.models.close()


async def test_each_gpu_has_its_own_budget(tmp_path: Path) -> None:
    home = home_of(tmp_path, 3)
    for name, gpu in (("a", "G0"), ("b", "G1")):
        home.needs = needs((48, 2), gpu=gpu)
        await home.use(name)
    assert home.resident() == {"a", "b"}
    await home.models.close()


async def test_a_shorter_context_is_preferred_to_unloading(tmp_path: Path) -> None:
    home = home_of(tmp_path, 5)
    home.needs = needs((48, 2))
    await home.use("a")
    home.needs = needs((48, 4), (32, 3))
    await home.use("b")
    assert home.resident() == {"a", "b"}
    assert home.made[1].granted == Need(32, MIB + (96 << 20), {"G0": 3 * MIB})
    await home.models.close()


async def test_a_busy_model_on_the_gpu_ends_its_requests_first(tmp_path: Path) -> None:
    home = home_of(tmp_path, 3)
    home.needs = needs((48, 2))
    async with home.models.hold("a", None):
        other = asyncio.create_task(home.use("b"))
        await until(lambda: home.models.residents.by_name["a"].drained is not None)
        assert home.resident() == {"a"}
    await other
    assert home.resident() == {"b"}
    await home.models.close()


async def test_a_model_whose_process_has_died_holds_no_memory(tmp_path: Path) -> None:
    """What it took is free now, and would otherwise count twice."""
    home = home_of(tmp_path, 0)
    home.needs = needs((48, 4), free=10)
    await home.use("a")
    home.made[0].started = False
    home.needs = needs((48, 3), free=6)
    await home.use("b")
    assert home.resident() == {"b"}
    await home.models.close()


async def test_a_model_that_was_to_leave_leaves_for_the_next_one(tmp_path: Path) -> None:
    """Requests wait for its next load, which comes after the next one's."""
    home = home_of(tmp_path, 3)
    home.needs = needs((48, 2))
    async with home.models.hold("a", None):
        first = asyncio.create_task(home.use("b"))
        await until(lambda: home.models.residents.by_name["a"].drained is not None)
        second = asyncio.create_task(home.use("c"))
        await until(lambda: bool(home.models._one_load._waiters))
        third = asyncio.create_task(home.use("a"))
        await until(lambda: "a" in home.models.residents.waiting)
        home.models._loads["b"].task.cancel()
    with pytest.raises(AdmissionClosed):
        await first
    await asyncio.wait_for(asyncio.gather(second, third), PATIENCE_SECS)
    assert home.resident() == {"a"}
    await home.models.close()


async def test_a_model_too_large_for_the_gpu_gets_fewer_layers_there(tmp_path: Path) -> None:
    home = home_of(tmp_path, 5)
    home.needs, home.part = needs((48, 7), (32, 6)), needs((48, 5), (32, 4), layers=9)
    await home.use("a")
    assert home.made[0].room == GpuRoom({"G0": 5 * MIB})
    assert home.made[0].granted == Need(48, MIB + (96 << 20), {"G0": 5 * MIB}, 9)
    await home.models.close()


async def test_fewer_layers_get_the_room_that_all_other_models_can_leave(tmp_path: Path) -> None:
    home = home_of(tmp_path, 5)
    home.needs = needs((48, 1))
    await home.use("a")
    await home.use("b")
    home.models.residents.by_name["b"].pinned = True
    home.needs, home.part = needs((48, 6)), needs((48, 4), layers=9)
    await home.use("c")
    assert home.made[2].room == GpuRoom({"G0": 4 * MIB})
    assert home.resident() == {"b", "c"}
    await home.models.close()


async def test_a_set_number_of_layers_is_kept(tmp_path: Path) -> None:
    home = home_of(tmp_path, 5)
    home.needs = needs((48, 6), layers=9)
    with pytest.raises(ModelTooLarge, match="lower its n_ctx or n_gpu_layers"):
        await home.use("a")
    assert home.made[0].room is None
    await home.models.close()


async def test_a_model_with_too_large_layers_is_refused_and_nothing_is_unloaded(tmp_path: Path) -> None:
    home = home_of(tmp_path, 3)
    home.needs = needs((48, 1))
    await home.use("c")
    async with home.models.hold("a", None):
        home.needs, home.part = needs((48, 9)), needs((48, 4), layers=1)
        with pytest.raises(ModelTooLarge, match=r"4 MiB on G0 .* 3 MiB, of which 2 MiB"):
            await home.use("b")
        assert home.resident() == {"a", "c"}
    assert home.made[2].closed
    await home.models.close()


async def test_a_model_for_a_gpu_needs_no_room_in_ram(tmp_path: Path) -> None:
    """By its header it would not fit; its process says that the weights go to the GPU."""
    home = Home(tmp_path, active_permits=1, memory_budget_bytes=97 * MIB)
    assert home.need("a") > 97 * MIB
    home.needs = needs((48, 2))
    await home.use("a")
    assert home.resident() == {"a"}
    await home.models.close()


async def test_without_a_gpu_only_the_first_refusal_starts_a_process(tmp_path: Path) -> None:
    home = Home(tmp_path, active_permits=1, memory_budget_bytes=97 * MIB)
    for _ in range(2):
        with pytest.raises(ModelTooLarge):
            await home.use("a")
    assert [model.closed for model in home.made] == [True]


# A reload.


class Large(Mock):
    """A mock that takes 2 MiB of a GPU once it was granted them, unless it rests."""

    resting = granted = False

    def __init__(self, name: str, needed: Needs) -> None:
        super().__init__(name)
        self.needed = needed
        self.grant: Grant | None = None

    def ask_first(self, grant: Grant, contexts: object = (), *, always: bool = False) -> bool:
        self.grant = grant
        return True

    async def ask(self) -> Need | GpuRoom | None:
        assert self.grant is not None
        return await self.grant(self.needed)

    def engine_state(self) -> EngineState:
        gpus = {"G0": 2 * MIB} if self.granted and not self.resting else {}
        return EngineState(estimate_bytes=0 if self.resting else MIB, gpu_bytes=gpus)

    async def rest(self) -> None:
        self.resting = True


class Exchange:
    """A daemon with the configured models ``a`` and ``b`` on its GPU, and a reload that drops both."""

    def __init__(self, home: Home, budget: int) -> None:
        self.settings = Settings(gpu_memory_budget_bytes=budget * MIB)
        self.old = [Large(name, Needs()) for name in "ab"]
        for each in self.old:
            each.granted = True
        home.router.replace(self.old)
        self.router = home.router
        self.room = Room(home.router, Queues(1, 4), home.models.residents)

    async def load(self, needed: Needs, *, first: bool = False) -> Need | GpuRoom | None:
        new = Large("new", needed)
        await self.room.make(self.settings, new, self.router.members, lambda *_: None, first=first)
        return await new.ask()

    def resting(self) -> list[str]:
        return [backend.name for backend in self.old if backend.resting]


@pytest.mark.parametrize(("budget", "resting"), [(7, []), (6, ["a"]), (3, ["a", "b"])])
async def test_no_more_models_rest_than_must(tmp_path: Path, budget: int, resting: list[str]) -> None:
    exchange = Exchange(Home(tmp_path), budget)
    granted = await exchange.load(needs((48, 3)))
    assert isinstance(granted, Need)
    assert granted.gpus == {"G0": 3 * MIB}
    assert exchange.resting() == resting


async def test_what_does_not_fit_alone_unloads_no_model(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.needs = needs((48, 1))
    await home.use("c")
    exchange = Exchange(home, 3)
    with pytest.raises(ModelError, match=r"'new' needs about 4 MiB on G0 .* 3 MiB, of which 0 MiB"):
        await exchange.load(needs((48, 4), layers=9))
    assert await exchange.load(needs((48, 4))) == GpuRoom({"G0": 3 * MIB})
    assert exchange.resting() == []
    assert home.resident() >= {"c"}
    await home.models.close()


async def test_a_reload_gets_fewer_layers_beside_a_busy_model_on_demand(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.needs = needs((48, 2))
    async with home.models.hold("c", None):
        exchange = Exchange(home, 5)
        assert await exchange.load(needs((48, 4))) == GpuRoom({"G0": 3 * MIB})
        assert isinstance(await exchange.load(needs((48, 3), layers=9)), Need)
        assert home.resident() >= {"c"}
    await home.models.close()


@pytest.mark.parametrize("first", [True, False])
async def test_a_configured_model_may_take_all_that_is_free(tmp_path: Path, *, first: bool) -> None:
    exchange = Exchange(Home(tmp_path), 0)
    for each in exchange.old:
        each.granted = False
    assert await exchange.load(needs((48, 10)), first=first)
    with pytest.raises(ModelError, match="on G0"):
        await exchange.load(needs((48, 11), layers=9), first=first)
    assert await exchange.load(needs((48, 11)), first=first) == GpuRoom({"G0": 8 * MIB})


async def test_a_model_on_demand_leaves_the_gpu_to_the_configuration(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.needs = needs((48, 2))
    await home.use("c")
    exchange = Exchange(home, 7)
    await exchange.load(needs((48, 3)))
    assert (home.resident() - {"a", "b"}, exchange.resting()) == (set(), [])
    await home.models.close()


def test_a_model_that_stays_on_the_cpu_does_not_use_a_gpu() -> None:
    entry = LlamaCppEntry(name="m", model=ModelSpec(name="m"))
    assert memory.may_use_gpu(Settings(), entry)
    assert not memory.may_use_gpu(Settings(), entry._replace(n_gpu_layers=0))
    assert not memory.may_use_gpu(Settings(), entry._replace(rpc=("127.0.0.1:1",)))
    assert not memory.may_use_gpu(Settings(force_backend="cpu"), entry)
