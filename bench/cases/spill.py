"""A pool of a local engine and two llama-servers. Requests arrive at random, whether or not a slot is free.

The three engines share one machine. They take turns on one core, so the speed of one does not depend on the
load of the others. Each llama-server has the share of the core with which it serves as many requests as the
local engine, as on three machines of equal speed. First the local engine alone shows the waits of requests
that arrive at random (Poisson) at 0.9 of its capacity. Then 2.5 of that capacity arrives at the pool, and
once more while one llama-server is killed and started again.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from bench import prompts, servers
from bench.report import Report, main, quantile
from inferd import AsyncClient
from inferd.client.admin import AdminClient
from inferd.errors import InferdError

SLOTS = 2
TOKENS = 8
N_CTX = 512
CAPACITY_SECS = 10
REQUESTS = 300
QUEUE_DEPTH = 64
CYCLE_SECS = 0.1
SHARE = 0.2
"""Of one core, for the local engine."""


class Throttle:
    """Lets processes run for their share of each cycle, one after the other."""

    def __init__(self) -> None:
        self.shares: dict[int, float] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Throttle:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        for pid in self.shares:
            _signal(pid, signal.SIGCONT)

    def _run(self) -> None:
        for pid in tuple(self.shares):
            _signal(pid, signal.SIGSTOP)
        while not self._over.is_set():
            end = time.monotonic() + CYCLE_SECS
            for pid, share in tuple(self.shares.items()):
                _signal(pid, signal.SIGCONT)
                time.sleep(share * CYCLE_SECS)
                _signal(pid, signal.SIGSTOP)
            time.sleep(max(0.0, end - time.monotonic()))


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


class Pooled(servers.Server):
    """The daemon; ``here`` is the entry of its own engine."""

    def __init__(self, model: Path, upstreams: Sequence[servers.LlamaServer]) -> None:
        super().__init__()
        self.name = "inferd"
        self.address = servers.Address.unix(self.home / "i.sock")
        here = {"kind": "llamacpp", "name": "here", "model_path": str(model), "n_ctx": N_CTX, "serves": "m"}
        there = [
            {
                "kind": "openai-compat",
                "name": upstream.name,
                "base_url": f"http://127.0.0.1:{upstream.address.port}",
                "model": "m",
                "max_requests": SLOTS,
            }
            for upstream in upstreams
        ]
        engine = {"active_permits": SLOTS, "queue_depth": QUEUE_DEPTH, "threads": 1, "cache_mib": 0}
        self.config = self.home / "config.json"
        self.config.write_text(json.dumps({"backends": [here, *there], "engine": engine}))

    def command(self) -> list[str | Path]:
        places = ["--uds", self.address.path, "--admin-addr", self.home / "a.sock"]
        return [sys.executable, "-m", "inferd", "serve", "--config", self.config, *places]

    def backends(self) -> dict[str, dict[str, object]]:
        with AdminClient(self.home / "a.sock", timeout=30) as admin:
            return {row["name"]: row for row in admin.status().backends}


class Outcome:
    """The outcomes of requests: the wait of each in ms, and the number of each kind of end."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self.ends: Counter[str] = Counter()

    async def ask(self, client: AsyncClient, rng: random.Random, model: str | None) -> None:
        heard = False
        try:
            async with client.generate(
                prompts.short(rng), max_tokens=TOKENS, temperature=0, model=model, cache=False
            ) as answer:
                async for event in answer:
                    if hasattr(event, "stop_reason"):
                        self.waits.append(event.timings["queue_ms"])
                    heard = True
            self.ends["done"] += 1
        except InferdError as error:
            code = getattr(error, "wire_code", type(error).__name__)
            self.ends[f"{code} {'after' if heard else 'before'} the first token"] += 1


async def capacity(client: AsyncClient, rng: random.Random, entry: str) -> float:
    """Requests per second that the engine of one entry serves."""
    outcome = Outcome()
    end = time.monotonic() + CAPACITY_SECS

    async def keep_asking() -> None:
        while time.monotonic() < end:
            await outcome.ask(client, rng, entry)

    began = time.monotonic()
    await asyncio.gather(*(keep_asking() for _ in range(SLOTS)))
    if not outcome.waits:
        raise RuntimeError(f"{entry} served nothing: {dict(outcome.ends)}")
    return len(outcome.waits) / (time.monotonic() - began)


