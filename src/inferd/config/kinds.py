"""The types of option values. Each type is an instance of :class:`Kind`.

A kind parses the text of a flag, of an environment variable or of a string in the config file. For invalid
text, the kind raises a ``ValueError``, and the user sees its message after "… must be". A kind also has the
msgspec type that validates values in the config file, so that each bound is written only once. msgspec is
imported only if a config file exists.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal


class Secret:
    """A secret value. Its repr hides the value, and only :meth:`reveal` returns it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret(…)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    __hash__ = None  # type: ignore[assignment]


class Kind(ABC):
    """The type of an option's value."""

    @property
    @abstractmethod
    def metavar(self) -> str:
        """The placeholder for the value in ``--help``."""

    @property
    @abstractmethod
    def description(self) -> str:
        """A noun phrase that describes the valid values."""

    @property
    def file_type(self) -> Any:
        """The msgspec type of the value in the config file."""
        from msgspec import Meta

        return Annotated[str, Meta(min_length=1)]

    @abstractmethod
    def parse(self, text: str) -> object:
        """Parses ``text``. Raises ``ValueError`` with a description of the valid values."""

    @property
    def ignores_unusable_variables(self) -> bool:
        """Whether an invalid value in an environment variable is only a warning, and not an error."""
        return False

    def of_file(self, value: Any) -> object:
        """Converts ``value`` from the config file, which msgspec has converted to :attr:`file_type`. Raises
        ``ValueError`` with a description of the valid values."""
        return self.parse(value) if isinstance(value, str) else value


class Choice(Kind):
    """One of a few words. The config file may also use the integers that ``numbers`` maps to words."""

    def __init__(
        self,
        values: tuple[str, ...],
        aliases: Mapping[str, str] | None = None,
        numbers: Mapping[int, str] | None = None,
    ) -> None:
        self.values = values
        self.aliases = aliases or {}
        self.numbers = numbers or {}

    @property
    def metavar(self) -> str:
        return "|".join(self.values)

    @property
    def description(self) -> str:
        return "one of " + ", ".join(self.values)

    @property
    def file_type(self) -> Any:
        return Literal[self.values + tuple(self.numbers)]

    def parse(self, text: str) -> str:
        value = self.aliases.get(text, text)
        if value not in self.values:
            raise ValueError(self.description)
        return value

    def of_file(self, value: Any) -> str:
        return self.numbers[value] if isinstance(value, int) else self.parse(value)


LOG_LEVELS = ("off", "error", "warn", "info", "debug", "trace")


class LogLevel(Kind):
    """A log level in upper or lower case, its number, or filters in the form of Rust's ``env_logger``.

    Commas separate the filters. The last filter whose target begins with ``inferd`` applies. If no target
    begins with ``inferd``, the last filter without a target applies. An invalid value in an environment
    variable is ignored with a warning, as in inferd 0.2.1.
    """

    @property
    def metavar(self) -> str:
        return "|".join(LOG_LEVELS)

    @property
    def description(self) -> str:
        return "one of " + ", ".join(LOG_LEVELS)

    @property
    def ignores_unusable_variables(self) -> bool:
        return True

    def parse(self, text: str) -> str:
        levels: dict[bool, str] = {}
        for part in text.split(","):
            target, separator, level = part.strip().rpartition("=")
            level = level.strip().lower()
            if level.isascii() and level.isdigit() and int(level) < len(LOG_LEVELS):
                level = LOG_LEVELS[int(level)]
            if level not in LOG_LEVELS:
                raise ValueError(self.description)
            if not separator or target.startswith("inferd"):
                levels[bool(separator)] = level
        if not levels:
            raise ValueError(self.description)
        return levels.get(True) or levels[False]


class Boolean(Kind):
    """A switch. In an environment variable, ``1``, ``true``, ``yes`` and ``on`` mean true, and ``0``,
    ``false``, ``no`` and ``off`` mean false."""

    @property
    def metavar(self) -> str:
        return ""

    @property
    def description(self) -> str:
        return "true or false"

    @property
    def file_type(self) -> Any:
        return bool

    def parse(self, text: str) -> bool:
        word = text.lower()
        if word in ("1", "true", "t", "yes", "y", "on"):
            return True
        if word in ("0", "false", "f", "no", "n", "off"):
            return False
        raise ValueError(self.description)


