"""How long a loaded model stays: keep_alive, pins, and unloading."""

from __future__ import annotations

from pathlib import Path

import pytest

from inferd.config.settings import Settings
from inferd.errors import (
    InvalidRequest,
    ModelNotFound,
    ModelTooLarge,
)
from inferd.serve.models import USUAL, Stay
from tests.home import Home
from tests.in_process import until

OWNER_SAYS_ALWAYS, OWNER_SAYS_GO = Stay(-1.0, by_owner=True), Stay(0.0, by_owner=True)


def stay(home: Home, name: str) -> tuple[object, object]:
    slot = next(slot for slot in home.router.all_members() if slot.backend.name == name)
    told = home.models.stay(slot)
    secs = told["stays_secs"]
    return told["pinned"], None if secs is None else round(float(str(secs)), -1)


async def test_a_request_may_keep_its_model_for_longer_and_only_the_owner_shorter(tmp_path: Path) -> None:
    home = Home(tmp_path, keep_alive_secs=600.0, keep_alive_max_secs=4000.0)
    wishes = [
        (USUAL, (False, 600)),
        (Stay(1000.0), (False, 1000)),
        (USUAL, (False, 1000)),
        (Stay(1.0), (False, 1000)),
        (Stay(9999.0), (False, 4000)),
        (Stay(50.0, by_owner=True), (False, 50)),
        (Stay(-1.0), (False, 4000)),
        (OWNER_SAYS_ALWAYS, (True, None)),
        (Stay(0.0), (True, None)),
    ]
    for wish, expected in wishes:
        await home.use("a", stay=wish)
        assert stay(home, "a") == expected, wish
    assert stay(home, "main") == (True, None)
    await home.use("a", stay=OWNER_SAYS_GO)
    await until(lambda: home.told[-1] == ("a", "unloaded"))
    await home.models.close()


async def test_a_pinned_model_does_not_give_way(tmp_path: Path) -> None:
    home = Home(tmp_path, active_permits=1)
    home.models.settings = Settings(
        models_home=tmp_path,
        keep_alive_secs=0.0,
        active_permits=1,
        memory_budget_bytes=home.need("a") * 3 // 2,
    )
    await home.use("a", stay=OWNER_SAYS_ALWAYS)
    with pytest.raises(ModelTooLarge):
        await home.use("b")
    await home.models.release("a")
    await home.use("b")
    assert home.resident() == {"b"}
    await home.models.close()


async def test_a_model_in_use_is_unloaded_when_its_last_request_ends(tmp_path: Path) -> None:
    home = Home(tmp_path)
    async with home.models.hold("a", None):
        async with home.models.hold("a", None):
            assert await home.models.release("a") == 2
        assert home.resident() == {"a"}
    await until(lambda: home.told[-1] == ("a", "unloaded"))
    with pytest.raises(ModelNotFound, match="'a' is not loaded"):
        await home.models.release("a")
    with pytest.raises(InvalidRequest, match="keeps 'main' loaded"):
        await home.models.release("main")
    await home.models.close()


async def test_a_request_that_began_before_the_unloading_does_not_undo_it(tmp_path: Path) -> None:
    home = Home(tmp_path, keep_alive_secs=600.0)
    async with home.models.hold("a", None, Stay(300.0, by_owner=True)):
        assert await home.models.release("a") == 1
    await until(lambda: home.told[-1] == ("a", "unloaded"))
    async with home.models.hold("a", None):
        assert await home.models.release("a") == 1
        await home.use("a", stay=Stay(300.0, by_owner=True))  # it began later, so it may
    assert stay(home, "a") == (False, 600)
    await home.models.close()
