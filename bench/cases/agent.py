"""Plays the session of an agent: a long system prompt, then six turns that each add a hundred new tokens.

Each turn repeats everything before it. The case measures the time to the first token of the first turn, of
the later turns, and of the last request when it is sent again. Each round has a new session, and every server
gets the same words. The processor time of a turn includes its answer. On a shared machine it is more reliable
than the time to the first token.
"""

from __future__ import annotations

import argparse
import random

from bench import servers, sessions
from bench.clients import ask
from bench.report import Report, main

TURNS = 6
N_CTX = 4096


def session(server: servers.Server, rng: random.Random, report: Report, head: int) -> None:
    messages = sessions.head(rng, head)
    for turn in range(1, TURNS + 1):
        messages.append(sessions.question(rng))
        before = server.cpu_seconds()
        first = sessions.continued(server, messages).ttft_ms
        used = (server.cpu_seconds() - before) * 1e3
        which = "turn 1" if turn == 1 else f"turns 2-{TURNS}"
        report.add(server.name, f"first token, {which}", "ms", first)
        report.add(server.name, f"processor time, {which}", "ms", used)
    again = ask(server.stream(messages[:-1], sessions.N_PREDICT))
    report.add(server.name, "first token, the same again", "ms", again.ttft_ms)


def run(options: argparse.Namespace, report: Report) -> None:
    sessions.rounds(options, report, 2, N_CTX, session)


if __name__ == "__main__":
    main("agent", __doc__ or "", run)