class FilePath(Kind):
    """A file path. A leading ``~/`` means the home directory."""

    @property
    def metavar(self) -> str:
        return "PATH"

    @property
    def description(self) -> str:
        return "a path"

    def parse(self, text: str) -> Path:
        if not text or "\0" in text:
            raise ValueError(self.description)
        try:
            return Path(text).expanduser()
        except RuntimeError:
            raise ValueError("a path; the home directory of a leading ~ is not known") from None


class Name(Kind):
    """A name without path separators and control characters, which is safe to show and to use as a file
    name."""

    def __init__(self, what: str = "NAME") -> None:
        self.what = what

    @property
    def metavar(self) -> str:
        return self.what

    @property
    def description(self) -> str:
        return "a name without path separators and control characters"

    def parse(self, text: str) -> str:
        if not text.strip() or text in (".", "..") or not text.isprintable() or set(text) & set("/\\"):
            raise ValueError(self.description)
        return text


class Text(Kind):
    """Printable text on one line. If ``needed``, the text must not be empty."""

    def __init__(self, what: str = "TEXT", needed: bool = False) -> None:
        self.what = what
        self.needed = needed

    @property
    def metavar(self) -> str:
        return self.what

    @property
    def description(self) -> str:
        return "printable text"

    def parse(self, text: str) -> str:
        if not text.isprintable() or (self.needed and not text.strip()):
            raise ValueError(self.description)
        return text


class Paragraphs(Kind):
    """Text of any length, which may have several lines."""

    @property
    def metavar(self) -> str:
        return "TEXT"

    @property
    def description(self) -> str:
        return "text without NUL"

    def parse(self, text: str) -> str:
        if "\0" in text:
            raise ValueError(self.description)
        return text


class Sha256(Kind):
    """A SHA-256 hash in hexadecimal digits, which are converted to lower case."""

    @property
    def metavar(self) -> str:
        return "HEX"

    @property
    def description(self) -> str:
        return "64 hexadecimal digits"

    def parse(self, text: str) -> str:
        if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
            raise ValueError(self.description)
        return text.lower()


class SecretText(Kind):
    """A secret. If ``optional``, an empty text means that there is no secret."""

    def __init__(self, optional: bool = False) -> None:
        self.optional = optional

    @property
    def metavar(self) -> str:
        return "KEY"

    @property
    def description(self) -> str:
        return "a key of printable characters"

    def parse(self, text: str) -> Secret:
        if not text.isprintable() or not (text or self.optional):
            raise ValueError(self.description)
        return Secret(text)


class Words(Kind):
    """Words without blanks. In a flag or a variable, commas separate the words. In the config file, the words
    are an array."""

    def __init__(self, what: str = "WORD") -> None:
        self.what = what

    @property
    def metavar(self) -> str:
        return f"{self.what},..."

    @property
    def description(self) -> str:
        return "words separated by commas; in the config file, an array of words"

    @property
    def file_type(self) -> Any:
        return list[str]

    def parse(self, text: str) -> tuple[str, ...]:
        return self._checked(text.split(","))

    def of_file(self, value: Any) -> tuple[str, ...]:
        return self._checked(value)

    def _checked(self, words: Sequence[str]) -> tuple[str, ...]:
        """Returns the words as a value. Raises ValueError if a word is invalid."""
        if any(not word or not word.isprintable() or set(word) & set(" ,") for word in words):
            raise ValueError(self.description)
        return tuple(words)


class Aliases(Kind):
    """Maps patterns of names to names. A flag or a variable has the pairs as ``PATTERN=NAME``, separated by
    commas. The config file has the pairs as an object."""

    @property
    def metavar(self) -> str:
        return "PATTERN=NAME,..."

    @property
    def description(self) -> str:
        return "patterns and names as PATTERN=NAME, separated by commas; in the config file, an object"

    @property
    def file_type(self) -> Any:
        return dict[str, str]

    def parse(self, text: str) -> dict[str, str]:
        pairs = [part.split("=", 1) for part in text.split(",")]
        if any(len(pair) != 2 for pair in pairs):
            raise ValueError(self.description)
        return self.of_file(dict(pairs))

    def of_file(self, value: Any) -> dict[str, str]:
        if not all(name and name.isprintable() for pair in value.items() for name in pair):
            raise ValueError(self.description)
        return dict(value)
