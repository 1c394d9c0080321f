"""Server-sent events: the result does not depend on the chunking."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd.engine.remote import sse

STREAM = (
    b": a comment\n\n"
    b"data: one\r\n\r\n"
    b"event: message\ndata:two\ndata:  more\nid: 7\n\n"
    b": ping\r\r"
    b"data: \xe2\x82\xac\n\n\n\n"
    b"retry: 3\n\n"
    b"data\n\n"
    b"data: last"
)
EVENTS = ["one", "two\n more", "€", "", "last"]


def decoded(*chunks: bytes) -> list[str]:
    decoder = sse.Decoder()
    found = [event for chunk in chunks for event in decoder.feed(chunk)]
    return found + decoder.feed(b"", last=True)


def test_events_are_found() -> None:
    assert decoded(STREAM) == EVENTS


def test_one_byte_at_a_time() -> None:
    assert decoded(*(STREAM[i : i + 1] for i in range(len(STREAM)))) == EVENTS


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_any_chunking_gives_the_same_events(cuts: list[int]) -> None:
    at = [0, *sorted(cuts), len(STREAM)]
    assert decoded(*(STREAM[a:b] for a, b in itertools.pairwise(at))) == EVENTS


def test_an_event_comes_as_soon_as_it_is_complete() -> None:
    decoder = sse.Decoder()
    assert decoder.feed(b"data: a\n") == []
    assert decoder.feed(b"\n") == ["a"]


def test_a_byte_order_mark_is_skipped() -> None:
    assert decoded(b"\xef\xbb\xbfdata: a\n\n") == ["a"]


@pytest.mark.parametrize("junk", [b"data: \xff\n\n", b"data: \xe2\x82"])
def test_invalid_utf8_is_refused(junk: bytes) -> None:
    with pytest.raises(ValueError, match="utf-8"):
        decoded(junk)


@pytest.mark.parametrize("line", [b"data: aaaa\n", b"data: aaaa", b"aaaaaaaaaa", b": aaaa"])
def test_an_endless_event_is_refused(monkeypatch: pytest.MonkeyPatch, line: bytes) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT_CHARS", 100)
    with pytest.raises(ValueError, match="more than 100 characters"):
        decoded(*[line] * 50)


def test_comments_and_complete_events_are_unbounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT_CHARS", 100)
    assert decoded(*[b": ping\n"] * 50, *[b"data: a\n\n"] * 100) == ["a"] * 100


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b'{"message":"no"}', '{"error":{"message":"no"}}'),
        (b"no", '{"error":"no"}'),
        (b'{"error":1}', '{"error":1}'),
    ],
)
def test_an_event_named_error_has_its_data_in_one_form(data: bytes, error: str) -> None:
    stream = b"event: error\ndata: " + data + b"\n\ndata: next\n\n"
    assert decoded(stream) == [error, "next"]
