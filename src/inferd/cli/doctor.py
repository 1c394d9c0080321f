"""``inferd doctor``: finds faults of this machine and of the configuration, and suggests remedies.

A check changes nothing. If a check raises an exception, that is a finding, too. The engine is tested in a
process of its own, so that a crash of native code becomes a finding.
"""

from __future__ import annotations

import json
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from inferd.cli import check_models, check_places
from inferd.cli.columns import times
from inferd.cli.finding import Finding, Findings, State
from inferd.cli.say import say, say_json
from inferd.client import AdminClient
from inferd.config import sources
from inferd.config.settings import Settings
from inferd.controls import one_line
from inferd.errors import ConnectionLost, DaemonUnreachable, InferdError
from inferd.store.runtime import is_held

ANSWER_SECS = 5.0
ENGINE_SECS = 60.0
"""Loading native code takes milliseconds; a cold disk or a driver may take longer."""

_ENGINE_CODE = """
import json
from inferd.engine.local import _llama, portable
found = {each.name: portable.not_loaded(each) for each in portable.companions()}
print(
    json.dumps(
        [_llama.devices(), _llama.cpu_variant(), _llama.system_info(), _llama.useful_threads(), found]
    )
)
"""
"""Prints the arguments of :func:`_devices` as JSON."""

_IN_FORCE = ("yes", "refused")

CPUINFO = Path("/proc/cpuinfo")

_COLOURS: dict[State, str] = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor_command(as_json: bool) -> int:
    """Check this machine and the configuration for faults. Exit 1 if a check finds a fault."""
    findings = list(examine())
    healthy = all(finding.state != "fail" for finding in findings)
    if as_json:
        say_json({"ok": healthy, "checks": [asdict(finding) for finding in findings]})
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            state = click.style(f"{finding.state:4}", fg=_COLOURS[finding.state])
            say(f"  {finding.name:{width}}  {one_line(finding.detail)}", head=state)
            if finding.advice:
                say(f"{'':4}  {'':{width}}  → {one_line(finding.advice)}")
    return 0 if healthy else 1


def examine() -> Findings:
    """Yields all findings. The checks run in the order in which a starting daemon needs the checked parts.
    The checks of the running daemon and of INFERD_ADDRESS come last."""
    given = sources.read({})
    settings = given.settings
    if given.problem is not None:
        advice = "set it where the daemon is started" if given.serving else "mend the file or move it away"
        yield Finding("config", "fail", str(given.problem), advice)
    for note in given.notes:
        yield Finding("config", "warn", note)
    if given.problem is None and not given.notes:
        found = f"{given.path} is sound" if given.path.exists() else f"there is no file {given.path}"
        yield Finding("config", "ok", found)
    checks: list[tuple[str, Callable[[Settings], Findings]]] = [
        ("fastpath", _fastpath),
        ("event loop", _event_loop),
        ("processor", _processor),
        ("engine", _engine),
        ("runtime directory", check_places.runtime_directory),
        ("sockets", check_places.sockets),
        ("lock", check_places.lock),
        ("open files", check_places.open_files),
        ("log directory", check_places.log_directory),
        ("model store", check_places.model_store),
        ("model", check_models.models),
        ("backends", check_models.remotes),
        ("daemon", _daemon),
        ("INFERD_ADDRESS", check_places.named_address),
    ]
    for name, check in checks:
        try:
            yield from check(settings)
        except InferdError as error:
            advice = "" if ";" in str(error) else "check its owner and permissions"
            yield Finding(name, "fail", str(error), advice)
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


def _processor(_: Settings) -> Findings:
    flags: set[str] = set()
    with suppress(OSError):
        found = re.search(r"^flags\s*:(.*)$", CPUINFO.read_text(), re.MULTILINE)
        flags = set(found[1].split()) if found else set()
    if flags and platform.machine() in ("x86_64", "AMD64") and "avx2" not in flags:
        yield Finding(
            "processor",
            "warn",
            "it has no AVX2, so answers come several times more slowly",
            "choose a small model, or a newer machine",
        )
    else:
        yield Finding("processor", "ok", platform.processor() or platform.machine())


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
        reason = " (it was built for another processor)" if name == "SIGILL" else ""
        advice = "build inferd again on this machine: pip install ."
        yield Finding("engine", "fail", f"crashed with {name}{reason}", advice)
    elif child.returncode:
        reason = child.stderr.strip().rpartition("\n")[2]
        yield Finding("engine", "fail", f"cannot be loaded: {reason}", "install inferd again")
    else:
        yield from _devices(settings, *json.loads(child.stdout))


def _devices(
    settings: Settings,
    devices: list[list[str]],
    variant: str,
    features: str,
    threads: int,
    companions: dict[str, str],
) -> Findings:
    """Reports the devices for computation. ``companions`` maps each companion package to the reason why the
    package is not loaded, or to ``""``."""
    sets = " ".join(re.findall(r"(\w+) = 1", features))
    yield Finding("engine", "ok", f"CPU variant {variant}; {threads} useful threads; {sets}")
    for companion, problem in companions.items():
        if problem:
            yield Finding("engine", "warn", f"{companion} is not loaded: {problem}")
    described = [f"{name} ({description})" for kind, name, description, _ in devices if kind != "cpu"]
    if described:
        yield Finding("accelerator", "ok", ", ".join(described))
    elif settings.require_gpu:
        yield Finding(
            "accelerator", "fail", "none, but one is required", "unset require_gpu or mend the driver"
        )
    elif loaded := [companion for companion, problem in companions.items() if not problem]:
        found = f"{' and '.join(loaded)} found none; models run on the CPU"
        yield Finding(
            "accelerator", "warn", found, "check its driver, and that this user may open the device"
        )
    else:
        yield Finding("accelerator", "ok", "none; models run on the CPU")


def _daemon(settings: Settings) -> Findings:
    try:
        with AdminClient(settings.admin_addr, timeout=ANSWER_SECS) as admin:
            state = admin.status()
    except (DaemonUnreachable, ConnectionLost) as error:
        if is_held(settings.lock):
            yield Finding("daemon", "fail", f"runs, but does not report: {error}", "restart it: inferd stop")
        else:
            yield Finding("daemon", "ok", "none is running; `inferd run` starts one")
    else:
        yield Finding("daemon", "ok", f"runs: {state.lifecycle['status']}")
        for row in state.backends:
            if row.get("engine"):
                yield _engine_process(row["name"], row["engine"])


def _engine_process(name: str, engine: dict[str, Any]) -> Finding:
    """Reports the state of a model's process, and the parts of its sandbox that are not active."""
    what = f"engine {name}"
    if engine["problem"]:
        return Finding(what, "fail", engine["problem"], "mend the model, then reload: inferd reload")
    if engine["silent_secs"]:
        silent = f"no sign of life for {engine['silent_secs']:g} s"
        return Finding(what, "warn", silent, "inferd ends it and starts it again; the log says when")
    if engine["restarts"]:
        often = f"was started again {times(engine['restarts'])}, last because of: {engine['last_end']}"
        return Finding(what, "warn", often, "the activity log says where it ended: engine_crashed")
    missing = [f"{layer}: {state}" for layer, state in engine["cage"].items() if state not in _IN_FORCE]
    if missing:
        return Finding(what, "warn", f"its cage is not whole: {'; '.join(missing)}")
    return Finding(what, "ok", f"process {engine['pid']}, caged")
