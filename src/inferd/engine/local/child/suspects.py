"""Finds the requests that crash engine processes.

A request is identified by a keyed hash. The key exists in this daemon alone, and the request's text is not
kept. If a process dies, each request that was running becomes a possible cause. A request during which two
processes have died is a suspect and runs alone. If this request was the only running one when the second
process or a later one died, the request is convicted: it is refused for ten minutes. The deaths of processes
during a request are forgotten ten minutes after the last of them.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence

from msgspec.structs import replace

from inferd.engine.local.child import messages as m
from inferd.engine.local.child.jobs import EngineRequest
from inferd.engine.requests import GenerateRequest
from inferd.errors import InvalidRequest

REMEMBERED_SECS = 600.0
DEATHS_FOR_SUSPICION = 2
_MOST_KEPT = 1000


class Suspects:
    """For each request, counts the processes that died while the request was running. All times are seconds
    of a monotonic clock."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._deaths: dict[bytes, tuple[int, float]] = {}
        self._convicted: dict[bytes, float] = {}

    def runs_alone(self, request: EngineRequest, now: float) -> bool:
        """Returns whether the request is a suspect. Raises InvalidRequest if the request is convicted."""
        if not self._deaths and not self._convicted:
            return False
        self._forget(now)
        known = self._fingerprint(request)
        if known in self._convicted:
            raise InvalidRequest(
                "this request ended the engine each time that it was tried and is refused for ten minutes:"
                " change it, and please report it"
            )
        return self._deaths.get(known, (0, 0.0))[0] >= DEATHS_FOR_SUSPICION

    def engine_died(self, running: Sequence[EngineRequest], now: float) -> bool:
        """Records that the requests ``running`` were running when a process died. Returns whether one of them
        is convicted."""
        self._forget(now)
        for request in running:
            known = self._fingerprint(request)
            count = self._deaths.pop(known, (0, 0.0))[0] + 1
            if len(running) == 1 and count >= DEATHS_FOR_SUSPICION:
                self._convicted[known] = now
                return True
            self._deaths[known] = (count, now)
            while len(self._deaths) > _MOST_KEPT:
                del self._deaths[next(iter(self._deaths))]
        return False

    def _forget(self, now: float) -> None:
        oldest = now - REMEMBERED_SECS
        self._deaths = {known: seen for known, seen in self._deaths.items() if seen[1] > oldest}
        self._convicted = {known: when for known, when in self._convicted.items() if when > oldest}

    def _fingerprint(self, request: EngineRequest) -> bytes:
        digest = hashlib.blake2b(key=self._key, digest_size=16)
        if isinstance(request, GenerateRequest):
            # The frame holds the id, which a client chooses anew each time.
            head, buffers = m.take_apart(replace(request, frame=None))
            digest.update(m.encode(head))
            for buffer in buffers:
                digest.update(buffer)
        else:
            digest.update(m.encode(request))
        return digest.digest()
