"""From tokens to text: every split of the bytes must give the same complete characters."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from inferd.engine.local._llama import TextStream
from tests.cases import cases


def shown(pieces: list[bytes], stops: Sequence[bytes] = ()) -> tuple[list[bytes], bool]:
    """The text of each push, then of the end; and whether a stop string matched."""
    stream = TextStream(stops)
    out = []
    for piece in pieces:
        text, stopped = stream.push(piece)
        out.append(text)
        if stopped:
            return out, True
    out.append(stream.finish())
    return out, False


@given(st.text(), st.lists(st.integers(0, 200)))
def test_text_is_the_same_however_it_is_cut(text: str, cuts: list[int]) -> None:
    data = text.encode()
    at = sorted({0, *(cut for cut in cuts if cut < len(data)), len(data)})
    pieces = [data[i:j] for i, j in pairwise(at)]
    out, _ = shown(pieces)
    assert b"".join(out) == data
    for part in out:
        part.decode()  # each piece shown is whole characters


@given(st.binary(max_size=40))
def test_bytes_that_are_no_character_are_dropped(data: bytes) -> None:
    out, _ = shown([data[i : i + 1] for i in range(len(data))])
    assert b"".join(out) == data.decode("utf-8", "ignore").encode()


def test_a_four_byte_character_appears_with_its_last_byte() -> None:
    assert shown([b"\xf0", b"\x9f", b"\x98", b"\x80"])[0] == [b"", b"", b"", "😀".encode(), b""]


def test_an_unfinished_character_at_the_end_is_dropped() -> None:
    assert shown([b"a\xf0\x9f\x98"])[0] == [b"a", b""]


@given(st.text("abc", max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3))
def test_text_ends_before_the_first_stop_string(text: str, stops: list[str]) -> None:
    found = [i for i in range(len(text)) if any(text.startswith(stop, i) for stop in stops)]
    # The stream meets the stop string that is complete first; of those that end together, the longest.
    ends = [(i + len(stop), i) for i in range(len(text)) for stop in stops if text.startswith(stop, i)]
    out, stopped = shown([c.encode() for c in text], [stop.encode() for stop in stops])
    assert stopped == bool(found)
    assert b"".join(out).decode() == (text[: min(ends)[1]] if ends else text)


@cases("cut", range(8))
def test_a_stop_string_split_over_tokens_is_never_shown(cut: int) -> None:
    data = b"yes<end>no"
    out, stopped = shown([data[: 3 + cut], data[3 + cut :]], [b"<end>"])
    assert stopped
    assert b"".join(out) == b"yes"


def test_a_false_stop_prefix_is_shown_at_once_or_at_the_end() -> None:
    assert shown([b"a<", b"e", b"x"], [b"<end>"])[0] == [b"a", b"", b"<ex", b""]
    assert shown([b"a<en"], [b"<end>"])[0] == [b"a", b"<en"]
