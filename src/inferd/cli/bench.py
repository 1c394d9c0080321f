"""``inferd bench``: measures the speed of the daemon's model on this machine.

The command measures as a client does: the times when the first and the last chunk of each answer arrive. Each
prompt is new, so the cache has an effect only on the measurement of the cache. Other programs that run
meanwhile make the numbers worse.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from inferd.cli import background
from inferd.cli.columns import aligned, duration, rate
from inferd.cli.numbers import WholeNumber
from inferd.cli.options import connection_options, target
from inferd.cli.progress import Progress
from inferd.cli.say import say, say_json
from inferd.client import Client, Done, Token
from inferd.errors import DaemonUnreachable, RequestFailed

LONG_PIECES = 90
"""The number of notes in the long prompt, which then has about a thousand tokens. It is halved until the
prompt fits the context."""
READING = 10.0
"""A speed in tokens per second. An answer at this speed comes faster than a person reads."""
MOST_STREAMS = 16
BAR = 30

_BLOCKS = " ▏▎▍▌▋▊▉"
_THINGS = ("river", "clock", "garden", "engine", "letter", "island", "winter", "bridge", "market", "signal")


@dataclass(frozen=True)
class Streams:
    """The speeds of ``count`` concurrent answers, in tokens per second: of all answers together, and of the
    slowest answer."""

    count: int
    together: float
    slowest: float


@dataclass(frozen=True)
class Measured:
    """The results, in seconds, tokens, and tokens per second. When the long prompt was sent for the second
    time, ``long_cached`` of its ``long_tokens`` were in the cache."""

    model: str
    backend: str
    short_first: float
    long_tokens: int
    long_first: float
    long_cached: int
    long_again: float
    answer: float
    streams: list[Streams]


@dataclass(frozen=True)
class _Timed:
    done: Done
    sent: float
    first: float
    ended: float

    @property
    def wait(self) -> float:
        return self.first - self.sent

    @property
    def rate(self) -> float:
        """The tokens per second after the first token."""
        return (self.done.completion_tokens - 1) / max(self.ended - self.first, 1e-9)


class Bench:
    """Runs the measurements through one client. Calls ``note`` with the name of each step."""

    def __init__(self, client: Client, model: str | None, tokens: int, note: Callable[[str], None]) -> None:
        self._client = client
        self._model = model
        self._tokens = tokens
        self._note = note
        self._pieces = LONG_PIECES
        self._random = random.Random()  # noqa: S311 - prompts must be new, not unpredictable

    def run(self, rounds: int, most_streams: int) -> Measured:
        self._note("first answers")
        warm = self._ask(self._story(), self._tokens)
        alone = [self._ask(self._story(), self._tokens) for _ in range(rounds)]
        self._note("a long prompt")
        long = [self._twice() for _ in range(rounds)]
        streams = [Streams(1, *self._together(alone))] if alone[0].done.completion_tokens > 1 else []
        count = 2
        while count <= most_streams and streams:
            self._note(f"{count} answers at once")
            streams.append(Streams(count, *self._together(self._at_once(count))))
            count *= 2
        return Measured(
            model=warm.done.model,
            backend=warm.done.backend,
            short_first=statistics.median(timed.wait for timed in alone),
            long_tokens=long[0][0].done.prompt_tokens,
            long_first=statistics.median(cold.wait for cold, _ in long),
            long_cached=long[0][1].done.cached_tokens,
            long_again=statistics.median(again.wait for _, again in long),
            answer=statistics.median(timed.rate for timed in alone),
            streams=streams,
        )

    def _story(self) -> str:
        things = " and a ".join(self._random.choices(_THINGS, k=3))
        return f"Story {self._random.getrandbits(32)}: write a very long story about a {things}."

    def _long(self, pieces: int) -> str:
        notes = [
            f"Note {self._random.getrandbits(16)}: the {self._random.choice(_THINGS)} is late."
            for _ in range(pieces)
        ]
        return " ".join([*notes, "What is late?"])

    def _twice(self) -> tuple[_Timed, _Timed]:
        """Sends the same long prompt twice. If the prompt does not fit the context, first halves it until it
        fits."""
        while True:
            prompt = self._long(self._pieces)
            try:
                return self._ask(prompt, 2, cache=True), self._ask(prompt, 2, cache=True)
            except RequestFailed as failed:
                if failed.wire_code != "invalid_request" or self._pieces == 1:
                    raise
                self._pieces //= 2

    def _ask(self, prompt: str, tokens: int, cache: bool = False) -> _Timed:
        sent = time.perf_counter()
        first = 0.0
        reply = self._client.generate(
            prompt, model=self._model, max_tokens=tokens, temperature=0.7, cache=cache
        )
        with reply as events:
            for event in events:
                now = time.perf_counter()
                if isinstance(event, Token):
                    first = first or now
                else:
                    return _Timed(event, sent, first or now, now)
        raise AssertionError("a reply ends with its last event or an error")

    def _at_once(self, count: int) -> list[_Timed]:
        with ThreadPoolExecutor(count) as pool:
            prompts = [self._story() for _ in range(count)]
            return list(pool.map(lambda prompt: self._ask(prompt, self._tokens), prompts))

    def _together(self, timed: Sequence[_Timed]) -> tuple[float, float]:
        """Returns the tokens per second of all answers together, and of the slowest answer. If the answers
        did not overlap in time, both values are the median speed."""
        rates = [each.rate for each in timed]
        began, ended = max(each.first for each in timed), min(each.ended for each in timed)
        if ended <= began:  # no moment at which all answers were generated
            return statistics.median(rates), statistics.median(rates)
        return sum(rates), min(rates)


def bar(value: float, most: float, width: int = BAR) -> str:
    """Returns a bar whose length shows ``value``. The bar for ``most`` is ``width`` characters long."""
    eighths = round(value / most * width * 8) if most > 0 else 0
    return "█" * (eighths // 8) + _BLOCKS[eighths % 8].strip()


def report(found: Measured) -> list[str]:
    """Returns the lines of the report: the measured times and speeds, and a bar chart of the speeds of
    concurrent answers."""
    computed = found.long_tokens - found.long_cached
    prefill = found.long_tokens / found.long_first if found.long_first > 0 else 0.0
    lines = [
        f"{found.model} on {found.backend}",
        "",
        *aligned(
            [
                ("answer", f"{rate(found.answer)} tokens/s, one at a time"),
                ("first token", f"{duration(found.short_first)} after a short prompt"),
                (
                    "",
                    f"{duration(found.long_first)} after one of {found.long_tokens:,} tokens"
                    f" ({rate(prefill)} tokens/s)",
                ),
                ("", f"{duration(found.long_again)} when that is sent again: {_saved(found, computed)}"),
            ]
        ),
    ]
    if found.streams:
        most = max(each.together for each in found.streams)
        rows = [("answers at once", "tokens/s", "each", "")]
        for each in found.streams:
            drawn = bar(each.together, most)
            rows.append((str(each.count), rate(each.together), rate(each.slowest), drawn))
        lines += ["", *aligned(rows), "", _verdict(found.streams)]
    return lines


def _saved(found: Measured, computed: int) -> str:
    if not found.long_cached:
        return "this backend has no prefix cache"
    saved = max(0.0, 1 - found.long_again / found.long_first) if found.long_first > 0 else 0.0
    return f"the cache saves {saved:.0%}, {computed:,} tokens were computed"


def _verdict(streams: Sequence[Streams]) -> str:
    fluent = [each.count for each in streams if each.slowest >= READING]
    if not fluent:
        return f"No answer comes faster than a person reads ({READING:.0f} tokens/s)."
    return f"Up to {max(fluent)} at once come faster than a person reads ({READING:.0f} tokens/s each)."


@click.command("bench")
@click.option(
    "--model", metavar="NAME", help=("A model of the store. The default is the daemon's first model.")
)
@click.option(
    "--tokens",
    type=WholeNumber(2, 4096),
    metavar="N",
    default=48,
    show_default=True,
    help=("The number of tokens of each answer."),
)
@click.option(
    "--rounds",
    type=WholeNumber(1, 100),
    metavar="N",
    default=3,
    show_default=True,
    help="The number of rounds. Each result is the median of the rounds.",
)
@click.option(
    "--streams",
    type=WholeNumber(1, 256),
    metavar="N",
    help="The maximum number of answers at the same time. The default is the daemon's limit, but at most 16.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with times in seconds.")
@connection_options
def bench_command(
    model: str | None,
    tokens: int,
    rounds: int,
    streams: int | None,
    as_json: bool,
    address: str | None,
    api_key_file: Path | None,
) -> None:
    """Measure the speed of a model on this machine.

    Print the tokens per second, the time to the first token, the speed of concurrent answers, and the time
    that the prefix cache saves.

    The command takes about a minute with a small model. If no daemon runs, the command starts one in the
    background.
    """

    def note(text: str) -> None:
        if sys.stderr.isatty():
            say(f"measuring {text} …", err=True)

    daemon = target(address, api_key_file)
    with daemon.client() as client:
        with Progress() as progress:
            background.connect(client, daemon, progress.frame, model=model)
        most = streams
        if most is None:
            most = 4
            with suppress(DaemonUnreachable):
                most = min(client.status().active_permits, MOST_STREAMS)
        found = Bench(client, model, tokens, note).run(rounds, most)
    if as_json:
        say_json(asdict(found))
        return
    for line in report(found):
        say(line)