async def arrive(client: AsyncClient, rng: random.Random, rate: float, model: str | None) -> Outcome:
    outcome = Outcome()
    tasks = []
    for _ in range(REQUESTS):
        await asyncio.sleep(rng.expovariate(rate))
        tasks.append(asyncio.ensure_future(outcome.ask(client, rng, model)))
    await asyncio.gather(*tasks)
    return outcome


def run(options: argparse.Namespace, report: Report) -> None:
    model = servers.model_file(options)
    upstreams = [
        servers.LlamaServer(
            options.peer_python, model, threads=1, n_ctx=N_CTX, slots=SLOTS, name=f"llama-server {number}"
        )
        for number in (1, 2)
    ]
    with upstreams[0], upstreams[1], Pooled(model, upstreams) as daemon, Throttle() as throttle:
        engine = daemon.backends()["here"]["engine"]
        pids = [engine["pid"], *(upstream.popen.pid for upstream in upstreams)]  # type: ignore[index]
        throttle.shares = dict.fromkeys(pids, SHARE)
        asyncio.run(measure(options, report, daemon, upstreams, throttle))


async def measure(
    options: argparse.Namespace,
    report: Report,
    daemon: Pooled,
    upstreams: Sequence[servers.LlamaServer],
    throttle: Throttle,
) -> None:
    rng = random.Random(options.seed)
    async with AsyncClient(daemon.address.path) as client:
        rate = await capacity(client, rng, "here")
        for upstream in upstreams:
            own = await capacity(client, rng, upstream.name)
            throttle.shares[upstream.popen.pid] = SHARE * rate / own
        rates = {name: await capacity(client, rng, name) for name in daemon.backends()}
        for name, rate in rates.items():
            report.add(name, "capacity", "requests/s", rate)
            sys.stderr.write(f"{name}: {rate:.2f} requests/s\n")
        rate = rates["here"]
        for name, share, chosen in (("local alone", 0.9, "here"), ("pool", 2.5, None)):
            outcome = await arrive(client, rng, share * rate, chosen)
            _tell(report, f"{name}, {share} of the capacity", outcome)
        report.ratio("p99 wait", "pool, 2.5 of the capacity", "local alone, 0.9 of the capacity")
        running = asyncio.ensure_future(arrive(client, rng, 2.0 * rate, None))
        await asyncio.sleep(REQUESTS / rate / 8)
        victim = upstreams[0]
        victim.popen.send_signal(signal.SIGKILL)
        victim.popen.wait()
        _tell(report, "pool, one killed", await running)
        share = throttle.shares.pop(victim.popen.pid)
        victim.__enter__()  # again; the first ``with`` ends it
        throttle.shares[victim.popen.pid] = share
        began = time.monotonic()
        await asyncio.to_thread(_until_back, daemon, victim.name)
        report.add("pool, one killed", "ready and breaker closed after", "s", time.monotonic() - began)
        _tell(report, "pool, it is back", await arrive(client, rng, 2.0 * rate, None))
    with AdminClient(daemon.home / "a.sock", timeout=30) as admin:
        for name, numbers in admin.status().metrics["backends"].items():
            report.notes.append(f"{name}: {dict(numbers['routed'])}")


def _until_back(daemon: Pooled, name: str) -> None:
    while not (row := daemon.backends()[name])["ready"] or row["breaker"] != "closed":
        time.sleep(0.2)


def _tell(report: Report, name: str, outcome: Outcome) -> None:
    sys.stderr.write(
        f"{name}: p99 of the wait {quantile(outcome.waits, 0.99):.0f} ms, {dict(outcome.ends)}\n"
    )
    report.add(name, "p99 wait", "ms", quantile(outcome.waits, 0.99))
    report.add(name, "median wait", "ms", quantile(outcome.waits, 0.5))
    report.notes.append(f"{name}: {dict(outcome.ends)}")


if __name__ == "__main__":
    main("spill", __doc__ or "", run)
