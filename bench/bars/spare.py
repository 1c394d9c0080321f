"""Measures what the spare engine process saves, and what it costs.

``python -m bench.bars.spare --model FILE.gguf`` runs one daemon without and one with a spare, and uses them
alternately. It prints the time from a request for a model that is not loaded to its first token, the time
from a crash of the engine (SIGSEGV) to the first token of a request that was queued, and the memory of the
spare.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

from bench.bars.engines import ENDLESS, ask, cold_secs, kilobytes, say, serving
from inferd.client.admin import AdminClient
from inferd.store.models import ModelStore
from tests.daemon_process import DaemonProcess, until
from tests.tiny_model import stock

SETTLED_SECS = 1.0
"""After this time, a spare that was started has imported its modules."""


def after_a_load(process: DaemonProcess) -> float:
    with process.connect() as wire:
        return cold_secs(wire)


def after_a_crash(process: DaemonProcess, admin: AdminClient) -> float:
    (engine,) = (row["engine"]["pid"] for row in admin.status().backends if row["name"] == "cold")
    with process.connect() as running, process.connect() as queued:
        ask(running, 900, model="cold", grammar=ENDLESS)
        running.frame()
        ask(queued, 1, model="cold")
        until(lambda: len(admin.status().waiting) == 1)
        killed = time.monotonic()
        os.kill(engine, signal.SIGSEGV)
        if queued.frame()["type"] != "token":
            raise SystemExit("the queued request got no token")
        return time.monotonic() - killed


def memory(pid: int) -> tuple[float, float]:
    """In MiB, with and without the pages of files, which the process shares with others."""
    whole, own = (kilobytes(pid, "smaps_rollup", key) for key in ("Pss:", "Pss_Anon:"))
    return whole / 1024, own / 1024


def wait_for_spare(process: DaemonProcess, started: int) -> int:
    pid = int(process.wait_event("spare_started", started)[-1]["pid"])
    time.sleep(SETTLED_SECS)
    return pid


def measure(directory: Path, model: Path, count: int) -> None:
    store = ModelStore(directory / "models")
    stock(store, "cold", model.read_bytes())
    options = {"backend": "mock", "MODELS_HOME": store.home, "n_ctx": 1024, "threads": 2, "active_permits": 1}
    loads: dict[bool, list[float]] = {False: [], True: []}
    crashes: dict[bool, list[float]] = {False: [], True: []}
    alone, beside, daemon_mib = [], [], []
    with (
        serving(directory / "w", **options) as without,
        serving(directory / "s", spare_engine="1", **options) as kept,
        AdminClient(without.admin) as admin_without,
        AdminClient(kept.admin) as admin_kept,
    ):
        both = ((without, admin_without), (kept, admin_kept))
        for process, _ in both:
            after_a_load(process)
        for number in range(count):
            beside.append(memory(wait_for_spare(kept, 2 * number + 1)))
            daemon_mib.append(kilobytes(kept.process.pid, "status", "VmRSS:") / 1024)
            for process, admin in both:
                crashes[process is kept].append(after_a_crash(process, admin))
            spare = wait_for_spare(kept, 2 * number + 2)
            for _, admin in both:
                admin.unload("cold")
            alone.append(memory(spare))
            for process, _ in both:
                loads[process is kept].append(after_a_load(process))
    median = statistics.median
    for what, times in (("for a model that is not loaded", loads), ("after a crash", crashes)):
        saved = [a - b for a, b in zip(times[False], times[True], strict=True)]
        say(
            f"the first token {what}: {median(times[False]) * 1e3:.0f} ms without and"
            f" {median(times[True]) * 1e3:.0f} ms with a spare; median of the differences"
            f" {median(saved) * 1e3:.0f} ms over {count} pairs"
        )
    for where, found in (("beside a loaded model", beside), ("without a loaded model", alone)):
        whole, own = (median(part) for part in zip(*found, strict=True))
        say(f"the spare {where}: {whole:.1f} MiB of PSS, of which {own:.1f} MiB are not pages of files")
    say(f"the daemon beside them: {median(daemon_mib):.1f} MiB resident")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--count", type=int, default=10, help="pairs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="i", dir="/tmp") as directory:
        measure(Path(directory), options.model, options.count)
    return 0


if __name__ == "__main__":
    sys.exit(main())
