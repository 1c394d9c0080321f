"""Building and replacing backends: which are built, which are kept, and when they are closed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import orjson
import pytest

from inferd.config.entries import BackendEntry, LlamaCppEntry, MockEntry, OpenAICompatEntry
from inferd.config.settings import Settings
from inferd.daemon import threads
from inferd.daemon.backends import Backends
from inferd.daemon.build import build_key
from inferd.daemon.residency import Residency
from inferd.daemon.room import Room
from inferd.daemon.threads import in_thread
from inferd.engine.mock import Mock
from inferd.errors import BootCancelled, ModelError
from inferd.http.models import Models
from inferd.progress import Progress
from inferd.serve.queues import Queues
from inferd.serve.router import Router
from tests.cases import cases


class Mortal(Mock):
    """A mock that records its state."""

    living = True
    started = closed = 0

    def alive(self) -> bool:
        return self.living

    async def start(self) -> None:
        self.started += 1

    async def close(self) -> None:
        self.closed += 1


def build(_: Settings, entry: BackendEntry, progress: Progress, cancelled: threading.Event) -> Mortal:
    if entry.name == "stone":
        raise ModelError("the model is of stone; choose another")
    if entry.name == "slow":
        cancelled.wait()
        raise BootCancelled("cancelled")
    return Mortal(entry.name, is_ready=entry.name != "lazy")


def settings(*names: str, **more: Any) -> Settings:
    return Settings(backends=tuple(MockEntry(name=name) for name in names), **more)


def show(phase: str, details: Mapping[str, object]) -> None: ...


def backends_of(router: Router) -> Backends:
    models = Residency(router, build, Settings(), lambda name, state, details: None)
    return Backends(router, build, Room(router, Queues(1, 0), models.residents))


class Exchange:
    """Backends with a router."""

    def __init__(self) -> None:
        self.router = Router(())
        self.backends = backends_of(self.router)

    async def take_on(self, *names: str) -> list[Mortal]:
        made = await self.backends.make(settings(*names), show)
        self.backends.use(made)
        await asyncio.sleep(0)
        return [backend for backend in made if isinstance(backend, Mortal)]


async def test_unchanged_backends_are_kept() -> None:
    exchange = Exchange()
    one, two = await exchange.take_on("one", "two")
    again, three = await exchange.take_on("one", "three")
    assert again is one
    assert (one.started, one.closed, two.closed, three.started) == (1, 0, 1, 1)
    await exchange.backends.close()
    assert (one.closed, two.closed, three.closed) == (1, 1, 1)


async def test_a_dead_backend_is_named_and_rebuilt() -> None:
    exchange = Exchange()
    one, two = await exchange.take_on("one", "two")
    assert exchange.backends.dead() == []
    two.living = False
    assert exchange.backends.dead() == ["two"]
    kept, new = await exchange.take_on("one", "two")
    assert (kept is one, new is two) == (True, False)
    assert exchange.backends.dead() == []
    assert two.closed == 1
    await exchange.backends.close()


async def test_unused_backends_are_closed() -> None:
    exchange = Exchange()
    (one,) = await exchange.take_on("one")
    with pytest.raises(ModelError):
        await exchange.backends.make(settings("one", "two", "stone"), show)
    made = [backend for backend in exchange.backends._build_keys if backend is not one]
    await exchange.backends.settle()
    assert [backend.closed for backend in made if isinstance(backend, Mortal)] == [1]
    assert one.closed == 0
    await exchange.backends.close()


async def test_capabilities_list_the_requestable_names() -> None:
    entries = (
        MockEntry(name="zero"),
        LlamaCppEntry(name="here", model_path=Path("h"), serves="B", aliases=("big",)),
        OpenAICompatEntry(name="far", base_url="http://127.0.0.1:1", model="x", serves="B"),
        MockEntry(name="alone", serves="lone"),
    )
    exchange = Exchange()
    exchange.backends.use(await exchange.backends.make(Settings(backends=entries), show))
    frames = [orjson.loads(frame) for frame in exchange.backends.capabilities_frames()]
    assert [(frame["name"], frame["pool"], frame["aliases"]) for frame in frames] == [
        ("zero", "", []),
        ("here", "B", ["big"]),
        ("far", "B", []),
        ("alone", "", ["lone"]),
    ]
    models = Models({})
    models.update(frames)
    models.ready = True
    asked = {name: models.find(name, "v2").wire_name for name in ("default", "B", "big", "lone", "far")}
    assert asked == {"default": "", "B": "B", "big": "B", "lone": "alone", "far": "far"}
    for name in filter(None, asked.values()):
        assert exchange.router.serves(name)
    await exchange.backends.close()


async def test_a_cancel_stops_the_build_and_waits_for_it() -> None:
    exchange = Exchange()
    making = asyncio.create_task(exchange.backends.make(settings("slow"), show))
    await asyncio.sleep(0.01)
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(making, 100)
    assert not exchange.backends._build_keys


async def test_a_second_cancel_waits_for_the_build_too() -> None:
    """Otherwise nobody would close a backend that the build still makes."""
    ends, cancelled = threading.Event(), threading.Event()
    building = asyncio.create_task(in_thread(ends.wait, cancelled))
    await asyncio.sleep(0)
    for _ in range(2):
        building.cancel()
        await asyncio.wait((building,), timeout=0)
    assert (cancelled.is_set(), building.done()) == (True, False)
    ends.set()
    with pytest.raises(asyncio.CancelledError):
        await building


async def test_waiting_for_a_backend_times_out() -> None:
    exchange = Exchange()
    made = await exchange.backends.make(settings("one", "lazy"), show)
    with pytest.raises(ModelError, match=r"backend 'lazy' was not ready within 0\.01 s"):
        await exchange.backends.until_ready(made, 0.01)
    await exchange.backends.close()


@cases("change", [{"active_permits": 9}, {"threads": 3}, {"n_batch": 64}, {"kv_unified": True}])
def test_options_of_the_engine_are_part_of_the_build_key(change: dict[str, Any]) -> None:
    entry = LlamaCppEntry(name="one")
    before = Settings(backends=(entry,))
    assert build_key(before, entry) == build_key(before.replaced(queue_depth=99), entry)
    assert build_key(before, entry) != build_key(before.replaced(**change), entry)
    assert build_key(before, entry) != build_key(before, entry._replace(n_ctx=77))
    assert build_key(before, MockEntry(name="m")) == build_key(before.replaced(**change), MockEntry(name="m"))


async def test_a_backend_that_is_being_closed_is_not_adopted() -> None:
    router = Router(())
    backends = backends_of(router)
    (unused,) = await backends.make(settings("a"), lambda phase, details: None)
    closing, go_on = asyncio.Event(), asyncio.Event()

    async def close() -> None:
        closing.set()
        await go_on.wait()

    unused.close = close  # type: ignore[method-assign]
    discarding = asyncio.ensure_future(backends.settle())
    await closing.wait()
    (made,) = await backends.make(settings("a"), lambda phase, details: None)
    assert made is not unused
    go_on.set()
    await discarding
    await backends.close()


async def test_the_phases_of_a_call_come_before_its_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the call ends before anyone waits for it, as this executor's do."""

    class AtOnce(Executor):
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def submit(self, call: Callable[..., Any], /, *args: Any, **__: Any) -> Future[Any]:
            done: Future[Any] = Future()
            done.set_result(call(*args))
            return done

    monkeypatch.setattr(threads, "ThreadPoolExecutor", AtOnce)
    loop, seen = asyncio.get_running_loop(), list[str]()
    await in_thread(lambda: loop.call_soon_threadsafe(seen.append, "phase"), threading.Event())
    assert seen == ["phase"]
