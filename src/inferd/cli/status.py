"""``inferd status`` and ``inferd watch``, which show the state and the events of a running daemon."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from inferd.cli.columns import (
    PIPE_COLUMNS,
    aligned,
    caller,
    cut,
    duration,
    megabytes,
    partly,
    rate,
    screen_width,
    time_or_dash,
    times,
    wrapped,
)
from inferd.cli.say import say
from inferd.client.address import default_admin_address
from inferd.client.admin import AdminClient, Frame, Status
from inferd.config import paths
from inferd.controls import one_line
from inferd.errors import BootFailed, ConnectionLost, DaemonUnreachable

if TYPE_CHECKING:
    from inferd.config.settings import Settings

ANSWER_SECS = 5.0
"""The time-out of the admin socket. A live daemon answers at once, however busy it is."""

_FIXED = ("id", "type", "status")


def settings_of_daemon() -> Settings:
    """Returns the settings by which the daemon is found. If the config file is invalid, the settings come
    from the environment and the defaults, so that the commands still find a running daemon."""
    from inferd.config import sources

    return sources.read({}).settings


def admin_address() -> Path:
    """Returns the address of the admin socket.

    To save time, the function imports the settings module and reads the settings only if a variable or the
    config file could change the address.
    """
    if os.environ.get("INFERD_ADDRESS"):
        return Path(default_admin_address())
    if (
        not any(map(os.environ.get, ("INFERD_ADMIN_ADDR", "INFERD_CONFIG")))
        and not paths.config_path().exists()
    ):
        return paths.admin_socket_path()
    return settings_of_daemon().admin_addr


@click.command("status")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status_command(as_json: bool) -> None:
    """Show the daemon's requests, backends and metrics. Exit 3 if no daemon runs."""
    try:
        with AdminClient(admin_address(), timeout=ANSWER_SECS) as admin:
            state = admin.status()
    except DaemonUnreachable:
        if as_json:
            say('{"running": false}')
        raise
    say(_json(state) if as_json else "\n".join(overview(state, screen_width())))


def _json(state: Status) -> str:
    import json

    able = {frame.get("name"): _details(frame) for frame in state.capabilities}
    report = {
        "running": True,
        "pid": state.pid,
        "version": state.version,
        "uptime_secs": state.uptime_secs,
        **state.lifecycle,
        "active_permits": state.active_permits,
        "queue_depth": state.queue_depth,
        "requests": {"running": state.running, "waiting": state.waiting},
        "backends": [{**able.pop(row["name"], {}), **row} for row in state.backends] + [*able.values()],
        "metrics": state.metrics,
    }
    return json.dumps(report)


def _details(frame: Frame) -> dict[str, Any]:
    return {key: value for key, value in frame.items() if key not in _FIXED}


def overview(state: Status, width: int = PIPE_COLUMNS) -> list[str]:
    """Formats the whole state as lines of at most ``width`` characters."""
    lines = [*wrapped(_headline(state), width), *wrapped(_totals(state), width)]
    if state.backends or state.capabilities:
        lines += ["", *_backends(state, width)]
    requests = [*state.running, *state.waiting]
    if requests:
        lines += ["", *(cut(line, width) for line in _requests(requests))]
    return lines


def _headline(state: Status) -> str:
    parts = [str(state.lifecycle["status"])]
    parts += [f"{key} {value}" for key, value in state.lifecycle.items() if key != "status"]
    parts += [f"inferd {state.version}", f"process {state.pid}", f"up {duration(state.uptime_secs)}"]
    return one_line(", ".join(parts))


def _totals(state: Status) -> str:
    surfaces = state.metrics["surfaces"].values()
    done = sum(surface["done"] for surface in surfaces)
    failed = sum(sum(surface["errors"].values()) for surface in surfaces)
    cancelled = sum(sum(surface["cancels"].values()) for surface in surfaces)
    return (
        f"{len(state.running)} of {state.active_permits} running, {len(state.waiting)} of {state.queue_depth}"
        f" waiting; {done} answered, {failed} failed, {cancelled} cancelled"
    )


def _backends(state: Status, width: int) -> list[str]:
    """Formats the backends as a table. Below the row of each backend are lines about its capabilities,
    process, cache, drafts and routing."""
    states = {row["name"]: row for row in state.backends}
    rows: list[tuple[object, ...]] = [
        ("backend", "state", "prompt", "cached", "answer", "first", "prefill/s", "decode/s")
    ]
    abilities = [_abilities(frame) for frame in state.capabilities]
    for frame in state.capabilities:
        name = frame.get("name", "")
        row = states.get(name)
        numbers = state.metrics["backends"].get(name)
        rows.append((cut(one_line(name), 22), _condition(row), *_numbers(numbers)))
    engines = [engine_line(states.get(frame.get("name", ""))) for frame in state.capabilities]
    caches = [
        cache_line(states.get(name), state.metrics["backends"].get(name))
        for name in (frame.get("name", "") for frame in state.capabilities)
    ]
    guesses = [
        guess_line(state.metrics["backends"].get(frame.get("name", ""))) for frame in state.capabilities
    ]
    header, *lines = aligned(rows)
    shown = [cut(header, width)]
    for row_line, *details in zip(lines, abilities, engines, caches, guesses, strict=True):
        shown.append(cut(row_line, width))
        shown += [line for detail in details for line in wrapped(detail, width)]
    return shown


