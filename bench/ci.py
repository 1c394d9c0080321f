"""Compares two builds of inferd in pairs: ``python bench/ci.py [BASE] HEAD [OPTIONS]``.

A build is a wheel, a commit (anything that git resolves in this repository), or ``installed``, the inferd of
the running Python. Each wheel and commit is installed into a separate environment under ``build/bench-ci``.

Both builds run at the same time and are measured in turns. ``pairs.py`` describes the arithmetic. The table
is printed to stdout. ``ci.json`` (in the format of pytest-benchmark) and ``ci.svg`` are written to ``--out``.
The exit status is 1 only if the whole interval of a ratio lies beyond its bound. With HEAD alone, the script
only prints its numbers. ``--short`` measures few rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench import prompts, servers, sessions  # noqa: E402
from bench.builds import python_of  # noqa: E402
from bench.cases import round_trip, schema  # noqa: E402
from bench.clients import ask  # noqa: E402
from bench.pairs import Metric  # noqa: E402
from bench.report import machine, quantile  # noqa: E402

Measure = Callable[[], dict[str, float]]
"""One round of one case with one build: the values by metric."""

METRICS = {
    "framing": [("token frame", "ns"), ("frame of a paragraph", "ns"), ("split 600 lines", "ns")],
    "round_trip": [("round trip, p50", "µs"), ("requests", "1/s")],
    "decode": [("decode", "tokens/s"), ("prefill", "ms"), ("time to first token", "ms")],
    "agent": [("first token, turn 1", "ms"), ("later turns", "ms"), ("the same again", "ms")],
    "schema": [("decode, 6 strings", "tokens/s")],
}
BOUNDS = {"framing": 1.10, "round_trip": 1.10, "decode": 1.05, "agent": 1.10, "schema": 1.05}
N_PREDICT = 64
AGENT_HEAD, AGENT_TURNS = 400, 3


@contextlib.contextmanager
def framing(python: Path, options: argparse.Namespace) -> Iterator[Measure]:
    def measure() -> dict[str, float]:
        command = [python, servers.PEERS / "framing_probe.py"]
        environment = servers.environment_of(python)
        done = subprocess.run(command, env=environment, check=True, capture_output=True)
        numbers: dict[str, float] = json.loads(done.stdout)
        return numbers

    yield measure


@contextlib.contextmanager
def round_trips(python: Path, options: argparse.Namespace) -> Iterator[Measure]:
    with servers.Inferd(slots=round_trip.CONNECTIONS, python=python) as server:
        round_trip.round_trips(server.address, 500)

        def measure() -> dict[str, float]:
            times = round_trip.round_trips(server.address, 1000)
            return {
                "round trip, p50": quantile(times, 0.5),
                "requests": round_trip.throughput(server.address, 3000),
            }

        yield measure


@contextlib.contextmanager
def decode(python: Path, options: argparse.Namespace) -> Iterator[Measure]:
    model = servers.model_file(options)
    rng = random.Random(1)
    with servers.Inferd(model, threads=options.threads, python=python) as server:

        def measure() -> dict[str, float]:
            stream = ask(server.stream(prompts.story(rng, extra_words=100), N_PREDICT))
            assert stream.prefill_ms is not None
            return {
                "decode": stream.tokens_per_second,
                "prefill": stream.prefill_ms,
                "time to first token": stream.ttft_ms,
            }

        measure()  # warms caches and is not counted
        yield measure


@contextlib.contextmanager
def agent(python: Path, options: argparse.Namespace) -> Iterator[Measure]:
    """Measures a new session in each round; its later turns repeat everything before them."""
    model = servers.model_file(options)
    rng = random.Random(1)
    with servers.Inferd(model, threads=options.threads, slots=2, python=python) as server:

        def measure() -> dict[str, float]:
            messages = sessions.head(rng, AGENT_HEAD)
            times = []
            for _ in range(AGENT_TURNS):
                messages.append(sessions.question(rng))
                times.append(sessions.continued(server, messages).ttft_ms)
            again = ask(server.stream(messages[:-1], sessions.N_PREDICT))
            return {
                "first token, turn 1": times[0],
                "later turns": statistics.median(times[1:]),
                "the same again": again.ttft_ms,
            }

        measure()
        yield measure


@contextlib.contextmanager
def held_to_schema(python: Path, options: argparse.Namespace) -> Iterator[Measure]:
    model = servers.model_file(options)
    rng = random.Random(1)
    with servers.Inferd(model, threads=options.threads, python=python) as server:

        def measure() -> dict[str, float]:
            asked = f"{prompts.words(rng, 4)}. Invent a person and tell all about them."
            stream = ask(
                schema.stream_of(server, [{"role": "user", "content": asked}], schema.WAYS["6 strings"])
            )
            json.loads("".join(stream.text))
            return {"decode, 6 strings": stream.tokens_per_second}

        measure()
        yield measure


CASES = {
    "framing": framing,
    "round_trip": round_trips,
    "decode": decode,
    "agent": agent,
    "schema": held_to_schema,
}


def run_case(case: str, pythons: list[Path], options: argparse.Namespace) -> list[Metric]:
    """All rounds of one case; the last of ``pythons`` is head, the first of two is base."""
    metrics = [
        Metric(case, name, unit, more_is_better=unit.endswith("/s"), bound=BOUNDS[case])
        for name, unit in METRICS[case]
    ]
    with contextlib.ExitStack() as stack:
        sides = [stack.enter_context(CASES[case](python, options)) for python in pythons]
        for number in range(options.rounds):
            order = [0, 1] if len(sides) == 2 else [0]
            values: dict[int, dict[str, float]] = {}
            for side in order if number % 2 else reversed(order):
                values[side] = sides[side]()
            for metric in metrics:
                metric.head.append(values[len(sides) - 1][metric.name])
                if len(sides) == 2:
                    metric.base.append(values[0][metric.name])
    return metrics


def show(metrics: list[Metric], console: Console) -> None:
    paired = bool(metrics[0].base)
    table = Table()
    for heading in ("case", "metric"):
        table.add_column(heading)
    for heading in ["base", "head", "ratio", "95 %", "bound"] if paired else ["median", "least", "most"]:
        table.add_column(heading, justify="right")
    table.add_column("unit")
    for metric in metrics:
        head = statistics.median(metric.head)
        if paired:
            low, high = metric.interval()
            bound = 1 / metric.bound if metric.more_is_better else metric.bound
            mark = " worse" if metric.regressed() else ""
            numbers = [f"{statistics.median(metric.base):.4g}", f"{head:.4g}", f"{metric.ratio():.3f}{mark}"]
            numbers += [f"{low:.3f} - {high:.3f}", f"{'≥' if metric.more_is_better else '≤'} {bound:.2f}"]
        else:
            numbers = [f"{value:.4g}" for value in (head, min(metric.head), max(metric.head))]
        table.add_row(metric.case, metric.name, *numbers, metric.unit)
    console.print(table)


def as_json(metrics: list[Metric], options: argparse.Namespace) -> dict[str, object]:
    """The report in pytest-benchmark's format; ``extra_info`` has the pairs."""
    benchmarks = []
    for metric in metrics:
        extra: dict[str, object] = {"unit": metric.unit, "more_is_better": metric.more_is_better}
        if metric.base:
            extra |= {"base": metric.base, "ratio": metric.ratio(), "interval": metric.interval()}
            extra |= {"bound": metric.bound, "regressed": metric.regressed()}
        stats = {
            "min": min(metric.head),
            "max": max(metric.head),
            "mean": statistics.fmean(metric.head),
            "median": statistics.median(metric.head),
            "stddev": statistics.stdev(metric.head) if len(metric.head) > 1 else 0.0,
            "rounds": len(metric.head),
            "data": metric.head,
        }
        benchmarks.append({"group": metric.case, "name": metric.name, "stats": stats, "extra_info": extra})
    return {
        "machine_info": machine() | {"machine": platform.machine()},
        "commit_info": {"base": options.builds[0] if metrics[0].base else None, "head": options.builds[-1]},
        "benchmarks": benchmarks,
    }


