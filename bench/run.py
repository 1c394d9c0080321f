"""Runs the cases, each in a separate process: ``python bench/run.py [CASE …] [OPTIONS]``.

Without a name all cases run, one after the other. Options that are not named here go to the cases
(``--model``, ``--threads``, ``--repeats``, ``--seed``, ``--patience``, ``--peer-python``). The reports go to
``--out``, as one JSON file and one SVG for each case. Medians and ratios are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
CASES = sorted(path.stem for path in (ROOT / "bench" / "cases").glob("*.py"))


def run_case(case: str, passed_on: list[str]) -> dict[str, Any] | None:
    """The report of one case; ``None`` if it failed. The case's own output is shown."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "report.json"
        command = [sys.executable, "-m", f"bench.cases.{case}", "--out", str(out), *passed_on]
        environment = os.environ | {"PYTHONHASHSEED": "0"}
        process = subprocess.Popen(command, cwd=ROOT, env=environment)
        try:
            failed = process.wait() != 0
        finally:
            process.terminate()
            process.wait()
        if failed:
            return None
        report: dict[str, Any] = json.loads(out.read_text())
        return report


def number_of(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def show(report: dict[str, Any], console: Console) -> None:
    table = Table(title=report["case"], title_justify="left")
    for heading in ("metric", "contestant"):
        table.add_column(heading)
    for heading in ("median", "least", "most", "unit"):
        table.add_column(heading, justify="right")
    for sample in sorted(report["samples"], key=lambda sample: sample["metric"]):
        values = sample["values"]
        numbers = [number_of(value) for value in (statistics.median(values), min(values), max(values))]
        table.add_row(sample["metric"], sample["contestant"], *numbers, sample["unit"])
    console.print(table)
    for ratio in report["ratios"]:
        value = number_of(ratio["value"])
        console.print(f"  {ratio['metric']}: {ratio['of']} / {ratio['to']} = {value}", highlight=False)
    disturbed = report["settings"].get("turns_disturbed", 0)
    if disturbed:
        console.print(
            f"  {disturbed} measurements were disturbed by other programs", style="yellow", highlight=False
        )
    for name, reason in report["missing"].items():
        console.print(f"  {name} did not take part: {reason}", style="yellow", highlight=False)
    for note in report["notes"]:
        console.print(f"  {note}", highlight=False)


def draw(report: dict[str, Any], file: Path) -> None:
    """One panel for each metric: medians as bars, with the range of the rounds."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    metrics = sorted({sample["metric"] for sample in report["samples"]})
    heights = [sum(sample["metric"] == metric for sample in report["samples"]) + 1 for metric in metrics]
    figure, panels = plt.subplots(
        len(metrics),
        1,
        figsize=(8, 0.32 * sum(heights) + 0.5 * len(metrics)),
        squeeze=False,
        height_ratios=heights,
        layout="constrained",
    )
    for panel, metric in zip(panels[:, 0], metrics, strict=True):
        samples = [sample for sample in report["samples"] if sample["metric"] == metric][::-1]
        medians = [statistics.median(sample["values"]) for sample in samples]
        spans = [
            [median - min(sample["values"]) for median, sample in zip(medians, samples, strict=True)],
            [max(sample["values"]) - median for median, sample in zip(medians, samples, strict=True)],
        ]
        ours = ["tab:blue" if "inferd" in sample["contestant"] else "tab:gray" for sample in samples]
        names = [sample["contestant"] for sample in samples]
        panel.barh(names, medians, xerr=spans, color=ours, error_kw={"elinewidth": 0.8, "capsize": 2})
        panel.set_title(f"{metric} ({samples[0]['unit']})", fontsize=9, loc="left")
        panel.tick_params(labelsize=8)
    figure.savefig(file)
    plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"some of {', '.join(CASES)}")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench", help="directory of the results")
    parser.add_argument("--label", default="", help="added to the names of the results, to keep several runs")
    parser.add_argument("--no-plot", action="store_true", help="make no plot, which needs matplotlib")
    chosen, passed_on = parser.parse_known_args()
    unknown = set(chosen.cases) - set(CASES)
    if unknown:
        parser.error(f"no such case: {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")

    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    console = Console(width=None if sys.stdout.isatty() else 120)
    chosen.out.mkdir(parents=True, exist_ok=True)
    results, failed = chosen.out / "results.json", []
    reports = json.loads(results.read_text()) if results.exists() else {}
    for case in chosen.cases or CASES:
        report = run_case(case, passed_on)
        if report is None:
            failed.append(case)
            console.print(f"{case} failed; what it said stands above", style="red")
            continue
        name = f"{case} {chosen.label}".strip()
        reports[name] = report
        results.write_text(json.dumps(reports, indent=1))
        show(report, console)
        if not chosen.no_plot:
            draw(report, chosen.out / f"{name.replace(' ', '-')}.svg")
    console.print(f"results: {chosen.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
