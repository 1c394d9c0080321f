"""``inferd doctor``: what could keep inferd from working here, and what to do about it.

A check looks and changes nothing, and an error of its own is a finding like any other. The engine is tried in
a process of its own, so that a crash of native code is a finding too.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import click

from inferd.cli.background import is_held
from inferd.client import AdminClient, Client
from inferd.config import sources
from inferd.config.entries import LlamaCppEntry
from inferd.config.settings import Settings
from inferd.errors import (
    ConnectionLost,
    DaemonUnreachable,
    HashMismatch,
    InferdError,
    ModelError,
    StoreError,
)
from inferd.store.runtime import holder

State = Literal["ok", "warn", "fail"]
Findings = Iterator["Finding"]

ANSWER_SECS = 5.0
ENGINE_SECS = 60.0
"""Loading native code takes milliseconds; a cold disk or a driver may take longer."""

_ENGINE_CODE = """
import json
from inferd.engine import _llama
print(json.dumps([_llama.devices(), _llama.system_info(), _llama.useful_threads()]))
"""

_COLOURS: dict[State, str] = {"ok": "green", "warn": "yellow", "fail": "red"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report; ``advice`` says what to do unless all is well."""

    name: str
    state: State
    detail: str
    advice: str = ""


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor_command(as_json: bool) -> int:
    """Check that inferd can work here. Exit 1 when something is broken."""
    findings = list(examine())
    healthy = all(finding.state != "fail" for finding in findings)
    if as_json:
        click.echo(json.dumps({"ok": healthy, "checks": [asdict(finding) for finding in findings]}))
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            state = click.style(f"{finding.state:4}", fg=_COLOURS[finding.state])
            click.echo(f"{state}  {finding.name:{width}}  {finding.detail}")
            if finding.advice:
                click.echo(f"{'':4}  {'':{width}}  → {finding.advice}")
    return 0 if healthy else 1


def examine() -> Findings:
    """All findings, in the order in which a daemon would meet their causes."""
    given = sources.read({})
    settings = given.settings
    if given.problem is not None:
        yield Finding("config", "fail", str(given.problem), "mend the file or move it away")
    for note in given.notes:
        yield Finding("config", "warn", note)
    if given.problem is None and not given.notes:
        yield Finding("config", "ok", "readable, or not there")
    checks: list[tuple[str, Callable[[Settings], Findings]]] = [
        ("fastpath", _fastpath),
        ("event loop", _event_loop),
        ("engine", _engine),
        ("runtime directory", _runtime_directory),
        ("sockets", _sockets),
        ("lock", _lock),
        ("log directory", _log_directory),
        ("model store", _model_store),
        ("model", _models),
        ("daemon", _daemon),
    ]
    for name, check in checks:
        try:
            yield from check(settings)
        except InferdError as error:
            yield Finding(name, "fail", str(error))
        except OSError as error:
            yield Finding(
                name, "fail", f"{error.filename}: {error.strerror}", "check its owner and permissions"
            )


def _fastpath(_: Settings) -> Findings:
    from inferd import fastpath

    if fastpath.IMPLEMENTATION == "c":
        yield Finding("fastpath", "ok", "compiled")
    else:
        yield Finding("fastpath", "warn", "plain Python, by INFERD_IMPL", "unset INFERD_IMPL for full speed")


def _event_loop(_: Settings) -> Findings:
    try:
        import uvloop  # noqa: F401
    except ImportError:
        yield Finding(
            "event loop", "warn", "asyncio's own", "install uvloop for full speed: pip install uvloop"
        )
    else:
        yield Finding("event loop", "ok", f"uvloop {version('uvloop')}")


