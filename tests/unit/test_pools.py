"""Pools: the choice of a backend, sending waiting requests to remote backends, and retries after a
failure."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Hashable, Iterator
from math import inf
from pathlib import Path

import pytest

from inferd.engine.backend import Capabilities
from inferd.engine.mock import Mock
from inferd.errors import (
    EngineEnded,
    InferdError,
    InvalidRequest,
    NoBackend,
    QueueFull,
    SchemaViolation,
    Unavailable,
)
from inferd.serve.admission import Admission, Permit
from inferd.serve.breaker import FAILURES, OPEN_SECS
from inferd.serve.pool import AFFINITY_SLACK, TEXT, BackendSlot, Choice, Route
from inferd.serve.router import Router
from inferd.serve.surfaces.v1 import TextSurface
from inferd.serve.surfaces.v2 import BlockSurface
from inferd.wire import v1, v2
from tests.in_process import DONE, TOKEN, Gate, ask, serving, until

HERE = Route(serves="m")


def there(limit: int = 8) -> Route:
    return Route(serves="m", remote=True, limit=limit)


class Fleet:
    """A router of ``local`` and some remote mocks, all of one pool."""

    def __init__(self, *limits: int, local: bool = True, clock: Callable[[], float] = lambda: 0.0) -> None:
        self.local = Mock("local")
        self.remote = [Mock(f"r{number}") for number in range(len(limits))]
        routes = dict(zip(self.remote, map(there, limits), strict=True))
        if local:
            routes[self.local] = HERE
        backends = [self.local] * local + self.remote
        self.router = Router(backends, clock, routes=routes)
        self.router.spill_after_secs = 1.0

    def choice(self, conversation: Hashable = None, model: str | None = None) -> Choice:
        return Choice(self.router, TEXT, model, lambda: conversation)

    def take(
        self, room: bool = False, wait: float = inf, conversation: Hashable = None, model: str | None = None
    ) -> BackendSlot | None:
        slot = self.choice(conversation, model).take(room, wait)
        if slot is not None:
            slot.taken()
        return slot

    def name(self, room: bool = False, wait: float = inf, conversation: Hashable = None) -> str | None:
        slot = self.take(room, wait, conversation)
        return None if slot is None else slot.backend.name

    def slot(self, name: str) -> BackendSlot:
        return next(slot for slot in self.router.members if slot.backend.name == name)


# The choice.


def test_backends_of_one_name_form_a_pool_and_others_do_not() -> None:
    assert Fleet(1).router.has_pools
    assert not Fleet(local=True).router.has_pools
    twins = [Mock("short"), Mock("long")]
    assert not Router(twins, routes=dict.fromkeys(twins, HERE)).has_pools
    one, two = Mock("one"), Mock("two")
    apart = Router([one, two], routes={one: Route(serves="a"), two: Route(serves="b", remote=True, limit=1)})
    assert not apart.has_pools
    assert apart.serves("b")
    assert apart.names() == {"one", "two", "mock", "a", "b"}


def test_the_local_backend_is_preferred_if_it_is_free_soon() -> None:
    fleet = Fleet(1, 1)
    assert fleet.name(room=True) == "local"
    assert fleet.name(wait=1.0) is None  # it is to wait
    assert fleet.name(wait=1.1) == "r0"
    assert fleet.name(wait=1.1) == "r1"
    assert fleet.name(wait=1.1) is None  # every limit is reached


def test_a_local_one_that_is_not_fit_is_not_waited_for() -> None:
    fleet = Fleet(1)
    fleet.local.is_ready = False
    assert fleet.name(room=True, wait=0.0) == "r0"
    assert fleet.name(room=True, wait=0.0) is None
    fleet.remote[0].is_ready = False
    with pytest.raises(NoBackend):
        fleet.take(room=True)


def test_load_counts_the_requests_of_other_daemons() -> None:
    fleet = Fleet(8, 8, 8)
    fleet.slot("r0").others = 2
    fleet.slot("r1").outstanding = 1
    assert [fleet.name() for _ in range(4)] == ["r2", "r1", "r2", "r0"]


def test_an_unhealthy_backend_gets_no_request() -> None:
    fleet = Fleet(8, 8)
    fleet.slot("r0").healthy = False
    assert [fleet.name() for _ in range(2)] == ["r1", "r1"]


def test_a_conversation_stays_where_it_was_unless_that_is_busier() -> None:
    fleet = Fleet(8, 8)
    fleet.slot("r0").outstanding = 1
    assert fleet.name(conversation="c") == "r1"
    fleet.slot("r0").outstanding = 0
    assert fleet.slot("r1").outstanding == AFFINITY_SLACK
    assert fleet.name(conversation="c") == "r1"
    assert fleet.name(conversation="c") == "r0"  # it would have more than the slack to do
    assert fleet.name(conversation=None) == "r0"


def test_the_head_names_a_conversation() -> None:
    turns = '[{"role":"system","content":"s"},{"role":"user","content":"%s"}%s]'
    more = ',{"role":"assistant","content":"a"},{"role":"user","content":"next"}'

    def text(user: str, rest: str = "", session: str = "") -> Hashable:
        given = f'"session":"{session}",' if session else ""
        return TextSurface().head(v1.parse(f'{{{given}"messages":{turns % (user, rest)}}}'.encode()))

    assert text("hi") == text("hi", more) != text("ho")
    assert text("hi", session="x") == text("ho", more, session="x") != text("hi")
    block = '{"messages":[{"role":"user","content":[{"type":"text","text":"%s"}]}]}'
    one, two = (BlockSurface().head(v2.parse((block % word).encode())) for word in ("a", "b"))
    assert one != two


def test_a_name_pins_a_request_and_a_model_does_not() -> None:
    fleet = Fleet(1, 1)

    def named(model: str) -> str | None:
        slot = fleet.take(model=model)
        return None if slot is None else slot.backend.name

    assert named("r1") == "r1"
    assert named("r1") is None
    assert named("m") == "r0"


def test_the_next_pool_serves_when_the_first_cannot() -> None:
    fleet = Fleet(1)
    other = Mock("other")
    members = [slot.backend for slot in fleet.router.members]
    routes = {slot.backend: slot.route for slot in fleet.router.members}

    async def replace() -> None:
        fleet.router.replace([*members, other], routes)

    asyncio.run(replace())
    for mock in (fleet.local, *fleet.remote):
        mock.is_ready = False
    assert fleet.name(room=True) == "other"


def test_capabilities_count_in_a_pool_too() -> None:
    blind, sees = Mock("blind", capabilities=Capabilities(v2=True)), Mock("sees")
    router = Router([blind, sees], routes={blind: HERE, sees: there()})
    slot = Choice(router, frozenset({"v2", "vision"}), None, lambda: None).take(True, 0.0)
    assert slot is not None
    assert slot.backend is sees


def test_a_breaker_that_is_probed_gets_one_request() -> None:
    now = [0.0]
    fleet = Fleet(8, 8, local=False, clock=lambda: now[0])
    fleet.remote[1].is_ready = False
    slot = fleet.slot("r0")
    for _ in range(FAILURES):
        with contextlib.suppress(Unavailable), fleet.router.dispatch_to(slot):
            raise Unavailable("down")
    with pytest.raises(NoBackend):
        fleet.take()
    now[0] += OPEN_SECS
    assert fleet.name() == "r0"
    assert fleet.name() is None


# Admission.


@contextlib.contextmanager
def held(permit: Permit) -> Iterator[str]:
    with permit:
        assert permit.slot is not None
        yield permit.slot.backend.name


async def test_remote_slots_add_to_the_permits() -> None:
    fleet = Fleet(1)
    admission = Admission(1, 0)
    # Nothing is known of the wait, but the queue is full.
    with (
        held(await admission.admit("a", choice=fleet.choice())) as first,
        held(await admission.admit("a", choice=fleet.choice())) as second,
    ):
        assert (first, second) == ("local", "r0")
        with pytest.raises(QueueFull):
            await admission.admit("a", choice=fleet.choice())
    assert admission.running == 0
    assert fleet.slot("r0").outstanding == fleet.slot("local").outstanding == 0


async def test_a_request_that_waits_too_long_spills() -> None:
    fleet = Fleet(1)
    fleet.router.spill_after_secs = 0.01
    admission = Admission(1, 2)
    with held(await admission.admit("a", choice=fleet.choice())):
        waiting = asyncio.create_task(admission.admit("a", choice=fleet.choice()))
        with held(await asyncio.wait_for(waiting, 100)) as name:
            assert name == "r0"
            assert admission.waiting == 0


async def test_a_place_that_becomes_free_goes_to_one_that_waits() -> None:
    fleet = Fleet(1)
    fleet.router.spill_after_secs = 0.0
    admission = Admission(1, 9)
    with contextlib.ExitStack() as local:
        local.enter_context(await admission.admit("a", choice=fleet.choice()))
        with held(await admission.admit("a", choice=fleet.choice())):
            plain = asyncio.create_task(admission.admit("b"))
            second = asyncio.create_task(admission.admit("a", choice=fleet.choice()))
            await until(lambda: admission.waiting == 2)
        with held(await asyncio.wait_for(second, 100)) as name:
            assert name == "r0"
            assert not plain.done()  # it needs a permit
            local.close()
            with await asyncio.wait_for(plain, 100) as permit:
                assert permit.slot is None


async def test_no_backend_ends_the_wait() -> None:
    fleet = Fleet(1)
    admission = Admission(1, 9)
    with held(await admission.admit("a", choice=fleet.choice())):
        waiting = asyncio.create_task(admission.admit("a", choice=fleet.choice()))
        await until(lambda: admission.waiting == 1)
        fleet.local.is_ready = fleet.remote[0].is_ready = False
        admission.look_again()
        with pytest.raises(NoBackend):
            await asyncio.wait_for(waiting, 100)


async def test_users_take_turns_at_the_places_of_a_pool() -> None:
    fleet = Fleet(1, 1, local=False)
    fleet.remote[1].is_ready = False
    admission = Admission(1, 9)
    served: list[str] = []

    async def request(user: str) -> None:
        with await admission.admit(user, owner=user, choice=fleet.choice()):
            served.append(user)

    with held(await admission.admit("a", owner="a", choice=fleet.choice())):
        tasks = []
        for user in "aaabb":
            tasks.append(asyncio.create_task(request(user)))
            await asyncio.sleep(0)
        await until(lambda: admission.waiting == 5)
    await asyncio.gather(*tasks)
    assert "".join(served) == "ababa"


async def test_a_retry_is_first_in_the_queue_and_never_refused() -> None:
    fleet = Fleet(1)
    fleet.remote[0].is_ready = False
    admission = Admission(1, 1)
    with held(await admission.admit("a", choice=fleet.choice())):
        waiting = asyncio.create_task(admission.admit("b", choice=fleet.choice()))
        await until(lambda: admission.waiting == 1)
        again = asyncio.create_task(admission.admit("c", choice=fleet.choice(), again=True))
        await until(lambda: admission.waiting == 2)
    with held(await asyncio.wait_for(again, 100)):
        assert not waiting.done()
    with held(await asyncio.wait_for(waiting, 100)):
        pass


# The whole path of a request.


def failing(error: Exception, name: str = "bad") -> Mock:
    return Mock(name, error=error)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [Unavailable, EngineEnded])
async def test_another_backend_retries_a_failed_request(short_dir: Path, kind: type[InferdError]) -> None:
    bad, good = failing(kind("down")), Mock("mock")
    async with serving(short_dir / "s", bad, good, routes={bad: HERE, good: there()}) as server:
        client = await server.connect()
        await client.send(ask())
        assert await client.line() + await client.line() == TOKEN + DONE
        metrics = server.service.metrics.backends
        assert dict(metrics["bad"].routed) == {"local": 1}
        assert dict(metrics["mock"].routed) == {"retry": 1}
        assert sum(metrics["bad"].errors.values()) == 1


@pytest.mark.parametrize("kind", [InvalidRequest, SchemaViolation])
async def test_a_client_fault_is_not_retried_elsewhere(short_dir: Path, kind: type[InferdError]) -> None:
    bad, good = failing(kind("no")), Mock("mock")
    async with serving(short_dir / "s", bad, good, routes={bad: HERE, good: there()}) as server:
        client = await server.connect()
        await client.send(ask())
        assert (await client.frame())["type"] == "error"
        assert "mock" not in server.service.metrics.backends


async def test_no_second_retry_and_none_after_a_token(short_dir: Path) -> None:
    one, two, three = failing(Unavailable("1"), "1"), failing(Unavailable("2"), "2"), Mock("mock")
    routes = {one: HERE, two: there(), three: there()}
    async with serving(short_dir / "s", one, two, three, routes=routes) as server:
        client = await server.connect()
        await client.send(ask())
        assert (await client.frame())["message"] == "2"
    cut, good = Mock("cut", drop_after=1), Mock("mock")
    async with serving(short_dir / "t", cut, good, routes={cut: HERE, good: there()}) as server:
        client = await server.connect()
        await client.send(ask())
        assert (await client.frame())["type"] == "token"
        assert (await client.frame())["type"] == "error"
        assert "mock" not in server.service.metrics.backends


async def test_a_client_that_leaves_frees_the_place_on_a_remote_one(short_dir: Path) -> None:
    gate = Gate()
    local, remote = Mock("local", pace=gate), Mock("remote", pace=gate)
    async with serving(short_dir / "s", local, remote, routes={local: HERE, remote: there()}) as server:
        clients = [await server.connect() for _ in range(2)]
        for count, client in enumerate(clients, 1):
            await client.send(ask())
            await until(lambda count=count: gate.waiting == count)  # type: ignore[misc]
        slot = server.service.router.members[1]
        assert slot.outstanding == 1
        clients[1].close()
        await until(lambda: slot.outstanding == 0)
        gate.open(9)
