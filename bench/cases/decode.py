"""The tokens per second and the time to the first token of one stream, through each server and in bare token
loops.

Every contestant has the same model, threads, prompt and context size, samples greedily, and has no flash
attention, which on a CPU slows decoding. llama-server takes part a second time with its default flash
attention. inferd also takes part with its own choice of threads, and with typed blocks (v2), always without
drafts. In each round every contestant answers the same new prompt once. The order rotates from round to
round.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import random
import time
from collections.abc import Callable

from bench import prompts, quiet, servers
from bench.clients import Stream, ask
from bench.report import Report, main

N_CTX = 2048
N_PREDICT = 128
# Threads of one contestant may still spin when the next one starts.
REST_SECS = 0.5


def as_messages(messages: list[dict[str, str]]) -> str:
    return json.dumps({"messages": messages, "n_predict": N_PREDICT})


def as_text(messages: list[dict[str, str]]) -> str:
    return f"{N_PREDICT} {prompts.chatml(messages).encode().hex()}"


class Contest:
    """The contestants that started, and their measurements."""

    def __init__(self, report: Report, patience: float) -> None:
        self.report = report
        self.watch = quiet.Watch(report, patience)
        self.turns: dict[str, Callable[[list[dict[str, str]]], None]] = {}
        self._processes: dict[str, servers.Process] = {}

    def through(
        self, name: str, server: servers.Process, start: Callable[[list[dict[str, str]], int], Stream]
    ) -> None:
        """Adds a server, whose streams ``start`` makes. Its client measures it."""

        def turn(messages: list[dict[str, str]]) -> None:
            stream = ask(start(messages, N_PREDICT))
            add = self.report.add
            add(name, "decode", "tokens/s", stream.tokens_per_second)
            add(name, "time to first token", "ms", stream.ttft_ms)
            if stream.prefill_ms is not None:
                add(name, "prefill", "ms", stream.prefill_ms)
                add(name, "time to first token less prefill", "ms", stream.ttft_ms - stream.prefill_ms)

        self.turns[name], self._processes[name] = turn, server

    def loop(self, loop: servers.Loop, line: Callable[[list[dict[str, str]]], str]) -> None:
        """Adds a bare loop; ``line`` makes its input."""

        def turn(messages: list[dict[str, str]]) -> None:
            answer = loop.ask(line(messages))
            times = answer["times"]
            assert isinstance(times, list)
            assert isinstance(answer["prefill_ms"], float)
            self.report.add(loop.name, "decode", "tokens/s", (len(times) - 1) / (times[-1] - times[0]))
            self.report.add(loop.name, "prefill", "ms", answer["prefill_ms"])

        self.turns[loop.name], self._processes[loop.name] = turn, loop

    def round(self, rng: random.Random, first: int) -> None:
        seed = rng.random()
        names = list(self.turns)
        for name in names[first % len(names) :] + names[: first % len(names)]:
            # The same prompt for all. A repeated turn gets a new prompt, because a server may have cached it.
            self.watch.undisturbed(functools.partial(self.turn, name, random.Random(seed)))
            time.sleep(REST_SECS)

    def turn(self, name: str, rng: random.Random) -> None:
        """Takes a turn. A contestant whose process has ended is reported as missing, with its signal, and
        skipped from then on."""
        if name not in self.turns:
            return
        try:
            self.turns[name](prompts.story(rng))
        except Exception:
            process = self._processes[name]
            if not process.ended():
                raise
            self.report.missing[name] = str(process.failed())
            self.report.samples = [each for each in self.report.samples if each.contestant != name]
            del self.turns[name]


def run(options: argparse.Namespace, report: Report) -> None:
    model = servers.model_file(options)
    threads, python = options.threads, options.peer_python
    report.settings |= {"model": model.name, "n_ctx": N_CTX, "n_predict": N_PREDICT, "flash_attention": "off"}
    contest = Contest(report, options.patience)
    with contextlib.ExitStack() as stack:
        loops: dict[str, Callable[[], servers.Loop]] = {
            "inferd engine": functools.partial(servers.engine_loop, model, threads, N_CTX),
            "bare loop (C++)": functools.partial(servers.bare_loop, model, threads, N_CTX),
            "llama-cpp-python loop": functools.partial(servers.low_level_loop, python, model, threads, N_CTX),
        }
        for name, make in loops.items():
            try:
                contest.loop(stack.enter_context(make()), as_messages if name == "inferd engine" else as_text)
            except servers.Unavailable as reason:
                report.missing[name] = str(reason)

        running: list[servers.Server] = []
        room = {"threads": threads, "n_ctx": N_CTX}
        own_threads = {"threads": 0, "n_ctx": N_CTX, "name": "inferd, its own threads"}
        own = functools.partial(servers.Inferd, model, drafts="off")
        blocks = "inferd, v2"
        own_flash = {"flash_attention": "auto", "name": "llama-server, its flash attention"}
        contestants: dict[str, Callable[[], servers.Server]] = {
            "inferd": functools.partial(own, **room),
            blocks: functools.partial(own, **room, name=blocks),
            **servers.earlier(options, model, **room, drafts="off"),
            own_threads["name"]: functools.partial(own, **own_threads),
            "llama-server": functools.partial(servers.LlamaServer, python, model, **room),
            own_flash["name"]: functools.partial(servers.LlamaServer, python, model, **room, **own_flash),
            "llama-cpp-python": functools.partial(servers.LlamaCppPython, python, model, **room),
        }
        for name, start in contestants.items():
            try:
                server = stack.enter_context(start())
            except servers.Unavailable as reason:
                report.missing[name] = str(reason)
                continue
            running.append(server)
            if isinstance(server, servers.Inferd) and name == blocks:
                contest.through(name, server, server.v2_stream)
            else:
                contest.through(name, server, server.stream)

        rng = random.Random(options.seed)
        for name in list(contest.turns):
            contest.turn(name, rng)  # warms caches and is not counted
        report.samples.clear()
        for number in range(options.repeats):
            contest.round(rng, number)
        for server in (server for server in running if server.name in contest.turns):
            for metric, mebibytes in server.memory().items():
                report.add(server.name, metric, "MiB", mebibytes)

    for to in contest.turns:
        for metric in ("decode", "time to first token", "time to first token less prefill", "resident"):
            report.ratio(metric, "inferd", to)


if __name__ == "__main__":
    main("decode", __doc__ or "", run)
