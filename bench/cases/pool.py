"""The routing in pools, with simulated upstreams: the cost of a decision, and how long requests wait.

The daemon's own admission and router run on an event loop with simulated time, so an hour passes in seconds
and the load of the machine does not matter. Requests arrive at random (Poisson), at 0.95 of the capacity of
all upstreams together. Each upstream serves one request at a time; every second upstream is twice as fast as
the others. Further requests wait at their upstream. All contestants get the same requests:

- ``inferd`` sends each upstream up to 64 requests, the default of ``max_requests``; with ``limits known`` it
  sends one. With ``conversations`` each request belongs to one of 500 conversations, and each conversation
  returns to its upstream.
- ``load of others``: a fifth of the load comes from other clients, which the router learns only every 2 s.
- ``spill``: a local backend with two permits and two remote backends with two slots each, all equally fast.
  0.9 of the capacity of the local backend arrives at it alone, and 2.5 of that capacity at the three
  together.
- ``least connections`` knows the number of requests of each upstream at every moment; ``random`` knows
  nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import selectors
import time
from collections.abc import Awaitable, Callable, Iterator
from math import inf
from typing import Any

from bench.report import Report, main, quantile
from inferd.engine.mock import Mock
from inferd.serve.admission import Admission
from inferd.serve.health import LOOK_SECS
from inferd.serve.pool import TEXT, Choice, Route
from inferd.serve.router import Router

SIZES = (1, 2, 4, 8, 16, 32, 64)
LOAD = 0.95
OTHERS = 0.2
MEAN_SECS = 1.0
REQUESTS = 4000
DECISIONS = 20_000


class _Selector(selectors.SelectSelector):
    """Does not wait: the simulated time has already passed."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        self.now += timeout or 0.0
        return []


@contextlib.contextmanager
def simulated() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop whose waits take no time."""
    selector = _Selector()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now  # type: ignore[method-assign]
    try:
        yield loop
    finally:
        loop.close()


class Upstream:
    """An upstream for one request at a time, ``rate`` times as fast as the slowest. ``has`` counts its
    requests."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.has = 0
        self._free = asyncio.Semaphore(1)

    async def serve(self, work: float) -> float:
        """Serves a request; returns the time at which it began."""
        self.has += 1
        try:
            async with self._free:
                began = asyncio.get_running_loop().time()
                await asyncio.sleep(work / self.rate)
                return began
        finally:
            self.has -= 1


Serve = Callable[[float], Awaitable[float]]


def routed(limit: int, conversations: int = 0) -> Callable[[list[Upstream]], tuple[Serve, Router]]:
    """The daemon's router; each upstream gets at most ``limit`` requests at once."""
    rng = random.Random(0)

    def make(upstreams: list[Upstream]) -> tuple[Serve, Router]:
        loop = asyncio.get_running_loop()
        backends = [Mock(f"u{number}") for number in range(len(upstreams))]
        route = Route(serves="m", remote=True, limit=limit)
        # A pool has at least two backends; a backend that is never ready has no effect.
        spare = Mock("spare", is_ready=False)
        router = Router([*backends, spare], loop.time, routes=dict.fromkeys([*backends, spare], route))
        admission = Admission(1, 10**6)
        of = dict(zip(backends, upstreams, strict=True))

        async def serve(work: float) -> float:
            name = rng.randrange(conversations) if conversations else None
            choice = Choice(router, TEXT, None, lambda: name)
            with await admission.admit("caller", choice=choice) as permit:
                assert permit.slot is not None
                upstream = of[permit.slot.backend]  # type: ignore[index]
                with router.dispatch_to(permit.slot):
                    return await upstream.serve(work)

        return serve, router

    return make


def least(upstreams: list[Upstream]) -> tuple[Serve, None]:
    return lambda work: min(upstreams, key=lambda upstream: upstream.has).serve(work), None


def at_random(upstreams: list[Upstream]) -> tuple[Serve, None]:
    rng = random.Random(0)
    return lambda work: rng.choice(upstreams).serve(work), None


Make = Callable[[list[Upstream]], tuple[Serve, Router | None]]


def waits(size: int, seed: int, make: Make, others: float) -> list[float]:
    """The wait of each of our requests until it was served, in seconds."""
    with simulated() as loop:
        return loop.run_until_complete(_simulate(size, seed, make, others))


async def _simulate(size: int, seed: int, make: Make, others: float) -> list[float]:
    rng = random.Random(seed)
    loop = asyncio.get_running_loop()
    upstreams = [Upstream(1.0 + number % 2) for number in range(size)]
    serve, router = make(upstreams)
    looking = None if router is None or not others else loop.create_task(_look(upstreams, router))
    gap = MEAN_SECS / (LOAD * sum(upstream.rate for upstream in upstreams))
    found: list[float] = []

    async def request(work: float) -> None:
        arrived = loop.time()
        found.append(await serve(work) - arrived)

    tasks = []
    for _ in range(REQUESTS):
        await asyncio.sleep(rng.expovariate(1 / gap))
        work = rng.expovariate(1 / MEAN_SECS)
        other = rng.random() < others
        somewhere = rng.choice(upstreams)
        tasks.append(loop.create_task(_drop(somewhere.serve(work)) if other else request(work)))
    await asyncio.gather(*tasks)
    if looking is not None:
        looking.cancel()
    return found


