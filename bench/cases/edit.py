"""Measures speculative decoding from earlier text: the gain for answers that repeat the prompt, and the cost
for prose.

One prompt has a file of 120 lines and asks for the whole file with one name changed. The other asks for a
story. The answers are sampled greedily and end after some hundred tokens. There is one stream, and the prompt
caches are off. llama-server takes part twice: with its defaults, and with its own drafts from n-grams. The
processor time of an answer includes that of its prompt.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import random
from collections.abc import Callable

from bench import prompts, quiet, servers
from bench.clients import NdjsonStream, SseStream, Stream, ask
from bench.report import Report, main

N_CTX = 4096
N_PREDICT = {"edit": 400, "prose": 128}


def edit(rng: random.Random) -> list[dict[str, str]]:
    lines = [f"# {prompts.words(rng, 4)}", "total = 0"]
    while len(lines) < 120:
        name = "_".join(rng.choice(prompts.WORDS) for _ in range(2))
        lines += [f"def {name}(value):", f"    total = value * {rng.randrange(99)}", "    return total", ""]
    file = "\n".join(lines[:120])
    asked = f"Write this file again, with `sum` in the place of `total`, and nothing else.\n\n{file}"
    return [{"role": "user", "content": asked}]


WAYS: dict[str, Callable[[random.Random], list[dict[str, str]]]] = {"edit": edit, "prose": prompts.story}


def stream_of(server: servers.Server, messages: list[dict[str, str]], budget: int) -> Stream:
    if isinstance(server, servers.Inferd):
        return NdjsonStream(server.address, messages, budget, {"cache": False})
    return SseStream(server.address, messages, budget, {"cache_prompt": False})


def turn(report: Report, server: servers.Server, way: str, rng: random.Random) -> None:
    before = server.cpu_seconds()
    stream = ask(stream_of(server, WAYS[way](rng), N_PREDICT[way]))
    used = server.cpu_seconds() - before
    report.add(server.name, f"decode, {way}", "tokens/s", stream.tokens_per_second)
    report.add(server.name, f"processor time, {way}", "ms a token", used * 1e3 / stream.tokens)


def run(options: argparse.Namespace, report: Report) -> None:
    model = servers.model_file(options)
    report.settings |= {"model": model.name, "n_ctx": N_CTX, "n_predict": N_PREDICT, "flash_attention": "off"}
    watch = quiet.Watch(report, options.patience)
    room = {"threads": options.threads, "n_ctx": N_CTX}
    ours, plain, peer, peer_drafts = "inferd", "inferd, no drafts", "llama-server", "llama-server, n-grams"
    peer_python = options.peer_python
    contestants: dict[str, Callable[[], servers.Server]] = {
        ours: functools.partial(servers.Inferd, model, **room),
        plain: functools.partial(servers.Inferd, model, **room, name=plain, drafts="off"),
        **servers.earlier(options, model, **room),
        peer: functools.partial(servers.LlamaServer, peer_python, model, **room),
        peer_drafts: functools.partial(
            servers.LlamaServer, peer_python, model, **room, name=peer_drafts, n_grams=True
        ),
    }
    with contextlib.ExitStack() as stack:
        running = servers.started(stack, contestants, report.missing)
        rng = random.Random(options.seed)
        for number in range(options.repeats):
            seed = rng.random()
            for server in servers.in_turn(running, number):
                for way in WAYS:
                    again = random.Random(seed)
                    watch.undisturbed(functools.partial(turn, report, server, way, again))
    for measure in ("decode", "processor time"):
        for to in (plain, peer, peer_drafts, servers.EARLIER):
            report.paired((ours, f"{measure}, edit"), (to, f"{measure}, edit"))
        report.paired((ours, f"{measure}, prose"), (plain, f"{measure}, prose"))


if __name__ == "__main__":
    main("edit", __doc__ or "", run)
