"""``inferdctl``: the commands of inferd 0.2.1, with its output and exit codes.

The output is for programs: ``status`` and ``watch`` print one JSON object on each line, with sorted keys, and
``doctor`` prints one line for each check. An error is printed to stderr as a line that begins with
``error:``, and the exit code is 2. The exit code 1 means that the daemon is not ready or a check failed. The
options ``--config`` and ``--admin-addr`` may stand before or after the command.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from inferd import __version__
from inferd.cli.kind_type import KindType
from inferd.cli.running import run_command
from inferd.cli.say import say
from inferd.client import AdminClient, Snapshot
from inferd.client.admin import Frame
from inferd.collecting import collect_less
from inferd.config import sources
from inferd.config.entries import LlamaCppEntry, ModelSpec, kind_of
from inferd.config.kinds import FilePath
from inferd.config.sources import LoadedConfig
from inferd.controls import json_escaped
from inferd.errors import ConnectionLost, DaemonUnreachable, InferdError

ANSWER_SECS = 1.0
"""The time-out of the admin socket, as in inferd 0.2.1. A live daemon answers at once."""

Check = tuple[bool, str, str]
"""(passed, name of the check, finding)."""

F = TypeVar("F", bound=Callable[..., Any])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs ``inferdctl`` with ``arguments``, by default the arguments of the process. Returns the exit
    code."""
    if arguments is None:
        collect_less()
    given = sys.argv[1:] if arguments is None else arguments
    return run_command(ctl, "inferdctl", given, prefix="error", failure=2)


def _globals(command: F) -> F:
    """Adds ``--config`` and ``--admin-addr``, which both the group and each command accept."""
    for name, where in (("admin_addr", "The admin socket to talk to."), ("config", "The config file.")):
        flag = "--" + name.replace("_", "-")
        command = click.option(flag, name, type=KindType(FilePath()), metavar="PATH", help=where)(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@_globals
@click.version_option(__version__, "-V", "--version", prog_name="inferdctl", message="%(prog)s %(version)s")
@click.pass_context
def ctl(context: click.Context, /, **flags: Path | None) -> None:
    """Show the state of inferd and fetch its models, with the commands of inferd 0.2.1."""
    context.obj = flags
    if context.invoked_subcommand is None:
        say(context.get_help(), err=True)
        context.exit(2)


def _command(work: Callable[[LoadedConfig], int]) -> Callable[[LoadedConfig], int]:
    """Makes ``work`` a command of the group. The command calls ``work`` with the configuration."""

    @_globals
    @click.pass_obj
    def run(before: dict[str, Path | None], /, **behind: Path | None) -> int:
        flags = {name: path for level in (before, behind) for name, path in level.items() if path is not None}
        return work(sources.read(flags))

    ctl.command(work.__name__, help=work.__doc__)(run)
    return work


def _admin(given: LoadedConfig, timeout: float | None) -> AdminClient:
    return AdminClient(given.settings.admin_addr, timeout=timeout)


def _line(frame: Frame) -> str:
    return json_escaped(json.dumps(frame, sort_keys=True, separators=(",", ":"), ensure_ascii=False))


@_command
def status(given: LoadedConfig) -> int:
    """Print the daemon's state as JSON. Exit 1 unless the daemon is ready."""
    with _admin(given, ANSWER_SECS) as admin:
        lifecycle = admin.snapshot().lifecycle
    say(_line(lifecycle))
    return 0 if lifecycle["status"] == "ready" else 1


@_command
def watch(given: LoadedConfig) -> int:
    """Print the daemon's events as JSON, one per line, until the daemon ends."""
    with _admin(given, None) as admin:
        for frame in admin.events():
            say(_line(frame))
            sys.stdout.flush()
    raise AssertionError("events() ends by an error only")


@_command
def pull(given: LoadedConfig) -> int:
    """Fetch and verify the models of the configuration. No daemon is needed."""
    from inferd.cli.models import fetch_shown
    from inferd.store.models import ModelStore

    _check(given)
    store = ModelStore(given.settings.models_home)
    named = [spec for entry in _local(given) for spec in (entry.model, entry.mmproj)]
    models = [spec for spec in named if isinstance(spec, ModelSpec)]
    if not models:
        say(f"inferdctl: {given.path} lists no model to fetch", err=True)
    for model in models:
        say(f"inferdctl: pulling {model.name} -> {store.home}", err=True)
        with fetch_shown(store, lambda *_, spec=model: spec) as opened:
            say(f"inferdctl: blob ready at {opened.path}", err=True)
    return 0


@_command
def doctor(given: LoadedConfig) -> int:
    """Check the configuration, the models and the daemon. Exit 1 if a check fails."""
    sound = True
    for well, label, detail in (*_config(given), *_daemon(given)):
        say(f"[{' ok ' if well else 'FAIL'}] {label}: {detail}")
        sound = sound and well
    return 0 if sound else 1


def _check(given: LoadedConfig) -> None:
    if given.problem is not None:
        raise given.problem


def _local(given: LoadedConfig) -> list[LlamaCppEntry]:
    return [entry for entry in given.settings.backends if isinstance(entry, LlamaCppEntry)]


def _config(given: LoadedConfig) -> Iterator[Check]:
    try:
        _check(given)
    except InferdError as error:
        yield False, "config", str(error)
        return
    kinds = ", ".join(f"{kind_of(entry)}:{entry.name}" for entry in given.settings.backends)
    pull = str(given.settings.auto_pull).lower()
    found = "loaded" if given.path.exists() else "none at"
    yield True, "config", f"{found} {given.path} (backends: [{kinds}], auto_pull={pull})"
    for entry in _local(given):
        yield from _model(given, entry)


def _model(given: LoadedConfig, entry: LlamaCppEntry) -> Iterator[Check]:
    from inferd.store.fetch import resolve
    from inferd.store.models import ModelStore

    blob, manifest = f"model[{entry.name}]", f"manifest[{entry.name}]"
    if entry.model is None:
        path = Path(str(entry.model_path))
        yield path.is_file(), blob, f"{'file' if path.is_file() else 'no file'} at {path}"
        return
    store = ModelStore(given.settings.models_home)
    try:
        model = resolve(store, entry.model)
        path, size = store.blob_path(model.sha256), store.blob_size(model.sha256)
        if size is None:
            yield False, blob, f"blob missing at {path}; run `inferdctl pull`, or set auto_pull"
        else:
            yield True, blob, f"blob present ({size} bytes) at {path}"
        listed = store.manifest(model.name) is not None
        yield listed, manifest, f"{'present' if listed else 'missing'} at {store.manifest_path(model.name)}"
    except InferdError as error:
        yield False, blob, str(error)


def _daemon(given: LoadedConfig) -> Iterator[Check]:
    address = given.settings.admin_addr
    try:
        with _admin(given, ANSWER_SECS) as admin:
            state = admin.snapshot()
    except (DaemonUnreachable, ConnectionLost) as error:
        yield False, "admin", str(error)
        return
    phase = state.lifecycle.get("phase", "-")
    yield True, "admin", f"connected at {address}; daemon status={state.lifecycle['status']} phase={phase}"
    yield from _backends(state)


def _backends(state: Snapshot) -> Iterator[Check]:
    flags = ("v2", "vision", "audio", "tools", "thinking", "embed")
    for frame in state.capabilities:
        able = " ".join(f"{name}={str(bool(frame.get(name))).lower()}" for name in flags)
        where = f"accelerator={frame['accelerator']} gpu_layers={frame['gpu_layers']}"
        yield True, "backend", f"{frame['backend']} {where} {able}"
