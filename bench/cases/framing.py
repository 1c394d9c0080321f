"""Framing: the cost of encoding a token frame and of splitting lines, from the micro-benchmarks of
``bench/micro``.

Each contestant copies the bytes into its buffer, and the copy is part of the time. A connection that reads
directly into the buffer does not need this copy.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from bench import quiet
from bench.report import Report, main
from bench.servers import ROOT


def run(options: argparse.Namespace, report: Report) -> None:
    watch = quiet.Watch(report, options.patience)
    # One process for each round: a memory layout that favours one contestant does not persist.
    for _ in range(options.repeats):
        watch.undisturbed(lambda: measure(report))
    for sample in list(report.samples):
        if sample.contestant != "inferd":
            report.ratio(sample.metric, "inferd", sample.contestant)
    report.ratios.sort(key=lambda ratio: ratio.metric)


def measure(report: Report) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        results = Path(scratch) / "results.json"
        micro = "bench/micro/test_framing.py"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", micro]
        done = subprocess.run(
            [*command, f"--benchmark-json={results}"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
        for bench in json.loads(results.read_text())["benchmarks"]:
            collect(bench, report)


def collect(bench: dict[str, object], report: Report) -> None:
    """The median of one micro-benchmark: time for a frame, bandwidth for splitting."""
    found = re.search(r"\[(.*)\]", str(bench["name"]))
    extra, stats = bench["extra_info"], bench["stats"]
    assert found is not None
    assert isinstance(extra, dict)
    assert isinstance(stats, dict)
    contestant = str(extra["contestant"])
    what = found[1].removeprefix(f"{contestant}-")
    if bench["group"] == "split":
        report.add(contestant, f"split {what}", "GB/s", extra["bytes"] / stats["median"] / 1e9)
    else:
        report.add(contestant, f"frame of {what}", "ns", stats["median"] * 1e9)


if __name__ == "__main__":
    main("framing", __doc__ or "", run)
