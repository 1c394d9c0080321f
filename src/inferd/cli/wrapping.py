"""Word wrap for an answer that is streamed to a terminal.

A word is written as its characters arrive. A word that turns out not to fit on the line is erased and written
again on the next line. The last column stays empty, since terminals differ in where they put the cursor after
a character in this column.
"""

from __future__ import annotations

import unicodedata


class Wrapper:
    """Wraps chunks of text. Remembers the cursor's column and the word before the cursor."""

    def __init__(self) -> None:
        self._column = 0
        self._word = ""

    def feed(self, text: str, columns: int) -> str:
        """Returns the output for ``text`` on a terminal with ``columns`` columns."""
        return "".join(self._put(char, columns - 1) for char in text)

    def _put(self, char: str, width: int) -> str:
        if char == "\n":
            self._column, self._word = 0, ""
            return char
        cells = _cells(char) if char != "\t" else 8 - self._column % 8
        written = char
        if self._column + cells > width and char not in " \t":
            word = self._word
            size = sum(map(_cells, word))
            if 0 < size < self._column and size + cells <= width:
                written = f"\x1b[{size}D\x1b[K\n{word}{char}"
                self._column = size
            else:  # the word fills the line, or the break is between two words
                written = f"\n{char}"
                self._column, self._word = 0, ""
        self._column += cells
        self._word = "" if char in " \t-" or cells == 2 else self._word + char
        return written


def _cells(char: str) -> int:
    """Returns the number of terminal columns that a character takes."""
    if unicodedata.combining(char) or unicodedata.category(char) in ("Cf", "Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1
