"""Errors of asyncio, the interpreter and libraries are in the activity log, without their text."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from inferd import log
from inferd.log import library

SECRET = "words of a prompt"


class Unruly:
    def __del__(self) -> None:
        raise ValueError(SECRET)


def fail() -> None:
    raise ValueError(SECRET)


def test_each_kind_is_recorded_by_class_and_place(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    activity = log.setup("info", tmp_path, stderr=False)
    loop = asyncio.new_event_loop()
    library.capture(loop)
    try:
        loop.call_soon(fail)
        loop.run_until_complete(asyncio.sleep(0))
        Unruly()
        thread = threading.Thread(target=fail, name="worker")
        thread.start()
        thread.join()
        logging.getLogger("some.library").warning("request to %s failed", SECRET)
        logging.getLogger("some.library").error(f"failed: {SECRET}")
        logging.getLogger("some.library").info("not of interest")
    finally:
        library.release()
        loop.close()
        activity.close()
    text = (tmp_path / log.FILE_NAME).read_text()
    assert SECRET not in text
    records = [json.loads(line) for line in text.splitlines()]
    seen = [(record["msg"], record["level"]) for record in records if record["component"] == "library"]
    assert seen == [
        ("asyncio_error", "error"),
        ("unraisable_error", "error"),
        ("thread_failed", "error"),
        ("library_record", "warn"),
        ("library_record", "error"),
    ]
    here = f"ValueError at {Path(__file__).name}:"
    assert all(record["error"].startswith(here) for record in records[:3])
    assert records[3]["template"] == "request to %s failed"
    assert SECRET not in "".join(capfd.readouterr())


# A process whose daemon stops at once, and which gets the stop signal while it is about to end.
STOPPED = """
import os, signal, sys, threading
from inferd.config import sources
from inferd.daemon import start
from inferd.engine.mock import Mock

def build(settings, entry, progress, cancelled):
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    return Mock(entry.name)

code = start.run(lambda: sources.read({}), build)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    os.kill(os.getpid(), number)
sys.exit(code)
"""


# A process that gets a signal to reload and one to stop while it imports the daemon.
STARTING = """
import os, signal, sys
from importlib.abc import MetaPathFinder
from inferd import cli

class Stop(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "inferd.daemon.daemon":
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)

sys.meta_path.insert(0, Stop())
sys.exit(cli.main(["serve"]))
"""


def test_an_early_stop_signal_exits_with_0(short_dir: Path) -> None:
    env = {"HOME": str(short_dir), "XDG_RUNTIME_DIR": str(short_dir), "INFERD_BACKEND": "mock"}
    env |= {"PYTHONPATH": ":".join(sys.path), "INFERD_IMPL": "python"}
    assert subprocess.run([sys.executable, "-c", STARTING], env=env, timeout=100).returncode == 0


def test_a_late_stop_signal_exits_with_0(short_dir: Path) -> None:
    env = {"HOME": str(short_dir), "XDG_RUNTIME_DIR": str(short_dir), "INFERD_BACKEND": "mock"}
    env |= {"PYTHONPATH": ":".join(sys.path), "INFERD_IMPL": "python"}
    assert subprocess.run([sys.executable, "-c", STOPPED], env=env, timeout=100).returncode == 0
