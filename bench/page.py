"""Makes the tables of docs/benchmarks.md from docs/benchmarks.json: ``python -m bench.page [--take FILE]
[--check]``.

``--take`` first adds the reports of a ``results.json`` of bench/run.py to docs/benchmarks.json; each replaces
the older report of the same name. ``--check`` writes nothing, and exits with 1 if the page does not match the
numbers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.run import number_of

DOCS = Path(__file__).resolve().parents[1] / "docs"
NUMBERS, PAGE = DOCS / "benchmarks.json", DOCS / "benchmarks.md"
BEGIN, END = "<!-- from benchmarks.json: -->\n", "<!-- to here -->\n"


def rendered(page: str, reports: Mapping[str, Any]) -> str:
    """The page with the tables of these reports."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + "\n" + "".join(map(_section, reports, reports.values())) + END + after


def _section(name: str, report: Mapping[str, Any]) -> str:
    return "\n".join(_lines(name, report)) + "\n\n"


def _lines(name: str, report: Mapping[str, Any]) -> Iterator[str]:
    machine, settings = report["machine"], report["settings"]
    yield f"### {name}"
    yield ""
    yield " ".join(report["about"].split("\n\n", 1)[0].split())
    yield ""
    rounds = settings["repeats"]
    disturbed = settings.get("turns_disturbed", 0)
    head = settings.get("head_tokens")
    yield (
        f"Settings: {settings.get('model', 'no model')}, {settings['threads']} threads,"
        f" {rounds} round{'s' if rounds != 1 else ''}"
        + (f", a system prompt of {head} tokens" if head else "")
        + (f"; {disturbed} measurements ran beside other programs" if disturbed else "")
        + f". Machine: {machine['cores']} cores ({', '.join(machine['features']) or 'no AVX2'}),"
        f" load {machine['load_average']}, {machine['system']}, Python {machine['python']}. Versions:"
        f" {', '.join(f'{what} {version}' for what, version in machine.get('versions', {}).items())}."
    )
    yield ""
    yield "| | contestant | median | least | most | unit |"
    yield "|---|---|---|---|---|---|"
    for sample in sorted(report["samples"], key=lambda sample: sample["metric"]):
        values = sample["values"]
        numbers = map(number_of, (statistics.median(values), min(values), max(values)))
        yield f"| {sample['metric']} | {sample['contestant']} | {' | '.join(numbers)} | {sample['unit']} |"
    if report["ratios"]:
        yield ""
        yield "| | of | to | ratio |"
        yield "|---|---|---|---|"
        for ratio in report["ratios"]:
            yield f"| {ratio['metric']} | {ratio['of']} | {ratio['to']} | {number_of(ratio['value'])} |"
    for who, why in report["missing"].items():
        yield ""
        yield f"{who} did not take part: {why}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--take", type=Path)
    parser.add_argument("--check", action="store_true")
    chosen = parser.parse_args()
    reports = json.loads(NUMBERS.read_text()) if NUMBERS.exists() else {}
    if chosen.take is not None:
        reports |= json.loads(chosen.take.read_text())
        NUMBERS.write_text(json.dumps(reports, indent=1) + "\n")
    made = rendered(PAGE.read_text(), reports)
    if chosen.check:
        return int(made != PAGE.read_text())
    PAGE.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
