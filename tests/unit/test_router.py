"""The choice of a backend, and the state of its breaker, with a simulated clock."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import pytest

from inferd.engine.backend import Capabilities, EngineState
from inferd.engine.mock import Mock
from inferd.errors import (
    AttachmentUnsupported,
    BackendInternal,
    EmbedUnsupported,
    InvalidRequest,
    ModelBroken,
    NoBackend,
    NotReady,
    QueueFull,
    RerankUnsupported,
    Unavailable,
    Unsupported,
)
from inferd.serve.breaker import FAILURES, OPEN_SECS, WINDOW_SECS
from inferd.serve.router import Router


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@contextlib.contextmanager
def dispatched(router: Router, name: str) -> Iterator[None]:
    with router.dispatch() as backend:
        assert backend.name == name
        yield


def fail(router: Router, error: BaseException | None = None, times: int = 1) -> None:
    raised = Unavailable("down") if error is None else error
    for _ in range(times):
        with pytest.raises(type(raised)), router.dispatch():
            raise raised


def succeed(router: Router) -> str:
    with router.dispatch() as backend:
        return backend.name


def refused(router: Router) -> bool:
    try:
        router.dispatch()
    except NoBackend:
        return True
    return False


def test_the_first_ready_backend_serves(clock: Clock) -> None:
    first, second = Mock("first"), Mock("second")
    router = Router([first, second], clock)
    assert succeed(router) == "first"
    first.is_ready = False
    assert succeed(router) == "second"
    second.is_ready = False
    assert refused(router)


def test_three_failures_open_the_breaker(clock: Clock) -> None:
    router = Router([Mock()], clock)
    fail(router, times=FAILURES - 1)
    assert not refused(router)
    fail(router)
    assert refused(router)


@pytest.mark.parametrize(
    "error", [NotReady(), Unavailable("down"), BackendInternal("broken"), ZeroDivisionError()]
)
def test_failures_that_count(clock: Clock, error: Exception) -> None:
    router = Router([Mock()], clock)
    fail(router, error, FAILURES)
    assert refused(router)


class Broken(Mock):
    """A backend whose model can no longer be loaded."""

    def engine_state(self) -> EngineState:
        return EngineState(pid=0, memory_bytes=0, file_bytes=0, restarts=3, problem="the file was changed")


def test_a_model_that_can_no_longer_be_loaded_is_not_retryable(clock: Clock) -> None:
    router = Router([Broken("own", is_ready=False)], clock)
    with pytest.raises(ModelBroken, match="the model of 'own' cannot be loaded") as caught:
        router.dispatch()
    assert not caught.value.retryable
    router = Router([Broken("own", is_ready=False), Mock("other", is_ready=False)], clock)
    with pytest.raises(NoBackend):  # the other one may come back
        router.dispatch()


@pytest.mark.parametrize("error", [InvalidRequest("no"), QueueFull(), NoBackend(), asyncio.CancelledError()])
def test_failures_that_do_not_count(clock: Clock, error: BaseException) -> None:
    router = Router([Mock()], clock)
    fail(router, error, 10)
    assert not refused(router)


def test_failures_are_counted_within_a_minute(clock: Clock) -> None:
    router = Router([Mock()], clock)
    fail(router)
    clock.now += WINDOW_SECS / 2
    fail(router)
    clock.now += WINDOW_SECS / 2 + 1
    fail(router)
    assert not refused(router)
    clock.now += WINDOW_SECS / 2 - 2
    fail(router)
    assert refused(router)


def test_successes_in_between_do_not_hide_failures(clock: Clock) -> None:
    router = Router([Mock()], clock)
    for _ in range(FAILURES):
        fail(router)
        if not refused(router):
            succeed(router)
    assert refused(router)


def test_an_open_breaker_sends_requests_to_the_next_backend(clock: Clock) -> None:
    router = Router([Mock("first"), Mock("second")], clock)
    fail(router, times=FAILURES)
    assert succeed(router) == "second"
    clock.now += OPEN_SECS
    assert succeed(router) == "first"


def test_breakers_are_kept_by_entry_and_not_by_kind(clock: Clock) -> None:
    router = Router([Mock("first"), Mock("second")], clock)
    fail(router, times=FAILURES * 2)
    assert refused(router)


def test_half_open_lets_one_request_probe_at_a_time(clock: Clock) -> None:
    router = Router([Mock()], clock)
    fail(router, times=FAILURES)
    clock.now += OPEN_SECS - 0.1
    assert refused(router)
    clock.now += 0.1
    with dispatched(router, "mock"):
        assert refused(router)
    assert not refused(router)


def test_a_probe_that_succeeds_closes_and_forgets(clock: Clock) -> None:
    router = Router([Mock()], clock)
    fail(router, times=FAILURES)
    clock.now += OPEN_SECS
    succeed(router)
    fail(router, times=FAILURES - 1)
    assert not refused(router)


def test_a_probe_that_fails_opens_again(clock: Clock) -> None:
    router = Router([Mock()], clock)
    fail(router, times=FAILURES)
    clock.now += OPEN_SECS
    fail(router)
    assert refused(router)
    clock.now += OPEN_SECS - 0.1
    assert refused(router)
    clock.now += 0.1
    assert not refused(router)


@pytest.mark.parametrize("error", [InvalidRequest("no"), asyncio.CancelledError()])
def test_an_inconclusive_probe_allows_another(clock: Clock, error: BaseException) -> None:
    router = Router([Mock()], clock)
    fail(router, times=FAILURES)
    clock.now += OPEN_SECS
    fail(router, error)
    with router.dispatch():
        assert refused(router)  # it is a probe again: the breaker was neither closed nor opened


def test_requests_from_before_the_opening_do_not_count(clock: Clock) -> None:
    router = Router([Mock()], clock)
    early, late = router.dispatch(), router.dispatch()
    early.__enter__()
    late.__enter__()
    fail(router, times=FAILURES)
    clock.now += OPEN_SECS - 1
    early.__exit__(Unavailable, Unavailable("down"), None)
    late.__exit__(None, None, None)
    assert refused(router)
    clock.now += 1
    assert not refused(router)


# The capabilities of backends.


def test_the_first_that_has_all_that_is_needed(clock: Clock) -> None:
    chat = Mock("chat", capabilities=Capabilities(v2=True))
    vectors = Mock("vectors", capabilities=Capabilities(embed=True))
    eyes = Mock("eyes", capabilities=Capabilities(v2=True, vision=True, tools=True))
    router = Router([vectors, chat, eyes], clock)

    def server(*needs: str) -> str:
        with router.dispatch(frozenset(needs)) as backend:
            return backend.name

    assert succeed(router) == "chat"
    assert server("v2") == "chat"
    assert server("v2", "vision") == "eyes"
    assert server("v2", "vision", "tools") == "eyes"
    assert server("embed") == "vectors"
    chat.is_ready = False
    assert succeed(router) == "eyes"


@pytest.mark.parametrize(
    ("needs", "kind", "message"),
    [
        ({"v2"}, Unsupported, 'backend "one" does not advertise v2 capability'),
        ({"v2", "tools", "vision"}, Unsupported, 'backend "one" does not advertise v2 capability'),
        ({"embed"}, EmbedUnsupported, 'backend "one" cannot embed'),
        ({"rerank"}, RerankUnsupported, 'backend "one" cannot rerank'),
        ({"text"}, Unsupported, 'backend "one" does not generate text'),
    ],
)
def test_the_error_names_a_missing_capability(
    clock: Clock, needs: set[str], kind: type[Exception], message: str
) -> None:
    first = Mock("zero", capabilities=Capabilities(), is_ready=False)
    router = Router([first, *(Mock(name, capabilities=Capabilities()) for name in ("one", "two"))], clock)
    with pytest.raises(kind, match=f"^{message}$"):
        router.dispatch(frozenset(needs))


@pytest.mark.parametrize(
    ("able", "needs", "kind"),
    [
        (Capabilities(v2=True), {"v2", "tools"}, Unsupported),
        (Capabilities(v2=True, tools=True), {"v2", "tools", "vision"}, AttachmentUnsupported),
        (Capabilities(v2=True, vision=True), {"v2", "vision", "audio"}, AttachmentUnsupported),
    ],
)
def test_each_capability_counts(
    clock: Clock, able: Capabilities, needs: set[str], kind: type[Exception]
) -> None:
    router = Router([Mock(capabilities=able)], clock)
    with pytest.raises(kind) as caught:
        router.dispatch(frozenset(needs))
    assert type(caught.value) is kind


def test_a_capable_backend_whose_breaker_is_open_is_not_fit(clock: Clock) -> None:
    chat = Mock("chat", capabilities=Capabilities(v2=True))
    router = Router([chat, Mock("vectors", capabilities=Capabilities(embed=True))], clock)
    fail(router, times=FAILURES)
    with pytest.raises(NoBackend) as caught:  # it will serve again
        router.dispatch(frozenset({"v2"}))
    assert caught.value.retryable


def test_a_breaker_reports_its_states(clock: Clock) -> None:
    told: list[tuple[str, str]] = []
    router = Router([Mock("one")], clock, lambda name, state: told.append((name, state)))
    succeed(router)
    assert told == []
    fail(router, times=FAILURES)
    clock.now += OPEN_SECS
    fail(router)
    clock.now += OPEN_SECS
    succeed(router)
    assert told == [("one", state) for state in ("open", "half-open", "open", "half-open", "closed")]


# Replacing the backends.


async def test_a_request_stays_on_its_backend(clock: Clock) -> None:
    old, new = Mock("old"), Mock("new")
    router = Router([old], clock)
    with router.dispatch() as backend, router.dispatch():
        (removed,) = router.replace([new])
        assert (backend, removed.backend, succeed(router)) == (old, old, "new")
        released = asyncio.create_task(removed.released())
        await asyncio.sleep(0)
        assert not released.done()
    await asyncio.wait_for(released, 100)


async def test_an_idle_backend_is_released_at_once(clock: Clock) -> None:
    router = Router([Mock("old")], clock)
    succeed(router)
    (removed,) = router.replace([Mock("new")])
    await asyncio.wait_for(removed.released(), 100)


async def test_a_backend_that_stays_keeps_its_breaker(clock: Clock) -> None:
    stays, leaves = Mock("stays"), Mock("leaves")
    router = Router([leaves, stays], clock)
    fail(router, times=2 * FAILURES)
    assert refused(router)
    (removed,) = router.replace([stays])
    assert removed.backend is leaves
    assert refused(router)


async def test_results_of_a_removed_backend_are_ignored(clock: Clock) -> None:
    told: list[tuple[str, str]] = []
    router = Router([Mock("same")], clock, lambda name, state: told.append((name, state)))
    running = [router.dispatch() for _ in range(FAILURES)]
    for dispatch in running:
        dispatch.__enter__()
    router.replace([Mock("same")])
    for dispatch in running:
        dispatch.__exit__(Unavailable, Unavailable("down"), None)
    assert told == []
    fail(router, times=FAILURES)
    assert told == [("same", "open")]
    router.replace([Mock("same")])
    assert told[-1] == ("same", "closed")
    assert not refused(router)
