"""The admin client, which reads the state of a daemon.

A daemon opens its admin socket before it loads its models, so a client of this socket can wait until the
daemon is ready.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from inferd.client.address import Address, default_admin_address, endpoint
from inferd.client.connection import Connection
from inferd.errors import BootFailed, ProtocolError, RequestFailed, UsageError
from inferd.wire import admin

Frame = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of the daemon when the client connected: a ``capabilities`` frame for each backend, and the
    lifecycle frame."""

    capabilities: tuple[Frame, ...]
    lifecycle: Frame


@dataclass(frozen=True, slots=True)
class Status:
    """The state of a daemon. Each field except ``capabilities`` has the value of the same name in the
    ``snapshot`` frame."""

    lifecycle: Frame
    capabilities: tuple[Frame, ...]
    version: str
    pid: int
    uptime_secs: float
    active_permits: int
    queue_depth: int
    running: tuple[Frame, ...]
    waiting: tuple[Frame, ...]
    backends: tuple[Frame, ...]
    metrics: Frame
    loading: tuple[Frame, ...] = ()
    settings: Frame = field(default_factory=dict)
    """Hashes of the daemon's settings. A command compares them with the hashes of its own settings."""


_FACTS = ("lifecycle", "version", "pid", "uptime_secs", "active_permits", "queue_depth", "metrics")
_ROWS = ("running", "waiting", "backends")


class Inquiry:
    """Waits for the ``snapshot`` frame, which answers :data:`admin.SNAPSHOT_REQUEST`, and collects the
    ``capabilities`` frames before it."""

    def __init__(self) -> None:
        self._capabilities: list[Frame] = []

    def take(self, frame: Frame) -> Status | None:
        """Takes one frame. Returns the state if the frame is the ``snapshot``, or else ``None``.

        Raises ProtocolError if the ``snapshot`` lacks a field.
        """
        if frame["status"] == "capabilities":
            self._capabilities.append(frame)
        if frame["status"] != "snapshot":
            return None
        try:
            facts: dict[str, Any] = {name: frame[name] for name in _FACTS}
            facts |= {name: tuple(frame[name]) for name in _ROWS}
            facts["loading"] = tuple(frame.get("loading", ()))
            facts["settings"] = dict(frame.get("settings", {}))
        except (LookupError, TypeError):
            raise ProtocolError(
                "the daemon sent a snapshot that is not whole; is it another version?"
            ) from None
        return Status(capabilities=tuple(self._capabilities), **facts)


class Removal:
    """Holds the ``request`` to unload a model, and finds the daemon's answer among the received frames."""

    def __init__(self, name: str) -> None:
        """Builds the request to unload the model ``name``. Raises UsageError for a name that no model can
        have."""
        self._name = name
        try:
            self.request = admin.unload_request(name)
        except TypeError:
            raise UsageError(f"{name!r} is not a model's name") from None
        if len(self.request) > admin.MAX_REQUEST_BYTES:
            raise UsageError("no model has such a long name")

    def take(self, frame: Frame) -> int | None:
        """Takes one frame. If the frame is the answer, returns the number of requests that still run on the
        model. For any other frame, returns ``None``.

        Raises RequestFailed if the daemon refuses the request.
        """
        if frame["status"] == "refused" and frame.get("model") == self._name:
            raise RequestFailed(str(frame.get("code")), str(frame.get("message")))
        if frame["status"] != "unload" or frame.get("model") != self._name:
            return None
        return int(frame.get("running", 0))


class Opening:
    """Collects the first frames of a subscription, up to the lifecycle frame."""

    def __init__(self) -> None:
        self._capabilities: list[Frame] = []

    def take(self, frame: Frame) -> Snapshot | None:
        """Takes one frame. Returns the state if the frame is the lifecycle frame, or else ``None``."""
        if frame["status"] != "capabilities":
            return Snapshot(tuple(self._capabilities), frame)
        self._capabilities.append(frame)
        return None


def is_ready(frame: Frame) -> bool:
    """Whether the daemon serves requests, according to its lifecycle frame. A daemon also serves requests
    during a reload.

    Raises BootFailed with the daemon's message if the daemon could not start.
    """
    if frame["status"] == "failed":
        raise BootFailed(str(frame.get("message", "the daemon could not start")))
    return frame["status"] in ("ready", "restarting")


class AdminClient:
    """A subscription to the admin socket at ``address`` (by default :func:`default_admin_address`).

    ``timeout`` limits the time to connect and each wait for a frame, in seconds. An idle daemon sends no
    frames, so use ``None`` (no limit) for a long subscription.
    """

    def __init__(self, address: Address | None = None, timeout: float | None = None) -> None:
        self.address: Address = default_admin_address() if address is None else address
        where = endpoint(self.address, "admin")
        self._connection = Connection(where, timeout=timeout, connect_timeout=timeout)

    def events(self) -> Iterator[Frame]:
        """Yields frames as they arrive. The first frames describe the daemon's current state. Raises
        ConnectionLost when the daemon exits."""
        while True:
            yield admin.parse(self._connection.line())

    def snapshot(self) -> Snapshot:
        """Returns the state of the daemon when the client connected. Call this method before any other."""
        opening = Opening()
        return next(state for frame in self.events() if (state := opening.take(frame)) is not None)

    def status(self) -> Status:
        """Returns the state of the daemon, with its requests, backends and metrics.

        This method may be called repeatedly. ``Status.capabilities`` contains only the ``capabilities``
        frames that have arrived since the previous call.
        """
        self._connection.send([admin.SNAPSHOT_REQUEST])
        inquiry = Inquiry()
        return next(state for frame in self.events() if (state := inquiry.take(frame)) is not None)

    def unload(self, name: str) -> int:
        """Asks the daemon to unload a model as soon as no request uses the model.

        Returns the number of requests that use the model now. Raises RequestFailed if the daemon refuses.
        """
        removal = Removal(name)
        self._connection.send([removal.request])
        return next(left for frame in self.events() if (left := removal.take(frame)) is not None)

    def wait_ready(self, on_event: Callable[[Frame], None] = lambda frame: None) -> None:
        """Waits until the daemon is ready. Meanwhile, calls ``on_event`` with every frame that arrives.

        Raises BootFailed with the daemon's message if the daemon cannot start, and ConnectionLost if the
        daemon exits.
        """
        for frame in self.events():
            on_event(frame)
            if is_ready(frame):
                return

    def close(self) -> None:
        """Ends the subscription. A second call does nothing."""
        self._connection.close()

    def __enter__(self) -> AdminClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
