"""``inferd status``, ``watch`` and ``stop``: a running daemon, seen from outside."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import click

from inferd.cli.output import print_table
from inferd.client import AdminClient, Snapshot
from inferd.client.admin import Frame
from inferd.config import sources
from inferd.config.settings import Settings
from inferd.errors import BootFailed, ConnectionLost, DaemonUnreachable
from inferd.store.runtime import holder

ANSWER_SECS = 5.0
"""A daemon that is alive answers on its admin socket at once, whatever it is busy with."""

_FIXED = ("id", "type", "status")


def _settings() -> Settings:
    """Where the daemon is; a config file that cannot be read must not hide a running daemon."""
    return sources.read({}).settings


_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command("status")
@_json
def status_command(as_json: bool) -> None:
    """Show what the daemon does and serves. Exit 3 when none runs."""
    settings = _settings()
    try:
        with AdminClient(settings.admin_addr, timeout=ANSWER_SECS) as admin:
            state = admin.snapshot()
    except DaemonUnreachable:
        if as_json:
            click.echo(json.dumps({"running": False}))
        raise
    pid = holder(settings.lock)
    if as_json:
        backends = [_details(frame) for frame in state.capabilities]
        report = {"running": True, "pid": pid, "status": state.lifecycle["status"]}
        click.echo(json.dumps({**report, **_details(state.lifecycle), "backends": backends}))
    else:
        _show(state, pid)


def _details(frame: Frame) -> dict[str, Any]:
    return {key: value for key, value in frame.items() if key not in _FIXED}


def _show(state: Snapshot, pid: int | None) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    lifecycle = [str(state.lifecycle["status"])]
    lifecycle += [f"{key} {value}" for key, value in _details(state.lifecycle).items()]
    table.add_row("status", Text(", ".join(lifecycle)))
    if pid is not None:
        table.add_row("pid", str(pid))
    for frame in state.capabilities:
        table.add_row()
        for key, value in _details(frame).items():
            if value not in (None, "", 0, False):
                table.add_row(key, Text("yes" if value is True else str(value)))
    print_table(table)


@click.command("watch")
@click.option("--json", "as_json", is_flag=True, help="Print each event as it came, one JSON object a line.")
def watch_command(as_json: bool) -> None:
    """Show what the daemon reports until it ends."""
    last: Frame = {"status": ""}
    with AdminClient(_settings().admin_addr) as admin:
        try:
            for last in admin.events():
                click.echo(json.dumps(last) if as_json else _line(last))
                sys.stdout.flush()
        except ConnectionLost:
            if last["status"] == "failed":
                raise BootFailed(str(last.get("message", "the daemon could not start"))) from None
            if last["status"] != "draining":
                raise


def _line(frame: Frame) -> str:
    details = "  ".join(f"{key}={json.dumps(value)}" for key, value in _details(frame).items())
    return f"{time.strftime('%H:%M:%S')}  {frame['status']}  {details}".rstrip()


@click.command("stop")
def stop_command() -> None:
    """Stop the daemon. Running requests may finish; waits until it has ended."""
    from inferd.cli.background import POLL_SECS, is_held

    lock = _settings().lock
    pid = _pid(lock) if is_held(lock) else None
    if pid is None:
        click.echo("no daemon is running")
        return
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        pass
    except PermissionError:
        raise DaemonUnreachable(
            f"the daemon, process {pid}, belongs to another user; ask them, or use `kill` as root"
        ) from None
    while is_held(lock) and holder(lock) == pid:
        time.sleep(POLL_SECS)
    click.echo(f"the daemon, process {pid}, has stopped")


def _pid(lock: Path) -> int:
    pid = holder(lock)
    if pid is None:
        raise DaemonUnreachable(f"a daemon holds {lock}, but its process is not known; stop it with `kill`")
    return pid
