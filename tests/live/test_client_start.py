"""A client that starts its daemon."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from inferd.client import AsyncClient, Client
from inferd.errors import UsageError
from tests.shell import Shell

PROGRAM = """
from inferd import Client

with Client(start=True) as client:
    print(client.generate("Say hello", max_tokens=20).result().content)
"""


def run(shell: Shell, program: str = PROGRAM) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=shell.env, capture_output=True, text=True, check=False)


def test_it_starts_a_daemon_and_the_next_one_finds_it(short_dir: Path) -> None:
    shell = Shell(short_dir, INFERD_BACKEND="mock")
    for _ in range(2):
        done = run(shell)
        assert (done.stdout, done.stderr) == ("mock-response\n", "")
    assert len(shell.events("ready")) == 1
    assert shell("start").stdout == "the daemon is ready\n"
    shell.stop()


ASYNC_PROGRAM = """
import asyncio
from inferd import AsyncClient

async def main():
    async with AsyncClient(start=True) as client:
        print((await client.generate("Say hello", max_tokens=20).result()).content)

asyncio.run(main())
"""


def test_an_asyncio_client_starts_one(short_dir: Path) -> None:
    shell = Shell(short_dir, INFERD_BACKEND="mock")
    done = run(shell, ASYNC_PROGRAM)
    assert (done.stdout, done.stderr) == ("mock-response\n", "")
    shell.stop()


def test_it_says_why_none_can_start(short_dir: Path) -> None:
    shell = Shell(short_dir, INFERD_BACKEND="mock", INFERD_GROUP="no such group")
    done = run(shell)
    assert done.returncode == 1
    assert "inferd.errors.BootFailed: " in done.stderr.splitlines()[-1]
    assert "no such group" in done.stderr.splitlines()[-1]


def test_a_named_address_starts_none(short_dir: Path) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(UsageError, match="leave out address or start"):
            kind(short_dir / "s", start=True)


def test_nan_is_not_sent(short_dir: Path) -> None:
    for value in (float("nan"), float("inf")):
        with (
            Client(short_dir / "s") as client,
            pytest.raises(UsageError, match="temperature must be a finite"),
        ):
            client.generate("hi", temperature=value)
