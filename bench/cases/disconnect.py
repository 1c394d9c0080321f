"""From a client's leaving to the slot being free, beside a busy neighbour.

Two slots: a neighbour answers at length in one, a victim holds the other, and a third request waits. The
victim leaves, in the middle of its answer or of its long prompt; the time until the waiting request's first
token, less what the same request takes beside the same neighbour when a slot is free, is the time to free
the slot.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import statistics
import time
from collections.abc import Callable

from bench import prompts, servers
from bench.clients import Stream, drive
from bench.report import Report, main

N_CTX = 4096
NEIGHBOUR_TOKENS = 2500
VICTIM_TOKENS = 400
PROMPT_WORDS = 1600
# How far into its prompt the victim leaves; the prompt takes seconds.
LEAVE_AFTER_SECS = 0.4
REST_SECS = 2.0


class Scene:
    """One server with its neighbour running."""

    def __init__(self, server: servers.Server, rng: random.Random) -> None:
        self.server = server
        self.rng = rng
        self.neighbour = self.request(NEIGHBOUR_TOKENS)
        drive([self.neighbour], until=lambda: len(self.neighbour.arrivals) >= 5)

    def request(self, max_tokens: int, extra_words: int = 0) -> Stream:
        stream = self.server.stream(prompts.story(self.rng, extra_words), max_tokens)
        stream.send()
        return stream

    def first_token(self, stream: Stream) -> float:
        drive([self.neighbour, stream], until=lambda: bool(stream.arrivals) or stream.done)
        if not stream.arrivals:
            raise RuntimeError(f"{self.server.name} answered: {stream.failed}")
        return stream.arrivals[0]

    def with_a_free_slot(self) -> float:
        stream = self.request(2)
        took = self.first_token(stream) - stream.sent_at
        drive([stream])
        return took * 1e3

    def after_a_victim_left(self, *, in_prompt: bool) -> float:
        victim = self.request(VICTIM_TOKENS, PROMPT_WORDS if in_prompt else 0)
        if in_prompt:
            self.watch_for(LEAVE_AFTER_SECS)
        else:
            drive([self.neighbour, victim], until=lambda: len(victim.arrivals) >= 10)
        waiting = self.request(2)
        self.watch_for(0.1)
        left_at = victim.leave()
        took = self.first_token(waiting) - left_at
        drive([waiting])
        return took * 1e3

    def watch_for(self, seconds: float) -> None:
        """Reads the neighbour's tokens for a while."""
        until = time.perf_counter() + seconds
        drive([self.neighbour], until=lambda: time.perf_counter() >= until)

    def end(self) -> None:
        self.neighbour.leave()
        time.sleep(REST_SECS)


def measure(server: servers.Server, rng: random.Random, report: Report) -> None:
    scene = Scene(server, rng)
    add = report.add
    add(server.name, "first token with a free slot", "ms", scene.with_a_free_slot())
    add(
        server.name,
        "first token after the victim left its answer",
        "ms",
        scene.after_a_victim_left(in_prompt=False),
    )
    add(
        server.name,
        "first token after the victim left its prompt",
        "ms",
        scene.after_a_victim_left(in_prompt=True),
    )
    add(server.name, "step of the neighbour", "ms", statistics.median(scene.neighbour.gaps_ms()))
    scene.end()


def run(options: argparse.Namespace, report: Report) -> None:
    model, python, threads = servers.model_file(options), options.peer_python, options.threads
    report.settings |= {"model": model.name, "n_ctx": N_CTX, "slots": 2, "victim_tokens": VICTIM_TOKENS}
    room = {"threads": threads, "n_ctx": N_CTX, "slots": 2}
    contestants: dict[str, Callable[[], servers.Server]] = {
        "inferd": lambda: servers.Inferd(model, **room),
        "llama-server": lambda: servers.LlamaServer(python, model, **room),
    }
    rng = random.Random(options.seed)
    with contextlib.ExitStack() as stack:
        running = []
        for name, start in contestants.items():
            try:
                running.append(stack.enter_context(start()))
            except servers.Unavailable as reason:
                report.missing[name] = str(reason)
        for number in range(options.repeats):
            for server in running if number % 2 == 0 else running[::-1]:
                measure(server, rng, report)
    for server in running:
        free = report.median(server.name, "first token with a free slot")
        for where in ("answer", "prompt"):
            freed = report.median(server.name, f"first token after the victim left its {where}")
            if free is not None and freed is not None:
                report.add(server.name, f"slot free after leaving the {where}", "ms", freed - free)


if __name__ == "__main__":
    main("disconnect", __doc__ or "", run)
