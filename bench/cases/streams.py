"""Several streams at once: their tokens per second in total, and the effect of a long prompt that arrives
meanwhile.

There are 1, 4 and 8 streams. Both servers have one slot more than there are streams, and the same context in
each slot. First the streams run alone. Then they run again, and a prompt of about 2,000 tokens arrives once
each stream has begun to answer. The gaps are the times between two tokens of a stream, from the arrival of
the prompt until its first token.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import random
import time
from collections.abc import Callable

from bench import prompts, quiet, servers
from bench.clients import Stream, drive
from bench.report import Report, main, quantile

STREAMS = (1, 4, 8)
N_CTX = 4096
N_PREDICT = 96
# Enough tokens to last until the long prompt is computed.
N_PREDICT_BESIDE = 1500
LONG_PROMPT_WORDS = 1600
# Time for a server to notice that the clients have left.
REST_SECS = 3.0


def start(server: servers.Server, rng: random.Random, count: int, n_predict: int) -> list[Stream]:
    streams = [server.stream(prompts.story(rng), n_predict) for _ in range(count)]
    for stream in streams:
        stream.send()
    return streams


def alone(server: servers.Server, rng: random.Random, count: int, report: Report) -> None:
    """Counts only the time during which every stream is answering."""
    streams = start(server, rng, count, N_PREDICT)
    drive(streams)
    for stream in streams:
        if stream.failed:
            raise RuntimeError(f"{server.name} answered: {stream.failed}")
    since = max(stream.arrivals[0] for stream in streams)
    until = min(stream.arrivals[-1] for stream in streams)
    tokens = sum(since < at <= until for stream in streams for at in stream.arrivals)
    report.add(server.name, f"{count} streams, in total", "tokens/s", tokens / (until - since))
    gaps = [gap for stream in streams for gap in stream.gaps_ms(since, until)]
    report.add(server.name, f"{count} streams, gap p99", "ms", quantile(gaps, 0.99))


def beside_a_long_prompt(server: servers.Server, rng: random.Random, count: int, report: Report) -> None:
    streams = start(server, rng, count, N_PREDICT_BESIDE)
    drive(streams, until=lambda: all(len(stream.arrivals) >= 8 for stream in streams))
    late = server.stream(prompts.story(rng, LONG_PROMPT_WORDS), 4)
    late.send()
    drive([*streams, late], until=lambda: bool(late.arrivals) or late.done)
    if not late.arrivals:
        raise RuntimeError(f"{server.name} answered the long prompt: {late.failed}")
    first = late.arrivals[0]
    # A gap counts if it overlaps the time of the prompt, so the last token before that time counts, too.
    gaps = []
    for stream in streams:
        before = max(at for at in stream.arrivals if at <= late.sent_at)
        gaps += stream.gaps_ms(before, max(first, stream.arrivals[-1]))
    report.add(server.name, f"{count} streams and a long prompt, gap p99", "ms", quantile(gaps, 0.99))
    report.add(server.name, f"{count} streams and a long prompt, gap p50", "ms", quantile(gaps, 0.5))
    report.add(server.name, f"{count} streams, first token of a long prompt", "ms", late.ttft_ms)
    for stream in (*streams, late):
        stream.leave()
    time.sleep(REST_SECS)


def run(options: argparse.Namespace, report: Report) -> None:
    model, python, threads = servers.model_file(options), options.peer_python, options.threads
    report.settings |= {"model": model.name, "n_ctx": N_CTX, "n_predict": N_PREDICT, "flash_attention": "off"}
    rng = random.Random(options.seed)
    watch = quiet.Watch(report, options.patience)
    for count in STREAMS:
        room = {"threads": threads, "n_ctx": N_CTX, "slots": count + 1}
        contestants: dict[str, Callable[[], servers.Server]] = {
            "inferd": functools.partial(servers.Inferd, model, **room),
            "llama-server": functools.partial(servers.LlamaServer, python, model, **room),
        }
        with contextlib.ExitStack() as stack:
            running = servers.started(stack, contestants, report.missing)
            for server in running:
                drive(start(server, rng, count, 8))
            for number in range(options.repeats):
                for server in running if number % 2 == 0 else running[::-1]:
                    for turn in (alone, beside_a_long_prompt):
                        watch.undisturbed(functools.partial(turn, server, rng, count, report))
            for server in running:
                for metric, mebibytes in server.memory().items():
                    report.add(server.name, f"{count} streams, {metric}", "MiB", mebibytes)
    for metric in {sample.metric for sample in report.samples}:
        report.ratio(metric, "inferd", "llama-server")
    report.ratios.sort(key=lambda ratio: ratio.metric)


if __name__ == "__main__":
    main("streams", __doc__ or "", run)
