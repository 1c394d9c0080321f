"""Models on demand: each is loaded once for all requests, is kept while it is used, and never evicts a busy
model."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest

from inferd.config.entries import LlamaCppEntry, ModelSpec
from inferd.config.settings import Settings
from inferd.errors import (
    AdmissionClosed,
    DeadlineExceeded,
    ModelError,
    ModelNotFound,
    ModelTooLarge,
    QueueFull,
)
from inferd.serve.models import USUAL
from tests.home import Home
from tests.in_process import Clock, until


async def test_a_model_is_loaded_when_it_is_named_and_stays(tmp_path: Path) -> None:
    home = Home(tmp_path)
    await home.use("a")
    await home.use("a")
    assert [model.name for model in home.made] == ["a"]
    assert home.told == [("a", "loading"), ("a", "resident")]
    await home.models.close()
    assert home.made[0].closed
    assert home.resident() == set()


async def test_waiting_requests_share_one_load(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.gate.clear()
    uses = [asyncio.create_task(home.use("a")) for _ in range(5)]
    await until(lambda: bool(home.made))
    home.gate.set()
    await asyncio.gather(*uses)
    assert len(home.made) == 1
    await home.models.close()


async def test_waiters_get_the_phases_and_a_latecomer_the_current_one(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.gate.clear()
    early: list[str] = []
    late: list[str] = []

    async def use(shown: list[str]) -> None:
        async with home.models.hold("a", None, USUAL, lambda phase, details: shown.append(phase)):
            pass

    first = asyncio.create_task(use(early))
    await until(lambda: len(home.progresses) == 1)
    assert early == ["waiting"]
    await asyncio.to_thread(home.progresses[0], "mmap", {"progress": 0.5})
    await until(lambda: early == ["waiting", "mmap"])
    second = asyncio.create_task(use(late))
    await until(lambda: late == ["mmap"])
    second.cancel()
    await asyncio.wait((second,))
    await asyncio.to_thread(home.progresses[0], "kv_cache", {})
    await until(lambda: early == ["waiting", "mmap", "kv_cache"])
    home.gate.set()
    await first
    assert early == ["waiting", "mmap", "kv_cache", "loaded"]
    await use(late)
    assert late == ["mmap"]  # it has left, and has nothing to wait for
    await home.models.close()


async def test_a_configured_backend_is_used_unchanged(tmp_path: Path) -> None:
    home = Home(tmp_path)
    await home.use("main")
    assert home.made == []


async def test_an_unknown_name_suggests_the_nearest(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with pytest.raises(ModelNotFound, match="no model 'brokn'; did you mean 'broken'"):
        await home.use("brokn")
    with pytest.raises(ModelNotFound, match="inferd list"):
        await home.use("zzzzzzzzzzzz")
    with pytest.raises(ModelNotFound, match="no model"):
        await home.use("../../etc/passwd")
    with pytest.raises(ModelNotFound):
        await home.use("x" * 60_000)


async def test_a_model_without_its_file_is_never_downloaded(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with pytest.raises(ModelNotFound, match="run `inferd pull smollm2-135m-instruct`"):
        await home.use("smollm2")
    assert home.made == []


async def test_a_failed_load_fails_the_waiters_and_may_be_retried(tmp_path: Path) -> None:
    home = Home(tmp_path)
    for _ in range(2):
        with pytest.raises(ModelError, match="cannot be loaded"):
            await home.use("broken")
    assert all(model.closed for model in home.made)
    assert home.told[-1] == ("broken", "failed")
    await home.use("a")
    await home.models.close()


async def test_an_idle_model_gives_way_and_a_busy_one_does_not(tmp_path: Path) -> None:
    home = Home(tmp_path, active_permits=1)
    need = home.need("a")
    home.models.settings = Settings(
        models_home=tmp_path, keep_alive_secs=0.0, active_permits=1, memory_budget_bytes=2 * need + need // 2
    )
    await home.use("a")
    await home.use("b")
    async with home.models.hold("a", None):
        await home.use("c")  # b is unused for longer than a, and a is in use
        assert home.resident() == {"a", "c"}
    await home.models.close()


async def test_a_busy_model_ends_its_requests_first_and_gets_no_further_ones(tmp_path: Path) -> None:
    home = Home(tmp_path, active_permits=1)
    need = home.need("a")
    home.models.settings = Settings(
        models_home=tmp_path, keep_alive_secs=0.0, active_permits=1, memory_budget_bytes=need + need // 2
    )
    served: list[str] = []

    async def use(name: str) -> None:
        async with home.models.hold(name, None):
            served.append(name)
            assert home.resident() == {name}

    async with home.models.hold("a", None):
        other = asyncio.create_task(use("b"))
        await until(lambda: home.models.residents.by_name["a"].drained is not None)
        late = asyncio.create_task(use("a"))
        await until(lambda: set(home.models._loads) == {"a", "b"})
        assert home.resident() == {"a"}
    await asyncio.gather(other, late)
    assert served == ["b", "a"]
    await home.models.close()


async def test_a_model_keeps_serving_if_its_replacement_is_cancelled(tmp_path: Path) -> None:
    home = Home(tmp_path, active_permits=1)
    need = home.need("a")
    home.models.settings = Settings(
        models_home=tmp_path, keep_alive_secs=0.0, active_permits=1, memory_budget_bytes=need + need // 2
    )
    async with home.models.hold("a", None):
        other = asyncio.create_task(home.use("b"))
        await until(lambda: home.models.residents.by_name["a"].drained is not None)
        late = asyncio.create_task(home.use("a"))
        await until(lambda: "a" in home.models._loads)
        home.models._loads["b"].task.cancel()
        await late
    with pytest.raises(AdmissionClosed):
        await other
    assert len(home.made) == 1
    await home.models.close()


async def test_a_model_that_never_fits_is_refused_with_the_numbers(tmp_path: Path) -> None:
    home = Home(tmp_path, active_permits=1)
    home.models.settings = Settings(
        models_home=tmp_path, keep_alive_secs=0.0, active_permits=1, memory_budget_bytes=home.need("a") // 2
    )
    with pytest.raises(ModelTooLarge, match=r"'b' needs about .* MiB"):
        await home.use("b")
    await home.models.close()


async def test_an_idle_model_is_unloaded_after_a_while(tmp_path: Path) -> None:
    home, clock = Home(tmp_path, keep_alive_secs=600.0), Clock()
    async with home.models.hold("a", None):
        await clock.advance(1000)
        assert home.resident() == {"a"}
    await clock.advance(599)
    assert home.resident() == {"a"}
    await clock.advance(1)
    await until(lambda: home.told[-1] == ("a", "unloaded"))
    assert home.made[0].closed
    await home.use("a")
    assert len(home.made) == 2
    await home.models.close()


async def test_a_request_that_comes_as_its_model_is_unloaded_has_it_loaded_again(tmp_path: Path) -> None:
    home = Home(tmp_path, keep_alive_secs=600.0)
    await home.use("a")
    home.models._unload_idle("a", home.models.residents.by_name["a"])  # what the alarm calls
    async with home.models.hold("a", None) as name:
        await until(lambda: home.made[0].closed)
        with home.router.dispatch(model=name) as backend:
            assert backend is home.made[1]
    await home.models.close()


async def test_an_unloading_ends_though_its_caller_leaves(tmp_path: Path) -> None:
    home = Home(tmp_path)
    await home.use("a")
    with home.router.dispatch(model="a"):
        release = asyncio.create_task(home.models.release("a"))
        await until(lambda: "a" not in home.resident())
        release.cancel()
        await asyncio.wait((release,))
    await home.models.close()
    assert home.made[0].closed


async def test_a_deadline_ends_the_wait_and_not_the_load(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.gate.clear()
    with pytest.raises(DeadlineExceeded, match="was loaded"):
        await home.use("a", asyncio.get_running_loop().time())
    await until(lambda: bool(home.made))
    home.gate.set()
    await home.use("a")
    assert len(home.made) == 1
    await home.models.close()


async def test_waiters_for_one_model_take_no_place_of_another(tmp_path: Path) -> None:
    home = Home(tmp_path, queue_depth=2)
    home.gate.clear()
    uses = [asyncio.create_task(home.use("a")) for _ in range(2)]
    await until(lambda: bool(home.made))
    with pytest.raises(QueueFull):
        await home.use("a")
    await home.use("main")
    home.gate.set()
    await asyncio.gather(*uses)
    await home.models.close()


async def test_a_stop_ends_the_waiting(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.gate.clear()
    use = asyncio.create_task(home.use("a"))
    await until(lambda: bool(home.made))
    home.models.stop()
    with pytest.raises(AdmissionClosed):
        await use
    await home.models.close()
    assert home.made[0].closed


async def test_a_model_whose_configuration_changes_is_unloaded_after_its_requests(tmp_path: Path) -> None:
    entry = LlamaCppEntry(name="tall", model=ModelSpec(name="a"), n_ctx=16, preload=False, pin=True)
    home = Home(tmp_path, backends=(entry,), keep_alive_secs=600.0)
    before = home.models.settings
    for name in ("tall", "b"):
        await home.use(name)
    home.models.follow(before.replaced(queue_depth=before.queue_depth + 1))
    assert home.resident() == {"tall", "b"}
    async with home.models.hold("tall", None):
        home.models.follow(before.replaced(backends=(entry._replace(system="Be brief."),)))
        assert home.resident() == {"tall", "b"}
    await until(lambda: home.resident() == {"b"})
    await home.use("tall")
    assert home.entries[-1].system == "Be brief."
    home.models.follow(home.models.settings.replaced(n_batch=before.n_batch * 2))
    await until(lambda: not home.resident())
    await home.models.close()
    assert all(model.closed for model in home.made)


async def test_a_model_that_is_loaded_during_a_change_is_unloaded_too(tmp_path: Path) -> None:
    home = Home(tmp_path, keep_alive_secs=600.0)
    home.gate.clear()
    use = asyncio.create_task(home.use("a"))
    await until(lambda: bool(home.made))
    home.models.follow(home.models.settings.replaced(n_batch=64))
    home.gate.set()
    await use
    await until(lambda: not home.resident())
    await home.models.close()


async def test_the_listing_has_the_metadata_of_each_file(tmp_path: Path) -> None:
    home = Home(tmp_path)
    await home.use("a")
    rows: dict[str, Mapping[str, object]] = {str(row["name"]): row for row in await home.models.listing()}
    assert set(rows) == {"a", "b", "c", "broken"}
    assert (rows["a"]["resident"], rows["b"]["resident"]) == (True, False)
    assert (rows["a"]["architecture"], rows["a"]["embed"]) == ("bert", True)
    await home.models.close()


async def test_an_entry_that_is_not_preloaded_is_loaded_by_its_names_with_its_options(tmp_path: Path) -> None:
    entry = LlamaCppEntry(
        name="tall", model=ModelSpec(name="a"), n_ctx=16, preload=False, pin=True, aliases=("big", "large")
    )
    home = Home(tmp_path, backends=(entry,), keep_alive_secs=600.0)
    await home.use("large")
    await home.use("a")
    await home.use("tall")
    assert home.entries == [entry._replace(embed=True)]
    told = home.models.stay(next(slot for slot in home.router.all_members() if slot.backend.name == "tall"))
    assert (told["pinned"], told["stays_secs"]) == (True, None)
    rows = {row["name"]: row for row in await home.models.listing()}
    assert set(rows) == {"tall", "b", "c", "broken"}
    assert (rows["tall"]["resident"], rows["tall"]["aliases"]) == (True, ["big", "large"])
    with pytest.raises(ModelNotFound, match="did you mean 'large'"):
        await home.use("larg")
    await home.models.close()
