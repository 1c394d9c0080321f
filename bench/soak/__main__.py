"""Puts a mixed load on a daemon with a real model for some time:
``python -m bench.soak --model FILE --minutes 30``.

Clients of all kinds use the daemon at the same time, while its configuration changes. Afterwards every
request must have had its terminal frame. The daemon must then have no more memory, descriptors, threads,
tasks and backends than before, and still the whole context for as many requests as run at once. The memory of
an engine that no reload replaces must not have grown either. The prefix cache must stay within its budgets.
If any of this fails, the exit status is 1.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.soak.loads import VISITS, Guest, Visit
from bench.soak.served import ACTIVE_PERMITS, CACHE_MIB, KEPT, N_CTX, Served
from inferd import RequestFailed

GUESTS = 8
RELOAD_EVERY_SECS = 5.0
LOOK_EVERY_SECS = 10.0
MEMORY_SLACK_MIB = {
    "resident MiB": 16.0,
    "anonymous MiB": 16.0,
    "engine's resident MiB": 16.0 + CACHE_MIB,
    "engine's anonymous MiB": 16.0 + CACHE_MIB,
}
MOST_FINDINGS = 20
REST_SECS = 30.0
STEADY_LOOKS = 20
PROMPT_MARGIN = 80
"""Tokens that a chat template adds to a prompt, and some tokens of answer."""


class Soak:
    """One run. ``findings`` are the faults, ``outcomes`` the results of the visits."""

    def __init__(self, model: Path, seed: int, visits: Sequence[Visit]) -> None:
        self.served = Served(model)
        self.findings: list[str] = []
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self._chance = random.Random(seed)
        self._visits = visits

    async def run(
        self, seconds: float, show: Callable[[str], None], fill: bool
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The inventories before and after."""
        await self.served.ready()
        guest = self._guest()
        await asyncio.gather(*(self._visit(guest, visit) for visit in dict.fromkeys(self._visits)))
        for _ in range(6):
            await self._reload()
        if fill:
            await self._fill(guest)
        before = await self._at_rest(guest)
        end = time.monotonic() + seconds
        await asyncio.gather(
            *(self._keep_visiting(end) for _ in range(GUESTS)),
            self._keep_reloading(end),
            self._keep_looking(end, show),
        )
        await self.served.reset()
        if fill:
            await self._fill(guest)
        after = await self._at_rest(guest, before)
        self._compare(before, after)
        return before, after

    def _guest(self) -> Guest:
        return Guest(self.served.runtime, random.Random(self._chance.random()))

    async def _keep_visiting(self, end: float) -> None:
        guest = self._guest()
        while time.monotonic() < end:
            await self._visit(guest, guest.chance.choice(self._visits))
        await guest.client.aclose()

    async def _keep_reloading(self, end: float) -> None:
        while time.monotonic() < end:
            await asyncio.sleep(min(RELOAD_EVERY_SECS, max(end - time.monotonic(), 0)))
            await self._reload()

    async def _keep_looking(self, end: float, show: Callable[[str], None]) -> None:
        start = time.monotonic()
        while time.monotonic() + LOOK_EVERY_SECS < end:
            await asyncio.sleep(LOOK_EVERY_SECS)
            self.findings += await self.served.beyond_budget()
            visits, memory = self.outcomes.total(), self.served.memory()["resident MiB"]
            engine = (await self.served.engine())["engine's resident MiB"]
            files = self.served.cache_files_bytes() / 2**20
            show(
                f"after {time.monotonic() - start:.0f} s: {visits} visits, {memory} MiB resident,"
                f" {engine} in the engine, {files:.1f} in files"
            )

    async def _reload(self) -> None:
        self.outcomes["reload", await self.served.reload()] += 1

    async def _visit(self, guest: Guest, visit: Visit) -> None:
        name = visit.__name__
        try:
            self.outcomes[name, await visit(guest)] += 1
        except Exception as error:
            if isinstance(error, RequestFailed) and error.wire_code == "queue_full":
                self.outcomes[name, "queue_full"] += 1
            else:
                self.outcomes[name, "FAILED"] += 1
                self.findings.append(f"{name}: {type(error).__name__}: {error}")

    async def _at_rest(self, guest: Guest, before: dict[str, Any] | None = None) -> dict[str, Any]:
        """The inventory of an idle daemon without clients.

        A task may take a moment to end, and so may the process of a replaced model, with the thread that
        waits for it. So this is the first inventory without more tasks and threads than ``before``, or
        without that inventory the last of STEADY_LOOKS inventories with the same number of tasks.
        """
        await guest.client.aclose()
        looks: list[int] = []
        patience = time.monotonic() + REST_SECS
        while True:
            state = await guest.client.status()
            open_ = sum(surface["connections_open"] for surface in state.metrics["surfaces"].values())
            if not (state.running or state.waiting or open_):
                found = await self.served.inventory()
                looks = [*looks, found["tasks"]][-STEADY_LOOKS:]
                steady = looks == [looks[0]] * STEADY_LOOKS
                settled = steady if before is None else not _more(before, found)
                # Some time after a load, the daemon starts its spare engine process.
                engines = sum(row["engine"] is not None for row in state.backends)
                whole = self.served.children() == engines + 1
                if (settled and whole) or time.monotonic() > patience:
                    return found
            await asyncio.sleep(0.05)

    async def _fill(self, guest: Guest) -> None:
        """Requests as many answers at once as both models can run, each to the end of its context."""
        prompt = "word " * (N_CTX - PROMPT_MARGIN)
        asked = [
            guest.client.generate(prompt, model=model, max_tokens=N_CTX, grammar='root ::= "a" root')
            for model in (None, KEPT)
            for _ in range(ACTIVE_PERMITS)
        ]
        for done in await asyncio.gather(*(answer.result() for answer in asked)):
            used = done.prompt_tokens + done.completion_tokens
            if done.stop_reason != "length" or used < N_CTX - 1:
                self.findings.append(f"only {used} of {N_CTX} tokens of context were free")

    def _compare(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        for name in ("tasks", "backends", "streams", "engine restarts"):
            if after[name] > before[name]:
                self.findings.append(f"{name}: {before[name]} before, {after[name]} after")
        for name in ("threads", "descriptors"):
            more = Counter(after[name]) - Counter(before[name])
            if more:
                self.findings.append(f"{name} left: {dict(more)}")
        for name, slack in MEMORY_SLACK_MIB.items():
            if after[name] > before[name] + slack:
                self.findings.append(f"{name}: {before[name]} before, {after[name]} after")


def _more(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether ``after`` has more tasks or threads than ``before``."""
    return after["tasks"] > before["tasks"] or bool(Counter(after["threads"]) - Counter(before["threads"]))


async def soak(
    model: Path,
    seconds: float,
    seed: int,
    show: Callable[[str], None] = print,
    visits: Sequence[Visit] = VISITS,
    fill: bool = True,
) -> list[str]:
    """Runs the soak, prints its outcomes line by line, and returns the findings.

    ``fill``: whether to fill all of the context before and after; this takes half of the time of a short run.
    """
    run = Soak(model, seed, visits)
    try:
        before, after = await run.run(seconds, show, fill)
    except BaseException:
        show(run.served.output())
        raise
    finally:
        code = run.served.stop()
        if code:
            run.findings.append(f"the daemon ended with {code}: {run.served.output()}")
        run.served.clean()
    for (name, outcome), count in sorted(run.outcomes.items()):
        show(f"{name:14} {outcome:20} {count}")
    for name, value in after.items():
        start, end = (len(each) if isinstance(each, list) else each for each in (before[name], value))
        show(f"{name}: {start} before, {end} after")
    return run.findings


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file of a text model")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)
    findings = asyncio.run(soak(chosen.model.resolve(), chosen.minutes * 60, chosen.seed))
    for finding, count in Counter(findings).most_common(MOST_FINDINGS):
        print(f"FOUND {count} times: {finding}", file=sys.stderr)
    print(f"{len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