def _engine(settings: Settings) -> Findings:
    try:
        child = subprocess.run(  # noqa: S603
            [sys.executable, "-c", _ENGINE_CODE],
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=ENGINE_SECS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        yield Finding(
            "engine", "fail", f"did not load within {ENGINE_SECS:g} s", "see the system log for its driver"
        )
        return
    if child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        yield Finding(
            "engine", "fail", f"crashed with {name}", "build inferd again on this machine: pip install ."
        )
    elif child.returncode:
        reason = child.stderr.strip().rpartition("\n")[2]
        yield Finding("engine", "fail", f"cannot be loaded: {reason}", "install inferd again")
    else:
        yield from _devices(settings, *json.loads(child.stdout))


def _devices(settings: Settings, devices: list[list[str]], features: str, threads: int) -> Findings:
    sets = " ".join(re.findall(r"(\w+) = 1", features))
    yield Finding("engine", "ok", f"{threads} useful threads; {sets}")
    described = [f"{name} ({description})" for kind, name, description, _ in devices if kind != "cpu"]
    if described:
        yield Finding("accelerator", "ok", ", ".join(described))
    elif settings.require_gpu:
        yield Finding(
            "accelerator", "fail", "none, but one is required", "unset require_gpu or mend the driver"
        )
    else:
        yield Finding("accelerator", "ok", "none; models run on the CPU")


def _runtime_directory(settings: Settings) -> Findings:
    for path in sorted({place.parent for place in _places(settings).values()} | {settings.lock.parent}):
        yield _directory("runtime directory", path, private=True)


def _log_directory(settings: Settings) -> Findings:
    yield _directory("log directory", settings.log_dir)


def _directory(name: str, path: Path, private: bool = False) -> Finding:
    """Whether ``path`` is, or can be made, a directory that we can write; ``private``: that others cannot."""
    if not path.exists():
        above = next(parent for parent in path.parents if parent.exists())
        if os.access(above, os.W_OK | os.X_OK):
            return Finding(name, "ok", f"{path} will be made when it is needed")
        return Finding(
            name, "fail", f"{path} cannot be made in {above}", f"make {above} writable for this user"
        )
    found = path.stat()
    if not stat.S_ISDIR(found.st_mode):
        return Finding(name, "fail", f"{path} is not a directory", "move it away")
    if not os.access(path, os.W_OK | os.X_OK):
        return Finding(
            name, "fail", f"{path} cannot be written", f"run: chmod u+rwx {path}, or change its owner"
        )
    if private and stat.S_IMODE(found.st_mode) & 0o022:
        mode = f"{stat.S_IMODE(found.st_mode):04o}"
        return Finding(
            name, "warn", f"{path} can be written by others (mode {mode})", f"run: chmod 0700 {path}"
        )
    return Finding(name, "ok", str(path))


def _places(settings: Settings) -> dict[str, Path]:
    places = {"admin socket": settings.admin_addr}
    if settings.uds is not None:
        places["inference socket"] = settings.uds
    return places


def _sockets(settings: Settings) -> Findings:
    for name, path in _places(settings).items():
        if not os.path.lexists(path):
            yield Finding(name, "ok", f"{path} is free")
        elif path.is_symlink() or not path.is_socket():
            yield Finding(name, "fail", f"{path} is in the way and not a socket", "move it away")
        elif _answers(path):
            yield Finding(name, "ok", f"{path} answers")
        else:
            yield Finding(name, "warn", f"{path} is left over: nobody answers", "the next daemon removes it")


def _answers(path: Path) -> bool:
    try:
        with Client(path) as client:
            client.connect(ANSWER_SECS)
    except DaemonUnreachable:
        return False
    return True


def _lock(settings: Settings) -> Findings:
    if is_held(settings.lock):
        yield Finding(
            "lock", "ok", f"{settings.lock} is held by process {holder(settings.lock) or 'unknown'}"
        )
    else:
        yield Finding("lock", "ok", f"{settings.lock} is free")


def _model_store(settings: Settings) -> Findings:
    finding = _directory("model store", settings.models_home)
    if finding.state == "ok":
        place = next(path for path in (settings.models_home, *settings.models_home.parents) if path.exists())
        free = shutil.disk_usage(place).free
        finding = Finding(finding.name, "ok", f"{finding.detail}; {free / 1e9:.1f} GB free")
    yield finding


def _models(settings: Settings) -> Findings:
    for entry in settings.backends:
        if isinstance(entry, LlamaCppEntry):
            yield from _model(settings, entry)


def _model(settings: Settings, entry: LlamaCppEntry) -> Findings:
    from inferd.store import fetch
    from inferd.store.models import ModelStore

    if entry.model is None:
        yield _file(Path(str(entry.model_path)), entry.model_sha256)
        return
    store = ModelStore(settings.models_home)
    model = fetch.resolve(store, entry.model)
    path = store.blob_path(model.sha256)
    size = store.blob_size(model.sha256)
    pull = f"run: inferd pull {model.name}"
    if size is None and settings.auto_pull and model.sources:
        yield Finding(
            "model", "warn", f"{model.name} is not in the store yet; the daemon will fetch it", pull
        )
    elif size is None:
        yield Finding("model", "fail", f"{model.name} is not in the store", pull)
    elif store.is_stamped(model.sha256, path.stat()):
        yield Finding("model", "ok", f"{model.name} is in the store and was verified")
    else:
        yield _file(path, model.sha256)


def _file(path: Path, sha256: str | None) -> Finding:
    from inferd.store import verify

    try:
        verify.open_file(path, sha256, progress=lambda *_: None, cancelled=threading.Event()).close()
    except HashMismatch as error:
        return Finding("model", "fail", str(error), "remove the file, or mend the sha256 of its entry")
    except (ModelError, StoreError) as error:
        return Finding("model", "fail", str(error), "check the path and its permissions")
    return Finding("model", "ok", f"{path} is {'readable' if sha256 is None else 'verified'}")


def _daemon(settings: Settings) -> Findings:
    try:
        with AdminClient(settings.admin_addr, timeout=ANSWER_SECS) as admin:
            status = admin.snapshot().lifecycle["status"]
    except (DaemonUnreachable, ConnectionLost) as error:
        if is_held(settings.lock):
            yield Finding("daemon", "fail", f"runs, but does not report: {error}", "restart it: inferd stop")
        else:
            yield Finding("daemon", "ok", "none is running; `inferd run` starts one")
    else:
        yield Finding("daemon", "ok", f"runs: {status}")