def draw(metrics: list[Metric], file: Path) -> None:
    """The ratios with their intervals; the thick part of the axis is within the bound."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    figure, panel = plt.subplots(figsize=(8, 0.4 * len(metrics) + 1), layout="constrained")
    for row, metric in enumerate(reversed(metrics)):
        low, high = metric.interval()
        panel.plot([low, high], [row, row], color="tab:red" if metric.regressed() else "tab:blue")
        panel.plot([metric.ratio()], [row], "o", color="tab:red" if metric.regressed() else "tab:blue")
        bound = 1 / metric.bound if metric.more_is_better else metric.bound
        panel.plot([1, bound], [row, row], color="tab:gray", alpha=0.3, linewidth=6)
    panel.axvline(1, color="black", linewidth=0.8)
    panel.set_yticks(range(len(metrics)), [f"{metric.case}: {metric.name}" for metric in reversed(metrics)])
    panel.set_xlabel("head / base")
    figure.savefig(file)
    plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "builds", nargs="+", metavar="BUILD", help="[BASE] HEAD: a wheel, a commit, installed"
    )
    parser.add_argument("--case", action="append", choices=list(CASES), help="default: all")
    parser.add_argument("--rounds", type=int, help="default: 15, with --short 5")
    parser.add_argument("--short", action="store_true", help="few rounds; never fails on speed")
    parser.add_argument(
        "--threads", type=int, default=0, help="threads of a decode step; 0: inferd's own choice"
    )
    parser.add_argument("--model", type=Path, help="a GGUF file; default: the store's default model")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench", help="folder of the results")
    options = parser.parse_args()
    if len(options.builds) > 2:
        parser.error("at most two builds: BASE HEAD")
    options.rounds = options.rounds or (5 if options.short else 15)

    console = Console(width=None if sys.stdout.isatty() else 120)
    pythons = [python_of(build) for build in options.builds]
    metrics: list[Metric] = []
    for case in options.case or CASES:
        try:
            metrics += run_case(case, pythons, options)
        except servers.Unavailable as reason:
            raise SystemExit(f"{case}: {reason}") from None
    show(metrics, console)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "ci.json").write_text(json.dumps(as_json(metrics, options), indent=1))
    if metrics[0].base:
        try:
            draw(metrics, options.out / "ci.svg")
        except ImportError:
            console.print("no ci.svg: install matplotlib")
    failed = bool(metrics[0].base) and any(metric.regressed() for metric in metrics)
    return 1 if failed and not options.short else 0


if __name__ == "__main__":
    sys.exit(main())