async def _drop(serving: Awaitable[float]) -> None:
    await serving


async def _look(upstreams: list[Upstream], router: Router) -> None:
    """Reports the load of each upstream, as the daemon's health checks do."""
    while True:
        await asyncio.sleep(LOOK_SECS)
        for slot, upstream in zip(router.members, upstreams, strict=False):
            slot.others = max(0, upstream.has - slot.outstanding)


class Slots(Upstream):
    """A backend that serves two requests at a time."""

    def __init__(self) -> None:
        super().__init__(1.0)
        self._free = asyncio.Semaphore(2)


async def _spill(seed: int, alone: bool) -> list[float]:
    """The waits of requests in seconds: at a local backend alone, and with two remote backends beside it."""
    rng = random.Random(seed)
    loop = asyncio.get_running_loop()
    local, *remote = backends = [Mock("local"), Mock("one"), Mock("two")]
    there = Route(serves="m", remote=True, limit=2)
    router = Router(backends, loop.time, routes={local: Route(serves="m"), **dict.fromkeys(remote, there)})
    admission = Admission(2, 10**6)
    upstreams = {backend: Slots() for backend in backends}
    found: list[float] = []

    async def request(work: float) -> None:
        arrived = loop.time()
        choice = Choice(router, TEXT, "local" if alone else None, lambda: None)
        with await admission.admit("caller", choice=choice) as permit:
            assert permit.slot is not None
            upstream = upstreams[permit.slot.backend]  # type: ignore[index]
            found.append(await upstream.serve(work) - arrived)

    tasks = []
    for _ in range(REQUESTS):
        await asyncio.sleep(rng.expovariate((0.9 if alone else 2.5) * 2 / MEAN_SECS))
        tasks.append(loop.create_task(request(rng.expovariate(1 / MEAN_SECS))))
    await asyncio.gather(*tasks)
    return found


def decision_micros(size: int, conversations: int) -> float:
    """The processor time of one decision among so many upstreams, all of them busy."""
    backends = [Mock(f"u{number}") for number in range(size)]
    spare = Mock("spare", is_ready=False)
    route = Route(serves="m", remote=True, limit=64)
    router = Router([*backends, spare], routes=dict.fromkeys([*backends, spare], route))
    rng = random.Random(1)
    running = []
    for slot in router.members[:size]:
        for _ in range(rng.randrange(8)):
            slot.taken()
            running.append(slot)
    names = [rng.randrange(conversations) for _ in range(DECISIONS)] if conversations else []
    began = time.process_time()
    for number in range(DECISIONS):
        name = names[number] if names else None
        slot = Choice(router, TEXT, None, lambda name=name: name).take(False, inf)  # type: ignore[misc]
        if slot is not None:
            slot.taken()
            running.append(slot)
        if running:
            running.pop(number * 7919 % len(running)).left()
    return (time.process_time() - began) / DECISIONS * 1e6


CONTESTANTS: dict[str, tuple[Make, float]] = {
    "least connections": (least, 0.0),
    "inferd": (routed(64), 0.0),
    "inferd, conversations": (routed(64, 500), 0.0),
    "inferd, limits known": (routed(1), 0.0),
    "random": (at_random, 0.0),
    "least connections, load of others": (least, OTHERS),
    "inferd, load of others": (routed(64), OTHERS),
}


def run(options: argparse.Namespace, report: Report) -> None:
    report.settings |= {"load": LOAD, "requests": REQUESTS, "others": OTHERS}
    for round_ in range(options.repeats):
        for name, alone in (("local alone, 0.9", True), ("pool, 2.5", False)):
            with simulated() as loop:
                found = loop.run_until_complete(_spill(options.seed * 1000 + round_, alone))
            report.add(name, "spill: p99 wait", "ms", quantile(found, 0.99) * 1e3)
    report.ratio("spill: p99 wait", "pool, 2.5", "local alone, 0.9")
    for size in SIZES:
        for round_ in range(options.repeats):
            for name, (make, others) in CONTESTANTS.items():
                found = waits(size, options.seed * 1000 + round_, make, others)
                report.add(name, f"{size} upstreams: p99 wait", "ms", quantile(found, 0.99) * 1e3)
            report.add("inferd", f"{size} upstreams: decision", "µs", decision_micros(size, 0))
            report.add(
                "inferd, conversations", f"{size} upstreams: decision", "µs", decision_micros(size, 500)
            )
        for name in CONTESTANTS:
            to = "least connections" + (", load of others" if name.endswith("of others") else "")
            report.ratio(f"{size} upstreams: p99 wait", name, to)


if __name__ == "__main__":
    main("pool", __doc__ or "", run)
