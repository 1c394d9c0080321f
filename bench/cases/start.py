"""Cold start: the time from the command until the socket answers, with the mock backend, compared with an
empty Python program."""

from __future__ import annotations

import argparse
import functools
import subprocess
import sys
import time
from collections.abc import Callable

from bench import quiet, servers
from bench.report import Report, main


def command(code: list[str]) -> float:
    """Milliseconds from the start of a command to its end."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *code],
        env=servers.environment_of(sys.executable),
        stdout=subprocess.DEVNULL,
        check=False,
    )
    took = (time.perf_counter() - start) * 1e3
    if done.returncode != 0:
        raise RuntimeError(f"{code} ended with {done.returncode}")
    return took


def to_socket() -> float:
    """Milliseconds from the start of the daemon to its first accepted connection."""
    server = servers.Inferd()
    start = time.perf_counter()
    server.start(server.command())
    try:
        while not server.listens():
            if server.popen.poll() is not None:
                raise server.failed()
            time.sleep(0.0005)
        return (time.perf_counter() - start) * 1e3
    finally:
        server.stop()


def measure(name: str, contestant: Callable[[], float], report: Report) -> None:
    report.add(name, "start", "ms", contestant())


def run(options: argparse.Namespace, report: Report) -> None:
    contestants: dict[str, Callable[[], float]] = {
        "python -c pass": lambda: command(["-c", "pass"]),
        "python -c 'import inferd'": lambda: command(["-c", "import inferd"]),
        "inferd --version": lambda: command(["-m", "inferd", "--version"]),
        "inferd serve --backend mock": to_socket,
    }
    watch = quiet.Watch(report, options.patience)
    for contestant in contestants.values():
        contestant()
    for _ in range(2 * options.repeats):
        for name, contestant in contestants.items():
            watch.undisturbed(functools.partial(measure, name, contestant, report))
    empty = report.median("python -c pass", "start")
    for name in contestants:
        took = report.median(name, "start")
        if empty is not None and took is not None and name != "python -c pass":
            report.add(name, "beyond an empty Python", "ms", took - empty)


if __name__ == "__main__":
    main("start", __doc__ or "", run)
