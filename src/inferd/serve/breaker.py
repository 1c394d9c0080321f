"""The circuit breaker of a backend.

After three failures within a minute, the circuit breaker is open: the backend gets no requests for half a
minute. Then the circuit breaker is half-open: one request at a time may probe the backend. If the probe
succeeds, the circuit breaker closes. If the probe fails, the circuit breaker opens again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from inferd import log

FAILURES = 3
WINDOW_SECS = 60.0
OPEN_SECS = 30.0

Clock = Callable[[], float]
OnBreaker = Callable[[str, str], None]
"""Called with the backend's name and the new state of its circuit breaker, ``half-open`` for a new probe."""

_log = log.get("router")


class Breaker:
    """The circuit breaker of one backend of the configuration. ``clock`` returns the time in seconds."""

    def __init__(self, name: str, clock: Clock, on_change: OnBreaker) -> None:
        self._name = name
        self._clock = clock
        self._on_change = on_change
        self._failures: deque[float] = deque(maxlen=FAILURES)
        self._open_until: float | None = None
        self._probing = False

    @property
    def state(self) -> str:
        """``closed``, ``open`` or ``half-open``."""
        if self._open_until is None:
            return "closed"
        return "open" if self._clock() < self._open_until else "half-open"

    def lets_pass(self) -> bool:
        state = self.state
        return state == "closed" or (state == "half-open" and not self._probing)

    def begin(self) -> bool:
        """Records that a request starts. Returns whether the request probes a backend with a half-open
        circuit breaker."""
        self._probing = self._open_until is not None
        if self._probing:
            self._on_change(self._name, "half-open")
        return self._probing

    def succeeded(self, probe: bool) -> None:
        if probe:
            self._probing = False
            self.reset()

    def reset(self) -> None:
        """Closes the circuit breaker and forgets the failures."""
        self._failures.clear()
        if self._open_until is not None:
            self._open_until = None
            _log.info("breaker_closed", backend=self._name)
            self._on_change(self._name, "closed")

    def failed(self, probe: bool) -> None:
        now = self._clock()
        if probe:
            self._probing = False
            self._open(now)
        elif self._open_until is None:  # ignore requests that began before the opening
            self._failures.append(now)
            if len(self._failures) == FAILURES and now - self._failures[0] <= WINDOW_SECS:
                self._open(now)

    def trip(self) -> None:
        """Opens the circuit breaker at once. A backend that counts its own failures calls this method."""
        if self._open_until is None or self._clock() >= self._open_until:
            self._open(self._clock())

    def undecided(self, probe: bool) -> None:
        """Records that a request ended, and that its end shows nothing about the state of the backend."""
        if probe:
            self._probing = False

    def _open(self, now: float) -> None:
        self._open_until = now + OPEN_SECS
        _log.warn("breaker_opened", backend=self._name, seconds=OPEN_SECS)
        self._on_change(self._name, "open")
