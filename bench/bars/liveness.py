"""Checks a daemon whose engine process is stopped: its deadlines, its reports, and its exit.

``python -m bench.bars.liveness --model FILE.gguf`` stops the engine's process (SIGSTOP) during an answer. A
request with a deadline must be answered in time. ``inferd status`` and ``inferd doctor`` must report the
fault within 10 s. SIGTERM must end the daemon with exit status 0 within its drain time and 5 s. The exit
status is 1 if one of these fails.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.daemon_process import DaemonProcess, Wire, until

DEADLINE_MS = 1000
DRAIN_SECS = 5


def ask(wire: Wire, **more: object) -> None:
    message = {"role": "user", "content": "Write the numbers from one to a thousand."}
    wire.send({"messages": [message], "max_tokens": 1500, **more})


def engine(process: DaemonProcess) -> int:
    tasks = Path(f"/proc/{process.process.pid}/task")
    found = [int(child) for task in tasks.iterdir() for child in (task / "children").read_text().split()]
    return found[0]


def says(process: DaemonProcess, *command: str) -> str:
    """The output of ``inferd COMMAND``, run as the daemon's user."""
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(sys.path),
        "HOME": str(process.dir),
        "XDG_RUNTIME_DIR": str(process.dir),
    }
    done = subprocess.run(
        [sys.executable, "-m", "inferd", *command],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


def secs_until(process: DaemonProcess, command: str, stopped: float) -> float:
    """The time from ``stopped`` until the command reports that an engine is stuck."""
    while "no sign of life for" not in says(process, command) and time.monotonic() - stopped < 25:
        time.sleep(0.5)
    return time.monotonic() - stopped


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    options = parser.parse_args()
    settings = {
        "backend": "llamacpp",
        "model_path": options.model,
        "n_ctx": 2048,
        "drain_timeout_secs": DRAIN_SECS,
    }
    with tempfile.TemporaryDirectory(prefix="i", dir="/tmp") as directory:
        process = DaemonProcess(Path(directory) / "0", settings, {}).wait_ready()
        with process.connect() as running, process.connect() as late:
            ask(running)
            running.frame()
            os.kill(engine(process), signal.SIGSTOP)
            stopped = time.monotonic()
            ask(late, deadline_ms=DEADLINE_MS)
            answer = list(late.frames())[-1]
            answered_ms = (time.monotonic() - stopped) * 1e3
            with ThreadPoolExecutor(2) as both:
                told = both.map(lambda command: secs_until(process, command, stopped), ("status", "doctor"))
                status_secs, doctor_secs = told
            begun = time.monotonic()
            process.process.send_signal(signal.SIGTERM)
            until(lambda: process.process.poll() is not None, fail=False)
            ended_secs, code = time.monotonic() - begun, process.process.poll()
        process.process.kill()
        process.process.wait()
    sys.stdout.write(
        f"deadline of {DEADLINE_MS} ms: {json.dumps(answer.get('code') or answer.get('stop_reason'))} after "
        f"{answered_ms:.0f} ms\nstatus says it after {status_secs:.1f} s, doctor after {doctor_secs:.1f} s\n"
        f"SIGTERM: status {code} after {ended_secs:.1f} s, drain time {DRAIN_SECS} s\n"
    )
    failed = answered_ms > DEADLINE_MS + 500 or status_secs > 10 or doctor_secs > 10
    return int(failed or code != 0 or ended_secs > DRAIN_SECS + 5)


if __name__ == "__main__":
    sys.exit(main())
