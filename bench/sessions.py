"""Code that the cases of the prefix cache share: servers that keep the KV caches of earlier prompts, and
growing conversations.

Both servers have the same number of slots, the same context and no flash attention. llama-server keeps its
default prompt cache, in its slots and in memory. A conversation is a long system prompt and turns. As a
client would do, each turn sends the server's last answer back, followed by a tool result of about a hundred
tokens.
"""

from __future__ import annotations

import contextlib
import functools
import random
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

from bench import prompts, quiet, servers
from bench.clients import Stream, ask
from bench.report import Report
from inferd.config.model_options import DEFAULT_MODEL

TURN_TOKENS = 90
N_PREDICT = 16
REST_SECS = 0.3

_TOKENS_A_WORD = 1.25


def head(rng: random.Random, tokens: int) -> list[dict[str, str]]:
    """A system prompt of about this many tokens."""
    text = prompts.words(rng, round(tokens / _TOKENS_A_WORD))
    return [{"role": "system", "content": f"You are an agent. {text}"}]


def question(rng: random.Random) -> dict[str, str]:
    return {"role": "user", "content": prompts.words(rng, round(TURN_TOKENS / _TOKENS_A_WORD))}


def continued(server: servers.Server, messages: list[dict[str, str]]) -> Stream:
    """Sends a turn, and adds the answer to the conversation."""
    stream = ask(server.stream(messages, N_PREDICT))
    messages.append({"role": "assistant", "content": "".join(stream.text)})
    return stream


def settings(options: Namespace, report: Report, slots: int, n_ctx: int) -> dict[str, int]:
    report.settings |= {
        "model": options.model.name if options.model else DEFAULT_MODEL,
        "slots": slots,
        "n_ctx": n_ctx,
        "n_predict": N_PREDICT,
        "head_tokens": options.head,
        "flash_attention": "off",
    }
    report.version("xllamacpp", servers.version_of(options.peer_python, "xllamacpp"))
    return {"threads": options.threads, "n_ctx": n_ctx, "slots": slots}


@contextlib.contextmanager
def both(
    options: Namespace, report: Report, slots: int, n_ctx: int, rng: random.Random
) -> Iterator[list[servers.Server]]:
    """inferd, its earlier build if one was given, and llama-server, all warm. Reports the missing ones."""
    model: Path = servers.model_file(options)
    room = settings(options, report, slots, n_ctx)
    makers: dict[str, Callable[[], servers.Server]] = {
        "inferd": functools.partial(servers.Inferd, model, **room),
        **servers.earlier(options, model, **room),
        "llama-server": functools.partial(
            servers.LlamaServer, options.peer_python, model, keeps_prompts=True, **room
        ),
    }
    with contextlib.ExitStack() as stack:
        running = servers.started(stack, makers, report.missing)
        for server in running:
            ask(server.stream(prompts.short(rng), 4))
        yield running


Turn = Callable[[servers.Server, random.Random, Report, int], None]


def rounds(options: Namespace, report: Report, slots: int, n_ctx: int, *turns: Turn) -> None:
    """Runs the ``turns`` with every server in each round, with new words for each round.

    Each turn gets the length of a long system prompt in tokens. The order of the servers alternates.
    """
    rng = random.Random(options.seed)
    watch = quiet.Watch(report, options.patience)
    with both(options, report, slots, n_ctx, rng) as running:
        for number in range(options.repeats):
            seed = rng.random()
            for server in running if number % 2 == 0 else running[::-1]:
                own = random.Random(seed)
                for turn in turns:
                    watch.undisturbed(functools.partial(turn, server, own, report, options.head))
                time.sleep(REST_SECS)
    for metric in sorted({sample.metric for sample in report.samples}):
        for to in ("llama-server", servers.EARLIER):
            report.ratio(metric, "inferd", to)
