"""The messages on the admin socket: encodes status frames in the daemon, and parses them in the client.

Every frame is ``{"id":"admin","type":"status","status":…}``, and the details of the status are further keys
of this object. A client of the admin socket may send :data:`SNAPSHOT_REQUEST`, :data:`MODELS_REQUEST`,
:func:`unload_request` and :func:`pull_request`, each any number of times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from inferd.errors import ProtocolError


def encode_status(status: str, details: Mapping[str, Any] | None = None) -> bytes:
    """Encodes a status frame as a line. The keys of ``details`` keep their order. ``details`` must not
    contain the keys ``id``, ``type`` and ``status``."""
    frame = {"id": "admin", "type": "status", "status": status, **(details or {})}
    return orjson.dumps(frame, option=orjson.OPT_APPEND_NEWLINE)


SNAPSHOT_REQUEST = b'{"type":"snapshot"}\n'
MODELS_REQUEST = b'{"type":"models"}\n'
MAX_REQUEST_BYTES = 4096


def unload_request(model: str) -> bytes:
    """Encodes a request to unload a model. The answer is :func:`unloaded` or :func:`refused`."""
    return orjson.dumps({"type": "unload", "model": model}, option=orjson.OPT_APPEND_NEWLINE)


def pull_request(model: str) -> bytes:
    """Encodes a request to download a model. The answers are one :func:`pulling` frame for each step, and at
    the end a :func:`pulled` or :func:`refused` frame."""
    return orjson.dumps({"type": "pull", "model": model}, option=orjson.OPT_APPEND_NEWLINE)


def read_request(line: bytes) -> tuple[str, str]:
    """Returns the type of a client's request, and the name of the model in the request. Returns two empty
    strings for an invalid request. ``line`` has no newline."""
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
    """Encodes a step of loading a model: ``checking_local``, ``download``, ``verify``, ``mmap`` …"""
    return encode_status("loading_model", {"phase": phase, **details})


def restarting(phase: str, details: Mapping[str, Any]) -> bytes:
    """Encodes a step of a reload: first ``config``, then the steps of :func:`loading_model`."""
    return encode_status("restarting", {"phase": phase, **details})


def reload_failed(message: str) -> bytes:
    """Encodes the event that a reload failed and the old configuration stays in use. ``message`` gives the
    reason and a remedy."""
    return encode_status("reload_failed", {"message": message.encode("utf-8", "backslashreplace").decode()})


def failed(message: str) -> bytes:
    """Encodes the event that the daemon failed to start. ``message`` gives the reason and a remedy."""
    return encode_status("failed", {"message": message.encode("utf-8", "backslashreplace").decode()})


def snapshot(lifecycle: bytes, report: Mapping[str, Any]) -> bytes:
    """Encodes the answer to :data:`SNAPSHOT_REQUEST`. ``lifecycle`` is the last frame about the daemon's
    state, such as ``READY``."""
    current = parse(lifecycle)
    del current["id"], current["type"]
    return encode_status("snapshot", {"lifecycle": current, **report})


def models(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Encodes the answer to :data:`MODELS_REQUEST`: the models that a request may name."""
    return encode_status("models", {"models": rows})


def model(name: str, state: str, details: Mapping[str, Any]) -> bytes:
    """Encodes an event about a model that is loaded on demand: the model is now ``loading``, ``resident``,
    ``unloaded`` or ``failed``."""
    return encode_status("model", {"model": name, "state": state, **details})


def unloaded(name: str, running: int) -> bytes:
    """Encodes the answer to :func:`unload_request`. ``running`` is the number of requests that the model
    still serves. The model is unloaded when these requests have ended."""
    return encode_status("unload", {"model": name, "running": running})


def pulling(name: str, phase: str, details: Mapping[str, Any]) -> bytes:
    """Encodes a step of a download: ``checking_local``, ``download``, ``verify`` …"""
    return encode_status("pulling", {"model": name, "phase": phase, **details})


def pulled(name: str, stored_as: str) -> bytes:
    """Encodes the end of a download. The model is now in the store under the name ``stored_as``."""
    return encode_status("pulled", {"model": name, "stored_as": stored_as})


def refused(name: str, code: str, message: str) -> bytes:
    """Encodes the answer to an :func:`unload_request` or a :func:`pull_request` that the daemon could not
    carry out."""
    return encode_status("refused", {"model": name, "code": code, "message": message})


def breaker(backend: str, state: str) -> bytes:
    """Encodes the event that a backend's circuit breaker is now ``open``, ``half-open`` or ``closed``."""
    return encode_status("breaker", {"backend": backend, "state": state})


def parse(line: bytes | memoryview) -> dict[str, Any]:
    """Parses the status frame on ``line``. Raises ProtocolError if ``line`` is not a status frame."""
    try:
        frame = orjson.loads(line)
    except orjson.JSONDecodeError:
        frame = None
    known = isinstance(frame, dict) and frame.get("type") == "status" and isinstance(frame.get("status"), str)
    if not known:
        raise ProtocolError("the admin socket sent something that is not a status frame")
    status: dict[str, Any] = frame
    return status
