"""An answer on a terminal: lines break between words, and no character is lost."""

from __future__ import annotations

import os
import re
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd.cli.columns import terminal_width
from inferd.cli.wrapping import Wrapper, _cells


def screen(written: str) -> list[str]:
    """The lines on a simulated terminal, which supports cursor left and erase to the end of line."""
    lines = [""]
    for part in re.findall(r"\x1b\[\d+D\x1b\[K|\n|[^\x1b\n]", written):
        if part == "\n":
            lines.append("")
        elif part.startswith("\x1b"):
            back = int(part[2 : part.index("D")])
            while back > 0:
                back -= _cells(lines[-1][-1])
                lines[-1] = lines[-1][:-1]
        else:
            lines[-1] += part
    return lines


def show(text: str, columns: int, piece: int) -> list[str]:
    wrapper = Wrapper()
    pieces = [text[start : start + piece] for start in range(0, len(text), piece)]
    return screen("".join(wrapper.feed(each, columns) for each in pieces))


@pytest.mark.parametrize("piece", [1, 3, 1000])
def test_no_word_is_broken(piece: int) -> None:
    text = "The quick brown fox jumps over the lazy dog. " * 5 + "\nNext, a paragraph."
    lines = show(text, 20, piece)
    assert max(map(len, (line.rstrip() for line in lines))) < 20
    assert " ".join(" ".join(lines).split()) == " ".join(text.split())


def test_a_word_longer_than_the_line_and_text_without_spaces() -> None:
    assert show("ab " + "x" * 25, 11, 1) == ["ab ", "x" * 10, "x" * 10, "x" * 5]
    assert show("漢字かな交じり文", 11, 1) == ["漢字かな交", "じり文"]
    assert show("-aaa漢", 5, 1) == ["-aaa", "漢"]


@given(st.text("ab -漢é\n", max_size=200), st.integers(5, 40), st.integers(1, 9))
def test_nothing_is_lost_and_every_line_fits(text: str, columns: int, piece: int) -> None:
    lines = show(text, columns, piece)
    assert "".join(lines) == text.replace("\n", "")
    assert all(sum(map(_cells, line.rstrip(" "))) < columns for line in lines)


@pytest.mark.parametrize(("known", "width"), [(0, 80), (132, 132)])
def test_a_terminal_of_unknown_size_has_80_columns(
    known: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((known, known)))
    assert terminal_width() == width
