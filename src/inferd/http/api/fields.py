"""Reads the fields of a JSON body. ``null`` means absent. Unknown fields are ignored.

If a value has the wrong type, the error names the field by its path in the body, such as
``messages[1].content``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from inferd.http.failures import BadField

U31 = 2**31 - 1


class Fields:
    """A JSON object and its path in the body."""

    __slots__ = ("_path", "_values")

    def __init__(self, values: Any, path: str = "") -> None:
        if not isinstance(values, Mapping):
            raise BadField(path or None, f"{path or 'the body'} must be a JSON object")
        self._values = values
        self._path = path

    def path(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name

    def bad(self, name: str, expected: str, code: str | None = None) -> BadField:
        """Returns the error for a field. ``expected`` is the text that follows the field's path in the error
        message."""
        where = self.path(name) if name else self._path
        return BadField(where or None, f"{where or 'the body'} {expected}", code)

    def unsupported(self, name: str, sentence: str) -> BadField:
        """Returns the error for a valid value that this server does not support."""
        return self.bad(name, sentence, "unsupported_value")

    def raw(self, name: str) -> Any:
        """Returns the value without a check of its type, or ``None`` if the field is absent."""
        return self._values.get(name)

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    def text(self, name: str) -> str | None:
        value = self._values.get(name)
        if value is not None and not isinstance(value, str):
            raise self.bad(name, "must be a string")
        return value

    def required_text(self, name: str) -> str:
        value = self.text(name)
        if value is None:
            raise self.bad(name, "is required and must be a string")
        return value

    def flag(self, name: str) -> bool | None:
        value = self._values.get(name)
        if value is not None and not isinstance(value, bool):
            raise self.bad(name, "must be true or false")
        return value

    def number(self, name: str) -> float | None:
        value = self._values.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise self.bad(name, "must be a number")
        return value

    def integer(self, name: str) -> int | None:
        if name not in self._values:
            return None
        value = self.number(name)
        if value is not None and value != int(value):
            raise self.bad(name, "must be an integer")
        return None if value is None else int(value)

    def count(self, name: str) -> int | None:
        """Returns an integer of at least 0. Returns 2^31 - 1 for any larger value."""
        if name not in self._values:
            return None
        value = self.integer(name)
        if value is not None and value < 0:
            raise self.bad(name, "must be at least 0")
        return None if value is None else min(value, U31)

    def items(self, name: str) -> list[Any] | None:
        value = self._values.get(name)
        if value is not None and not isinstance(value, list):
            raise self.bad(name, "must be an array")
        return value

    def object(self, name: str) -> Fields | None:
        value = self._values.get(name)
        return None if value is None else Fields(value, self.path(name))

    def objects(self, name: str) -> Iterator[Fields]:
        """Yields the elements of an array of objects. Yields none if the array is absent."""
        for number, item in enumerate(self.items(name) or ()):
            yield Fields(item, f"{self.path(name)}[{number}]")

    def texts(self, name: str) -> list[str] | None:
        """Returns an array of strings. A single string counts as an array of one."""
        value = self._values.get(name)
        if isinstance(value, str):
            return [value]
        items = self.items(name)
        for number, item in enumerate(items or ()):
            if not isinstance(item, str):
                raise self.bad(f"{name}[{number}]", "must be a string")
        return items
