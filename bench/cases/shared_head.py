"""Four clients send requests at once. The four prompts begin with the same long text, like the prompts of
four agents with one system prompt.

The case measures the time until the last client has its first token. A server that computes the common
beginning only once needs little more time than for a single client. The time of a single client is measured
before, with another beginning.
"""

from __future__ import annotations

import argparse
import random

from bench import servers, sessions
from bench.clients import ask, drive
from bench.report import Report, main

CLIENTS = 4
N_CTX = 2560


def alone(server: servers.Server, rng: random.Random, report: Report, head: int) -> None:
    messages = [*sessions.head(rng, head), sessions.question(rng)]
    stream = ask(server.stream(messages, sessions.N_PREDICT))
    report.add(server.name, "one client, first token", "ms", stream.ttft_ms)


def together(server: servers.Server, rng: random.Random, report: Report, head: int) -> None:
    common = sessions.head(rng, head)
    asked = [[*common, sessions.question(rng)] for _ in range(CLIENTS)]
    streams = [server.stream(messages, sessions.N_PREDICT) for messages in asked]
    for stream in streams:
        stream.send()
    drive(streams)
    last = max(stream.arrivals[0] for stream in streams) - streams[0].sent_at
    report.add(server.name, f"{CLIENTS} clients, last first token", "ms", last * 1e3)


def run(options: argparse.Namespace, report: Report) -> None:
    sessions.rounds(options, report, CLIENTS, N_CTX, alone, together)


if __name__ == "__main__":
    main("shared_head", __doc__ or "", run)