def _condition(row: Frame | None) -> str:
    if row is None:
        return "loading"
    if row["breaker"] != "closed":
        return f"breaker {row['breaker']}"
    engine = row.get("engine")
    if engine and engine["problem"]:
        return "cannot load"
    if engine and engine["silent_secs"]:
        return f"stuck {duration(engine['silent_secs'])}"
    if engine and not engine["pid"]:
        return "restarting"
    return "ready" if row["ready"] else "not ready"


def engine_line(row: Frame | None) -> str:
    """Returns one line about the state of the backend's process, or an empty string for a backend without a
    process."""
    engine = (row or {}).get("engine")
    if not engine:
        return ""
    gpus = [f", {megabytes(size)} on {gpu}" for gpu, size in engine.get("gpu_bytes", {}).items()]
    memory = f"{megabytes(engine['memory_bytes'])}{''.join(gpus)}{partly(row or {})}"
    parts = [f"process {engine['pid']}, {memory}"] if engine["pid"] else ["no process"]
    if engine["restarts"]:
        parts.append(f"restarted {times(engine['restarts'])}, last because of: {engine['last_end']}")
    if engine["silent_secs"]:
        parts.append(f"no sign of life for {duration(engine['silent_secs'])}")
    if engine["problem"]:
        parts.append(engine["problem"])
    return one_line("  " + "; ".join(parts))


def cache_line(row: Frame | None, numbers: Frame | None) -> str:
    """Returns one line about the use of the backend's prefix cache, or an empty string if the cache was not
    used and has no files."""
    held = numbers or {}
    reasons = {name: count for name, count in held.get("cache_misses", {}).items() if count}
    hits, misses = held.get("cache_hits", 0), sum(reasons.values())
    disk = ((row or {}).get("engine") or {}).get("cache_disk_bytes", 0)
    if not hits + misses + disk:
        return ""
    parts = [
        f"cache: {held.get('cache_tokens', 0):,} tokens held",
        f"{megabytes(held.get('cache_bytes', 0))} in memory",
        f"{megabytes(disk)} on disk",
    ]
    if hits + misses:
        parts.append(f"{hits} of {hits + misses} requests found half of their prompt or more")
    why = f"; the others: {_counts(reasons)}" if reasons else ""
    return "  " + ", ".join(parts) + why


def guess_line(numbers: Frame | None) -> str:
    """Returns one line about the accepted drafts of speculative decoding and about the routing of a pool's
    requests. Returns an empty string if the backend has neither."""
    held = numbers or {}
    parts = []
    if held.get("drafted_tokens"):
        parts.append(f"drafts: {held['accepted_tokens']:,} of {held['drafted_tokens']:,} tokens accepted")
    routed = {name: count for name, count in held.get("routed", {}).items() if count}
    if routed:
        parts.append(f"routed: {_counts(routed)}")
    return "  " + "; ".join(parts) if parts else ""


def _counts(named: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in named.items())


def _numbers(numbers: Frame | None) -> tuple[object, ...]:
    """Returns the token counts, and the medians of times and speeds."""
    if numbers is None:
        return (0, 0, 0, "-", "-", "-")
    return (
        numbers["prompt_tokens"],
        numbers["cached_tokens"],
        numbers["completion_tokens"],
        time_or_dash(numbers["time_to_first_token_seconds"]["p50"]),
        rate(numbers["prefill_tokens_per_second"]["p50"]),
        rate(numbers["decode_tokens_per_second"]["p50"]),
    )


def _abilities(frame: Frame) -> str:
    """Returns one line with the backend's kind, model and capabilities."""
    shown = [str(frame.get("backend"))]
    if frame.get("model") not in (None, "", frame.get("name")):
        shown.append(f"model {frame['model']}")
    for key, value in _details(frame).items():
        if key not in ("name", "backend", "model") and value:
            text = " ".join(map(str, value)) if isinstance(value, list) else value
            shown.append(key if value is True else f"{key} {text}")
    return one_line("  " + ", ".join(shown))


def _requests(requests: list[Frame]) -> list[str]:
    rows: list[tuple[object, ...]] = [("request", "surface", "caller", "age", "state", "tokens", "backend")]
    for row in requests:
        rows.append(
            (
                cut(one_line(row["id"]), 24) or "-",
                row["surface"],
                caller(row),
                duration(row["age_ms"] / 1e3),
                _stage(row),
                row["tokens"],
                row["backend"] or "-",
            )
        )
    return aligned(rows)


def _stage(row: Frame) -> str:
    if row["position"] is not None:
        return f"waits, {row['position']}."
    read = row.get("prompt_read")
    return "running" if read is None or read >= 1 else f"prompt {read * 100:.0f} %"


@click.command("watch")
@click.option("--json", "as_json", is_flag=True, help="Print each event as one JSON object a line.")
def watch_command(as_json: bool) -> None:
    """Print the daemon's events until the daemon ends."""
    import json

    last: Frame = {"status": ""}
    with AdminClient(admin_address()) as admin:
        try:
            for last in admin.events():
                say(json.dumps(last) if as_json else _line(last))
                sys.stdout.flush()
        except ConnectionLost:
            if last["status"] == "failed":
                raise BootFailed(str(last.get("message", "the daemon could not start"))) from None
            if last["status"] != "draining":
                raise


def _line(frame: Frame) -> str:
    import json

    details = "  ".join(f"{key}={json.dumps(value)}" for key, value in _details(frame).items())
    return f"{time.strftime('%H:%M:%S')}  {frame['status']}  {details}".rstrip()
