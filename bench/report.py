"""The result of a case: samples by contestant and metric, ratios of medians, and missing contestants.

A sample is a list of numbers in one unit. Nothing here judges a number, since a benchmark only reports.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast

from inferd import __version__

PIN = Path(__file__).resolve().parents[1] / "vendor" / "llama.cpp" / "pin.json"


@dataclass
class Sample:
    contestant: str
    metric: str
    unit: str
    values: list[float]


@dataclass
class Ratio:
    """The ratio of ``of`` to ``to``, medians of one metric."""

    metric: str
    of: str
    to: str
    value: float


@dataclass
class Report:
    case: str
    about: str
    settings: dict[str, object] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    machine: dict[str, object] = field(default_factory=dict)

    def add(self, contestant: str, metric: str, unit: str, values: Sequence[float] | float) -> None:
        """Adds values to the sample of that contestant and metric."""
        numbers = [values] if isinstance(values, (int, float)) else list(values)
        for sample in self.samples:
            if (sample.contestant, sample.metric) == (contestant, metric):
                sample.values += numbers
                return
        self.samples.append(Sample(contestant, metric, unit, numbers))

    def version(self, what: str, version: str) -> None:
        """Records the version of a contestant."""
        cast("dict[str, str]", self.machine["versions"])[what] = version

    def median(self, contestant: str, metric: str) -> float | None:
        for sample in self.samples:
            if (sample.contestant, sample.metric) == (contestant, metric) and sample.values:
                return statistics.median(sample.values)
        return None

    def values(self, contestant: str, metric: str) -> list[float]:
        """The sample of that contestant and metric, in the order of the rounds."""
        found = [each for each in self.samples if (each.contestant, each.metric) == (contestant, metric)]
        return found[0].values if found else []

    def paired(self, of: tuple[str, str], to: tuple[str, str]) -> None:
        """Records the median of the rounds' ratios of two (contestant, metric) that were measured in each
        round."""
        above, below = self.values(*of), self.values(*to)
        if not above or len(above) != len(below) or 0 in below:
            return
        value = statistics.median(a / b for a, b in zip(above, below, strict=True))
        metric = of[1] if of[1] == to[1] else f"{of[1]} to {to[1]}, by rounds"
        self.ratios.append(Ratio(metric, of[0], to[0], value))

    def ratio(self, metric: str, of: str, to: str) -> None:
        """Records the ratio of two medians, if both contestants have them."""
        above, below = self.median(of, metric), self.median(to, metric)
        if of != to and above is not None and below:
            self.ratios.append(Ratio(metric, of, to, above / below))


def quantile(values: Sequence[float], q: float) -> float:
    """The value below which a share ``q`` of the values lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def machine() -> dict[str, object]:
    """A description of the machine without names and addresses."""
    cpu, flags = platform.machine(), ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
        flags = next((line for line in lines if line.startswith("flags")), "")
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8")
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "features": [name for name in wanted if f" {name}" in flags],
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "load_average": round(os.getloadavg()[0], 2),
        "versions": {"inferd": __version__, "llama.cpp": json.loads(PIN.read_text())["commit"][:9]},
    }


def options(about: str) -> argparse.ArgumentParser:
    """The options of every case; ``run.py`` passes them on."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--seed", type=int, default=1, help="seed of the prompts and orders")
    parser.add_argument("--repeats", type=int, default=5, help="rounds; each contestant runs once in each")
    parser.add_argument(
        "--threads", type=int, default=min(2, os.cpu_count() or 1), help="threads of every contestant"
    )
    parser.add_argument("--model", type=Path, help="a GGUF file; default: the store's default model")
    parser.add_argument(
        "--peer-python", type=Path, default=Path(sys.executable), help="the Python with the peers"
    )
    parser.add_argument(
        "--against", metavar="BUILD", help="an earlier inferd to measure beside this one: a wheel or a commit"
    )
    parser.add_argument("--head", type=int, default=1500, help="tokens of a long system prompt")
    cache = Path(tempfile.gettempdir()) / "inferd-cargo"
    parser.add_argument(
        "--cargo-cache", type=Path, default=cache, help="the directory in which cargo builds the Rust inferd"
    )
    parser.add_argument("--patience", type=float, default=120, help="seconds to wait for a quiet machine")
    parser.add_argument("--out", type=Path, help="write the report here as JSON instead of to stdout")
    return parser


def main(case: str, about: str, run: Callable[[argparse.Namespace, Report], None]) -> None:
    """Runs one case in this process and writes its report. SIGTERM also ends its servers."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    chosen = options(about).parse_args()
    report = Report(case, about, machine=machine())
    report.settings = {"seed": chosen.seed, "repeats": chosen.repeats, "threads": chosen.threads}
    run(chosen, report)
    text = json.dumps(asdict(report), indent=1)
    if chosen.out is None:
        sys.stdout.write(text + "\n")
    else:
        chosen.out.write_text(text)
