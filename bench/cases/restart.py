"""Measures a long request before and after a restart of the server.

inferd keeps the KV caches of earlier prompts in files. inferd also takes part without these files.
llama-server has no such files. The case measures the time to the first token before and after the restart,
and the size of the files.
"""

from __future__ import annotations

import argparse
import functools
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench import quiet, servers, sessions
from bench.clients import ask
from bench.report import Report, main

N_CTX = 2560


def before_and_after(
    make: Callable[[], servers.Server], messages: list[dict[str, str]], report: Report
) -> None:
    for when in ("before", "after"):
        with make() as server:
            stream = ask(server.stream(messages, sessions.N_PREDICT))
        report.add(server.name, f"first token {when} a restart", "ms", stream.ttft_ms)


def run(options: argparse.Namespace, report: Report) -> None:
    model = servers.model_file(options)
    room = sessions.settings(options, report, 1, N_CTX)
    rng = random.Random(options.seed)
    watch = quiet.Watch(report, options.patience)
    for _ in range(options.repeats):
        messages = [*sessions.head(rng, options.head), sessions.question(rng)]
        home = Path(tempfile.mkdtemp(prefix="ifd-"))
        ours = functools.partial(servers.Inferd, model, **room)
        makers: dict[str, Callable[[], servers.Server]] = {
            "inferd": functools.partial(ours, keep=home),
            **servers.earlier(options, model, **room),
            "inferd, no files": functools.partial(
                ours, name="inferd, no files", more=("--cache-disk-mib", 0)
            ),
            "llama-server": functools.partial(
                servers.LlamaServer, options.peer_python, model, keeps_prompts=True, **room
            ),
        }
        for name, make in makers.items():
            try:
                watch.undisturbed(functools.partial(before_and_after, make, messages, report))
            except servers.Unavailable as reason:
                report.missing[name] = str(reason)
        files = [path.stat().st_size for path in home.rglob("*.state")]
        report.add("inferd", "file", "MB", sum(files) / 1e6)
        shutil.rmtree(home)
    for to in ("inferd, no files", "llama-server", servers.EARLIER):
        report.ratio("first token after a restart", "inferd", to)


if __name__ == "__main__":
    main("restart", __doc__ or "", run)
