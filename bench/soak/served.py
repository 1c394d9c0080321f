"""Runs the daemon of a soak: writes its configurations, reloads it, and counts what it holds."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from inferd import AsyncAdminClient, InferdError

ROOT = Path(__file__).resolve().parents[2]
N_CTX = 512
ACTIVE_PERMITS = 4
QUEUE_DEPTH = 16
IDLE_SECS = 2
KEPT = "kept"
"""The model that no reload replaces."""
CACHE_MIB, CACHE_DISK_MIB = 24, 40
"""The budgets of the prefix cache, so small that prefixes are evicted all the time."""
PATIENCE_SECS = 300.0


def config(model: Path, name: str, queue_depth: int, log_level: str) -> str:
    """A configuration with two models of one file. A reload with another ``name`` loads the first model again
    and keeps the second."""
    text = {"kind": "llamacpp", "name": name, "model_path": str(model), "n_ctx": N_CTX}
    return json.dumps(
        {
            "backends": [text, {**text, "name": KEPT}, {"kind": "mock", "name": "vectors"}],
            "engine": {
                "active_permits": ACTIVE_PERMITS,
                "queue_depth": queue_depth,
                "cache_mib": CACHE_MIB,
                "cache_disk_mib": CACHE_DISK_MIB,
            },
            "limits": {"idle_timeout_secs": IDLE_SECS},
            "log_level": log_level,
        }
    )


class Served:
    """A running daemon with its own home directory."""

    def __init__(self, model: Path) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="ifd-", dir="/tmp"))
        self.runtime = self.home / "inferd"
        self._report = self.home / "report.json"
        self._config = self.home / "config.json"
        self._output = (self.home / "output").open("w+")
        loud, quiet = config(model, "a", QUEUE_DEPTH, "info"), config(model, "a", QUEUE_DEPTH - 2, "debug")
        other = config(model, "b", QUEUE_DEPTH, "info")
        broken, missing = loud[:-1], config(self.home / "none.gguf", "c", QUEUE_DEPTH, "info")
        self._first = loud
        self._turns = (quiet, loud, broken, other, missing, loud)
        self._reloads = 0
        self._config.write_text(loud)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.soak.daemon", self._report],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(sys.path),
                "HOME": str(self.home),
                "XDG_RUNTIME_DIR": str(self.home),
                "INFERD_CONFIG": str(self._config),
                "INFERD_EMBED": "true",
                "INFERD_RERANK": "true",
            },
            stdout=self._output,
            stderr=self._output,
        )

    async def ready(self) -> None:
        """Waits until the daemon is ready. Raises RuntimeError if it is not ready in time."""
        await until(lambda: _listens(self.runtime / "admin.sock") or self.process.poll() is not None)
        try:
            async with AsyncAdminClient(self.runtime / "admin.sock", PATIENCE_SECS) as admin:
                await admin.wait_ready()
        except InferdError as error:
            raise RuntimeError(f"the daemon did not start: {error}\n{self.output()}") from None

    async def reload(self) -> str:
        """Applies the next configuration of a cycle, some of which are invalid; returns the outcome."""
        text = self._turns[self._reloads % len(self._turns)]
        self._reloads += 1
        return await self._take_on(text)

    async def reset(self) -> None:
        """Back to the first configuration."""
        await self._take_on(self._first)

    async def _take_on(self, text: str) -> str:
        async with AsyncAdminClient(self.runtime / "admin.sock", PATIENCE_SECS) as admin:
            await admin.wait_ready()
            self._config.write_text(text)
            self.process.send_signal(signal.SIGHUP)
            told = []
            while not told or told[-1] != "ready":
                told.append((await admin.event())["status"])
        return "refused" if "reload_failed" in told else "reloaded"

    def output(self) -> str:
        return (self.home / "output").read_text(errors="replace")[-4000:]

    async def inventory(self) -> dict[str, Any]:
        """The inventory of the process and of the engine of ``KEPT`` once they are idle; memory in MiB."""
        self._report.unlink(missing_ok=True)
        self.process.send_signal(signal.SIGUSR1)
        await until(self._report.exists)
        proc = Path(f"/proc/{self.process.pid}")
        descriptors = [_target(fd) for fd in (proc / "fd").iterdir()]
        return {
            **json.loads(self._report.read_text()),
            "threads": sorted((task / "comm").read_text().strip() for task in (proc / "task").iterdir()),
            "descriptors": sorted(name for name in descriptors if name),
            **self.memory(),
            **await self.engine(),
        }

    def children(self) -> int:
        tasks = Path(f"/proc/{self.process.pid}/task")
        return sum(len((task / "children").read_text().split()) for task in tasks.iterdir())

    def memory(self) -> dict[str, float]:
        """The resident memory, and the part that no file backs, unlike mapped weights."""
        return _memory(self.process.pid)

    async def engine(self) -> dict[str, Any]:
        """The restarts and the memory of the engine of ``KEPT``."""
        async with AsyncAdminClient(self.runtime / "admin.sock", PATIENCE_SECS) as admin:
            rows = (await admin.status()).backends
        found = next(row["engine"] for row in rows if row["name"] == KEPT)
        return {
            "engine restarts": found["restarts"],
            **{f"engine's {name}": size for name, size in _memory(found["pid"]).items()},
        }

    async def beyond_budget(self) -> list[str]:
        """The faults of a prefix cache that exceeds its budgets; empty without a fault."""
        async with AsyncAdminClient(self.runtime / "admin.sock", PATIENCE_SECS) as admin:
            backends = (await admin.status()).metrics["backends"]
        found = [
            f"{name} holds {row['cache_bytes']} bytes of prefixes"
            for name, row in backends.items()
            if row["cache_bytes"] > CACHE_MIB << 20
        ]
        files = self.cache_files_bytes()
        return [*found, *([f"the files have {files} bytes"] if files > CACHE_DISK_MIB << 20 else [])]

    def cache_files_bytes(self) -> int:
        """The size of all files of the prefix cache, unfinished ones included."""
        sizes = []
        for path in (self.home / ".inferd" / "cache").glob("*.*"):  # not the key
            with contextlib.suppress(FileNotFoundError):  # removed in between
                sizes.append(path.stat().st_size)
        return sum(sizes)

    def stop(self) -> int:
        """The exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(PATIENCE_SECS)
        self._output.close()
        return code

    def clean(self) -> None:
        shutil.rmtree(self.home)


def _memory(pid: int) -> dict[str, float]:
    names = {"VmRSS:": "resident MiB", "RssAnon:": "anonymous MiB"}
    lines = [line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
    return {names[line[0]]: round(int(line[1]) / 1024, 1) for line in lines if line[0] in names}


def _target(fd: Path) -> str:
    """The kind of a descriptor; sockets and pipes without their numbers."""
    try:
        return str(fd.readlink()).partition(":[")[0]
    except FileNotFoundError:
        return ""


async def until(condition: Any) -> None:
    deadline = time.monotonic() + PATIENCE_SECS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the daemon did not come to rest")
        await asyncio.sleep(0.01)


def _listens(path: Path) -> bool:
    """Whether a client can connect: the socket's file appears a moment before that."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0
