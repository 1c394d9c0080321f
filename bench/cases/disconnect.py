"""The time from a client's disconnection until its slot is free, while another slot is busy.

There are two slots. A neighbour generates a long answer in one, a victim holds the other, and a third request
waits. The victim disconnects during its answer or during its long prompt. The result is the time until the
waiting request has its first token, minus the time that the same request needs with the same neighbour and a
free slot.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import random
import statistics
import time
from collections.abc import Callable

from bench import prompts, quiet, servers
from bench.clients import Stream, drive
from bench.report import Report, main

N_CTX = 4096
NEIGHBOUR_TOKENS = 1500
VICTIM_TOKENS = 400
PROMPT_WORDS = 1600
# Seconds from the start of the prompt until the victim disconnects; the prompt takes longer.
LEAVE_AFTER_SECS = 0.4
REST_SECS = 2.0


class Scene:
    """One server with its running neighbour."""

    def __init__(self, server: servers.Server, rng: random.Random) -> None:
        self.server = server
        self.rng = rng
        self.gaps: list[float] = []
        self.start_neighbour()

    def start_neighbour(self) -> None:
        self.neighbour = self.request(prompts.story(self.rng), NEIGHBOUR_TOKENS)
        drive([self.neighbour], until=lambda: len(self.neighbour.arrivals) >= 5)

    def request(self, messages: list[dict[str, str]], max_tokens: int) -> Stream:
        stream = self.server.stream(messages, max_tokens)
        stream.send()
        return stream

    def first_token_since(self, start: float, stream: Stream) -> float:
        """A measurement in milliseconds. Raises RuntimeError if the neighbour did not run all the time."""
        drive([self.neighbour, stream], until=lambda: bool(stream.arrivals) or stream.done)
        if not stream.arrivals or self.neighbour.done:
            raise RuntimeError(f"{self.server.name} ended early: {stream.failed or self.neighbour.failed}")
        first = stream.arrivals[0]
        drive([stream])
        return (first - start) * 1e3

    def with_a_free_slot(self) -> float:
        stream = self.request(prompts.short(self.rng), 2)
        return self.first_token_since(stream.sent_at, stream)

    def after_the_victim_left(self, victim: Stream) -> float:
        waiting = self.request(prompts.short(self.rng), 2)
        self.watch_for(0.1)
        return self.first_token_since(victim.leave(), waiting)

    def after_leaving_the_answer(self) -> float:
        victim = self.request(prompts.story(self.rng), VICTIM_TOKENS)
        drive([self.neighbour, victim], until=lambda: len(victim.arrivals) >= 10)
        return self.after_the_victim_left(victim)

    def after_leaving_the_prompt(self) -> float:
        victim = self.request(prompts.story(self.rng, PROMPT_WORDS), VICTIM_TOKENS)
        self.watch_for(LEAVE_AFTER_SECS)
        return self.after_the_victim_left(victim)

    def watch_for(self, seconds: float) -> None:
        """Reads the neighbour's tokens for a while."""
        until = time.perf_counter() + seconds
        drive([self.neighbour], until=lambda: time.perf_counter() >= until)

    def renew(self) -> None:
        """A new neighbour and two free slots, for the next measurement."""
        self.gaps += self.neighbour.gaps_ms()
        self.end()
        self.start_neighbour()

    def end(self) -> None:
        self.neighbour.leave()
        time.sleep(REST_SECS)


def measure(server: servers.Server, rng: random.Random, report: Report) -> None:
    scene = Scene(server, rng)
    free = scene.with_a_free_slot()
    report.add(server.name, "first token with a free slot", "ms", free)
    for where, turn in (
        ("answer", scene.after_leaving_the_answer),
        ("prompt", scene.after_leaving_the_prompt),
    ):
        scene.renew()
        took = turn()
        report.add(server.name, f"first token after leaving the {where}", "ms", took)
        report.add(server.name, f"slot free after leaving the {where}", "ms", took - free)
    scene.renew()
    report.add(server.name, "step of the neighbour", "ms", statistics.median(scene.gaps))
    scene.end()


def run(options: argparse.Namespace, report: Report) -> None:
    model, python, threads = servers.model_file(options), options.peer_python, options.threads
    report.settings |= {"model": model.name, "n_ctx": N_CTX, "slots": 2, "victim_tokens": VICTIM_TOKENS}
    room = {"threads": threads, "n_ctx": N_CTX, "slots": 2}
    contestants: dict[str, Callable[[], servers.Server]] = {
        "inferd": functools.partial(servers.Inferd, model, **room),
        "llama-server": functools.partial(servers.LlamaServer, python, model, **room),
    }
    rng = random.Random(options.seed)
    watch = quiet.Watch(report, options.patience)
    with contextlib.ExitStack() as stack:
        running = servers.started(stack, contestants, report.missing)
        for number in range(options.repeats):
            for server in running if number % 2 == 0 else running[::-1]:
                watch.undisturbed(functools.partial(measure, server, rng, report))


if __name__ == "__main__":
    main("disconnect", __doc__ or "", run)
