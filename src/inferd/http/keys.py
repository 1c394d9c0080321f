"""The named keys of HTTP clients. The file with the keys is read again when it changes.

A line of the file has a name, the key, and optionally scopes and limits. Blank lines and lines that begin
with # are skipped. An example of a line:

    alice   sk-K3Y...   scopes=generate,embed   requests=60   tokens=100000

The scopes are ``generate``, ``embed`` and ``admin``. By default a key has ``generate`` and ``embed``. Limits
are per minute. Keys are compared by their hashes, so the time of a comparison reveals nothing about a key.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from inferd import log
from inferd.errors import ConfigError

Scope = Literal["generate", "embed", "admin"]
SCOPES: tuple[Scope, ...] = ("generate", "embed", "admin")
DEFAULT_SCOPES = frozenset({"generate", "embed"})
LEAST_KEY_CHARS = 16
CHECK_SECS = 1.0
MINUTE_SECS = 60.0

_log = log.get("http")


class Allowance:
    """A budget that refills within a minute. A request may overdraw the budget. Further requests are refused
    until the refill makes up for the overdraft."""

    def __init__(self, limit: int, clock: Callable[[], float]) -> None:
        self.limit = limit
        self._clock = clock
        self._left = float(limit)
        self._seen = clock()

    def wait_secs(self) -> float:
        """Returns the seconds until the next request is allowed, or 0 if it is allowed now."""
        now = self._clock()
        self._left = min(self._left + (now - self._seen) * self.limit / MINUTE_SECS, float(self.limit))
        self._seen = now
        missing = 1.0 - self._left
        return 0.0 if missing <= 0 else missing * MINUTE_SECS / self.limit

    def take(self, amount: float) -> None:
        self._left -= amount


@dataclass(slots=True, eq=False)
class Key:
    """One key. ``digest`` is the SHA-256 of its text. ``requests`` and ``tokens`` are limits per minute, and
    ``None`` means no limit."""

    name: str
    digest: bytes
    scopes: frozenset[str]
    requests: int | None = None
    tokens: int | None = None
    clock: Callable[[], float] = time.monotonic
    _allowances: dict[str, Allowance] = field(default_factory=dict)

    def admit(self) -> int:
        """Admits one request and returns 0. If a limit is reached, does not admit the request, and returns
        the seconds until a retry may succeed."""
        waits = [self._of("requests", self.requests), self._of("tokens", self.tokens)]
        wait = max((allowance.wait_secs() for allowance in waits if allowance is not None), default=0.0)
        if wait > 0:
            return math.ceil(wait)
        if waits[0] is not None:
            waits[0].take(1)
        return 0

    def spend(self, tokens: int) -> None:
        """Counts the tokens of a finished request."""
        if (allowance := self._of("tokens", self.tokens)) is not None:
            allowance.take(tokens)

    def _of(self, name: str, limit: int | None) -> Allowance | None:
        if limit is None:
            return None
        if name not in self._allowances:
            self._allowances[name] = Allowance(limit, self.clock)
        return self._allowances[name]

    def adopt(self, other: Key) -> None:
        """If the limits are unchanged, takes over the budgets of ``other``, which is the object that
        represented the same key before the file changed."""
        if (self.requests, self.tokens) == (other.requests, other.tokens):
            self._allowances = other._allowances


def digest_of(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def parse(text: str, where: str) -> list[Key]:
    """Parses the text of a key file. Raises ConfigError, which names the line and never quotes a key."""
    keys: list[Key] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if words and not words[0].startswith("#"):
            keys.append(_parse_line(words, f"{where}, line {number}"))
    names, digests = {key.name for key in keys}, {key.digest for key in keys}
    if len(names) < len(keys) or len(digests) < len(keys):
        raise ConfigError(f"{where}: a name or a key is given twice")
    return keys


def _parse_line(words: list[str], where: str) -> Key:
    if len(words) < 2 or "=" in words[0]:
        raise ConfigError(f"{where}: a line must be a name and a key")
    name, secret, *rest = words
    if len(secret) < LEAST_KEY_CHARS:
        raise ConfigError(f"{where}: the key of {name} must be at least {LEAST_KEY_CHARS} characters long")
    key = Key(name, digest_of(secret), DEFAULT_SCOPES)
    for word in rest:
        option, _, value = word.partition("=")
        if option == "scopes" and set(value.split(",")) <= set(SCOPES):
            key.scopes = frozenset(value.split(","))
        elif option in ("requests", "tokens") and value.isdecimal() and int(value) > 0:
            setattr(key, option, int(value))
        else:
            raise ConfigError(
                f"{where}: {option} must be scopes=generate,embed,admin, requests=N or tokens=N"
            )
    return key


class Keys:
    """The active keys: those in the file ``path``, or only the key ``single`` if there is no file. Without a
    file and without ``single``, no key is active."""

    def __init__(self, path: Path | None, single: str | None = None) -> None:
        self._path = path
        self._keys: list[Key] = []
        self._stamp: tuple[int, ...] = ()
        self._checked = 0.0
        if path is not None:
            self._keys, self._stamp = _load(path)
            if not self._keys:
                raise ConfigError(f"{path} holds no key; a line is a name and a key")
        elif single:
            self._keys = [Key("default", digest_of(single), frozenset(SCOPES))]

    @property
    def any(self) -> bool:
        """Whether clients must send a key."""
        return bool(self._keys)

    def find(self, secret: str) -> Key | None:
        """Returns the key whose text is ``secret``, or ``None``."""
        self._refresh()
        given, found = digest_of(secret), None
        # No early exit, so that the time does not depend on the position of the key.
        for key in self._keys:
            if hmac.compare_digest(key.digest, given):
                found = key
        return found

    def _refresh(self) -> None:
        """Reads the key file again if it has changed. If the file is invalid, the keys stay unchanged."""
        now = time.monotonic()
        if self._path is None or now - self._checked < CHECK_SECS:
            return
        self._checked = now
        try:
            if _stamp_of(self._path) == self._stamp:
                return
            keys, self._stamp = _load(self._path)
        except (ConfigError, OSError) as error:
            _log.warn("http_keys_unusable", reason=str(error))
            return
        before = {key.digest: key for key in self._keys}
        for key in keys:
            if key.digest in before:
                key.adopt(before[key.digest])
        self._keys = keys
        _log.info("http_keys_read", keys=len(keys))


def _stamp_of(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def _load(path: Path) -> tuple[list[Key], tuple[int, ...]]:
    try:
        found, text = path.stat(), path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"the key file {path} cannot be read: {reason}") from None
    if os.name == "posix" and stat.S_IMODE(found.st_mode) & 0o077:
        raise ConfigError(f"the key file {path} can be read by other users; run: chmod 600 {path}")
    return parse(text, str(path)), (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
