"""Serves the web page at `/`: the page's files, and the part of the daemon's state that the page shows.

The files contain no secrets and need no key. At `/`, a browser gets the page. Ollama's clients, which request
`/` without accepting HTML, get Ollama's greeting. The page's security policy lets the page load scripts,
styles, images and data from this server only. Images may also come from ``data:`` URLs. The policy forbids
the page to convert text to HTML.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inferd.client.admin import Status
from inferd.http.app import Call, Handler
from inferd.http.exchange import header
from inferd.http.failures import HttpFailure

_FILES = Path(__file__).with_name("page")
_TYPES = {
    ".css": b"text/css; charset=utf-8",
    ".html": b"text/html; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".svg": b"image/svg+xml",
}
NAMES = frozenset(file.name for file in _FILES.iterdir() if file.suffix in _TYPES)

_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:;"
    b" base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
    b" require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = (
    (b"content-security-policy", _POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-cache"),
)

_ROW = ("surface", "priority", "position", "age_ms", "queue_ms", "backend", "tokens")
_BACKEND = ("name", "kind", "model", "ready", "breaker", "running")


async def _root(call: Call) -> None:
    if "text/html" in header(call.exchange.headers, b"accept"):
        await _send(call, "index.html")
    else:
        await call.text("Ollama is running")


async def _file(call: Call) -> None:
    name = call.scope["path_params"]["name"]
    if name not in NAMES:
        raise HttpFailure("not_found", "the page has no such file")
    await _send(call, name)


async def _send(call: Call, name: str) -> None:
    file = _FILES / name
    data = file.read_bytes()
    headers = [
        (b"content-type", _TYPES[file.suffix]),
        (b"content-length", str(len(data)).encode()),
        (b"vary", b"Accept"),
        *_HEADERS,
    ]
    await call.send({"type": "http.response.start", "status": 200, "headers": headers})
    await call.send({"type": "http.response.body", "body": data})


def told(status: Status, *, names: bool) -> dict[str, Any]:
    """Returns the daemon's state for the page. If ``names`` is true, the state contains the callers of the
    requests. Not every API key may see the callers."""

    def row(request: Mapping[str, Any]) -> dict[str, Any]:
        shown = {name: request[name] for name in _ROW}
        if names:
            shown["caller"] = request.get("caller") or f"{request['peer']} {request['surface']}"
        return shown

    return {
        "ready": status.lifecycle["status"] == "ready",
        "lifecycle": {"status": status.lifecycle["status"]},
        "version": status.version,
        "uptime_secs": status.uptime_secs,
        "active_permits": status.active_permits,
        "queue_depth": status.queue_depth,
        "running": [row(request) for request in status.running],
        "waiting": [row(request) for request in status.waiting],
        "backends": [
            {
                **{name: backend[name] for name in _BACKEND},
                "memory_bytes": (backend["engine"] or {}).get("memory_bytes", 0),
            }
            for backend in status.backends
        ],
        "metrics": status.metrics,
    }


ROUTES: dict[str, Mapping[str, Handler]] = {
    "/": {"GET": _root},
    "/page/{name}": {"GET": _file},
}
