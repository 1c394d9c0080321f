"""Bodies that are too large, too slow, cut, or not JSON; keys and their limits."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from inferd.errors import ConfigError
from inferd.http import body, keys
from inferd.http.body import ClientGone
from inferd.http.failures import BadField, HttpFailure
from inferd.http.keys import Key, Keys
from tests.in_process import PATIENCE_SECS

SCOPE: dict[str, Any] = {"headers": []}


class Receive:
    """The messages of a request; after the last one there is silence."""

    def __init__(self, messages: Sequence[dict[str, Any]]) -> None:
        self._messages = list(messages)

    async def __call__(self) -> dict[str, Any]:
        if not self._messages:
            await asyncio.Event().wait()
        return self._messages.pop(0)


def piece(data: bytes, *, more: bool) -> dict[str, Any]:
    return {"type": "http.request", "body": data, "more_body": more}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (gzip.compress(b"{}", mtime=0), "the body is compressed"),
        (b"\x28\xb5\x2f\xfd\x00", "the body is compressed"),
        (b'{"a": "gr\xfc\xdf"}', "the body is not UTF-8 text"),
        (b"{", "the body is not valid JSON"),
    ],
)
async def test_a_body_that_is_no_json_is_refused_with_its_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BadField, match=reason):
        await body.read(SCOPE, Receive([piece(data, more=False)]), lambda value: value)


async def test_a_body_in_pieces() -> None:
    receive = Receive([piece(b'{"a":', more=True), piece(b"1}", more=False)])
    assert await body.read(SCOPE, receive, lambda value: value) == {"a": 1}


async def test_a_large_body_is_read_in_a_thread() -> None:
    receive = Receive([piece(b'"' + b"x" * body.LARGE_BYTES + b'"', more=False)])
    assert len(await body.read(SCOPE, receive, str)) == body.LARGE_BYTES


async def test_a_body_over_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "MAX_BODY_BYTES", 4)
    assert await body.read_bytes(SCOPE, Receive([piece(b"1234", more=False)])) == b"1234"
    for scope, messages in (
        (SCOPE, [piece(b"123", more=True), piece(b"45", more=True)]),
        ({"headers": [(b"content-length", b"5")]}, []),
    ):
        with pytest.raises(HttpFailure) as caught:
            await body.read_bytes(scope, Receive(messages))
        assert caught.value.kind == "too_large"


async def test_a_body_that_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "PIECE_SECS", 0.01)
    with pytest.raises(HttpFailure) as caught:
        await asyncio.wait_for(body.read_bytes(SCOPE, Receive([piece(b"1", more=True)])), PATIENCE_SECS)
    assert caught.value.kind == "timeout"


async def test_a_client_that_leaves_within_its_body() -> None:
    with pytest.raises(ClientGone):
        await body.read_bytes(SCOPE, Receive([piece(b"1", more=True), {"type": "http.disconnect"}]))


async def test_invalid_json() -> None:
    with pytest.raises(BadField, match="not valid JSON"):
        await body.read(SCOPE, Receive([piece(b"{", more=False)]), lambda value: value)


# Keys.


def test_a_line_that_cannot_be_used_is_named_without_its_key() -> None:
    for text, reason in (
        ("ada", "must be a name and a key"),
        ("ada short", "at least 16"),
        ("ada 0123456789abcdef scopes=all", "scopes must be"),
        ("ada 0123456789abcdef requests=-1", "requests must be"),
        ("ada 0123456789abcdef\nada 0123456789abcdeg", "given twice"),
    ):
        with pytest.raises(ConfigError) as caught:
            keys.parse(text, "F")
        assert reason in str(caught.value)
        assert "0123456789abcde" not in str(caught.value)


def test_limits_fill_up_again_within_a_minute() -> None:
    now = [0.0]
    key = Key("a", b"", frozenset(), requests=2, tokens=10, clock=lambda: now[0])
    assert [key.admit(), key.admit()] == [0, 0]
    assert key.admit() == 30
    now[0] += 30
    assert key.admit() == 0
    now[0] += 600
    assert key.admit() == 0
    key.spend(1000)
    assert key.admit() > 60


def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("ada 0123456789abcdef\n# a comment\n\n")
    file.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        Keys(file)
    file.chmod(0o600)
    found = Keys(file).find("0123456789abcdef")
    assert found is not None
    assert found.name == "ada"
    assert Keys(file).find("0123456789abcdeg") is None
