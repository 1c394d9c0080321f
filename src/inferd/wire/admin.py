"""The admin surface: status frames, encoded for subscribers and parsed for the client.

Every frame is ``{"id":"admin","type":"status","status":…}`` with its details next to these keys. A subscriber
may send :data:`SNAPSHOT_REQUEST`, :data:`MODELS_REQUEST`, :func:`unload_request` and :func:`pull_request` any
number of times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from inferd.errors import ProtocolError


def encode_status(status: str, details: Mapping[str, Any] | None = None) -> bytes:
    """A status frame as a line; ``details`` keep their order and must not contain the three fixed keys."""
    frame = {"id": "admin", "type": "status", "status": status, **(details or {})}
    return orjson.dumps(frame, option=orjson.OPT_APPEND_NEWLINE)


SNAPSHOT_REQUEST = b'{"type":"snapshot"}\n'
MODELS_REQUEST = b'{"type":"models"}\n'
MAX_REQUEST_BYTES = 4096


def unload_request(model: str) -> bytes:
    """A request to unload a model; answered by :func:`unloaded` or :func:`refused`."""
    return orjson.dumps({"type": "unload", "model": model}, option=orjson.OPT_APPEND_NEWLINE)


def pull_request(model: str) -> bytes:
    """A request to download a model; answered by :func:`pulling`, and at the end by :func:`pulled` or
    :func:`refused`."""
    return orjson.dumps({"type": "pull", "model": model}, option=orjson.OPT_APPEND_NEWLINE)


def read_request(line: bytes) -> tuple[str, str]:
    """The type of a subscriber's request, given without its newline, and the model that it names; both empty
    for an invalid request."""
    if len(line) > MAX_REQUEST_BYTES:
        return "", ""
    try:
        request = orjson.loads(line)
    except orjson.JSONDecodeError:
        return "", ""
    kind, model = (request.get("type"), request.get("model", "")) if isinstance(request, dict) else ("", "")
    return (kind, model) if isinstance(kind, str) and isinstance(model, str) else ("", "")


STARTING = encode_status("starting")
READY = encode_status("ready")
DRAINING = encode_status("draining")


def loading_model(phase: str, details: Mapping[str, Any]) -> bytes:
    """A step of loading a model: ``checking_local``, ``download``, ``verify``, ``mmap`` …"""
    return encode_status("loading_model", {"phase": phase, **details})


def restarting(phase: str, details: Mapping[str, Any]) -> bytes:
    """A step of a reload: ``config``, then the steps of loading a model."""
    return encode_status("restarting", {"phase": phase, **details})


def reload_failed(message: str) -> bytes:
    """A reload failed; the old configuration stays. ``message`` gives reason and remedy. An event."""
    return encode_status("reload_failed", {"message": message.encode("utf-8", "backslashreplace").decode()})


def failed(message: str) -> bytes:
    """The boot failed; ``message`` gives the reason and a remedy."""
    return encode_status("failed", {"message": message.encode("utf-8", "backslashreplace").decode()})


def snapshot(lifecycle: bytes, report: Mapping[str, Any]) -> bytes:
    """The answer to :data:`SNAPSHOT_REQUEST`; ``lifecycle`` is the current lifecycle frame."""
    current = parse(lifecycle)
    del current["id"], current["type"]
    return encode_status("snapshot", {"lifecycle": current, **report})


def models(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """The answer to :data:`MODELS_REQUEST`: the models of the store that a request may name."""
    return encode_status("models", {"models": rows})


def model(name: str, state: str, details: Mapping[str, Any]) -> bytes:
    """A model on demand is now ``loading``, ``resident``, ``unloaded`` or ``failed``. An event."""
    return encode_status("model", {"model": name, "state": state, **details})


def unloaded(name: str, running: int) -> bytes:
    """The answer to :func:`unload_request`; the unload waits for the ``running`` requests."""
    return encode_status("unload", {"model": name, "running": running})


def pulling(name: str, phase: str, details: Mapping[str, Any]) -> bytes:
    """The event for a step of a download: ``checking_local``, ``download``, ``verify`` …"""
    return encode_status("pulling", {"model": name, "phase": phase, **details})


def pulled(name: str, stored_as: str) -> bytes:
    """The end of a download: the model is in the store under the name ``stored_as``."""
    return encode_status("pulled", {"model": name, "stored_as": stored_as})


def refused(name: str, code: str, message: str) -> bytes:
    """The error answer to :func:`unload_request` and :func:`pull_request`."""
    return encode_status("refused", {"model": name, "code": code, "message": message})


def breaker(backend: str, state: str) -> bytes:
    """The new state of a backend's breaker: ``open``, ``half-open`` or ``closed``. An event."""
    return encode_status("breaker", {"backend": backend, "state": state})


def parse(line: bytes | memoryview) -> dict[str, Any]:
    """Parses the status frame on a line. Raises ProtocolError for anything else."""
    try:
        frame = orjson.loads(line)
    except orjson.JSONDecodeError:
        frame = None
    known = isinstance(frame, dict) and frame.get("type") == "status" and isinstance(frame.get("status"), str)
    if not known:
        raise ProtocolError("the admin socket sent something that is not a status frame")
    status: dict[str, Any] = frame
    return status
