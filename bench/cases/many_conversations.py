"""Twelve conversations take turns on four slots, which cannot hold all of them.

Each conversation has a system prompt of its own, a fifth as long as in the other cases. The conversations
take turns in a fixed order. So a server that caches only what is in its slots has always just evicted the
conversation that comes next. The case measures the time to the first token of all turns but the first.
"""

from __future__ import annotations

import argparse
import random

from bench import servers, sessions
from bench.report import Report, main

CONVERSATIONS, SLOTS, TURNS = 12, 4, 3
N_CTX = 2048


def conversations(server: servers.Server, rng: random.Random, report: Report, head: int) -> None:
    all_of_them = [sessions.head(rng, head // 5) for _ in range(CONVERSATIONS)]
    for turn in range(1, TURNS + 1):
        for messages in all_of_them:
            messages.append(sessions.question(rng))
            first = sessions.continued(server, messages).ttft_ms
            metric = "first token, turn 1" if turn == 1 else "first token, later turns"
            report.add(server.name, metric, "ms", first)


def run(options: argparse.Namespace, report: Report) -> None:
    sessions.rounds(options, report, SLOTS, N_CTX, conversations)
    report.settings["head_tokens"] = options.head // 5


if __name__ == "__main__":
    main("many_conversations", __doc__ or "", run)
