"""What commands read: files that the user names, and stdin. Whatever is wrong is a UsageError."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Literal

from inferd.client import Attachment
from inferd.errors import UsageError

MAX_BYTES = 128 * 1024 * 1024
"""More than a request may carry, and as much as we are ready to read to find that out."""

TYPES: dict[Literal["image", "audio"], dict[str, str]] = {
    "image": {
        ".png": "image/png",
        ".jpg": "image/jpeg",
        ".jpeg": "image/jpeg",
        ".webp": "image/webp",
        ".gif": "image/gif",
    },
    "audio": {".wav": "audio/wav", ".mp3": "audio/mpeg", ".flac": "audio/flac"},
}


def media(kind: Literal["image", "audio"], path: Path) -> Attachment:
    """A picture or a sound; the name's suffix says how it is encoded."""
    mime = TYPES[kind].get(path.suffix.lower())
    if mime is None:
        known = ", ".join(TYPES[kind])
        raise UsageError(f"--{kind} {path} has no known suffix; name a file that ends with one of {known}")
    return Attachment(kind, _read(path), mime=mime)


def text_file(path: Path) -> Attachment:
    """A text of any length."""
    return Attachment("text", text(path).encode())


def text(path: Path) -> str:
    """A file of UTF-8 text."""
    try:
        return _read(path).decode()
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text") from None


def json_object(path: Path) -> dict[str, Any]:
    """A file of one JSON object."""
    found = _json(path)
    if not isinstance(found, dict):
        raise UsageError(f"{path} must hold a JSON object")
    return found


def tools(path: Path) -> list[dict[str, Any]]:
    """A file of one tool or a list of them, as they are on the wire."""
    found = _json(path)
    listed = found if isinstance(found, list) else [found]
    for tool in listed:
        if not isinstance(tool, dict) or not {"name", "description", "input_schema"} <= tool.keys():
            raise UsageError(
                f'{path} must hold a JSON array of tools, each {{"name", "description", "input_schema"}}'
            )
    return listed


def prompt(argument: str | None) -> str:
    """The prompt: the argument, or all of stdin without one or for ``-``."""
    if argument not in (None, "-"):
        return str(argument)
    if argument is None and sys.stdin.isatty():
        raise UsageError('no prompt was given; write `inferd run "…"`, or pipe one in')
    text = _stdin().strip()
    if not text:
        raise UsageError("stdin is empty; it must hold the prompt")
    return text


def lines(arguments: tuple[str, ...], what: str) -> list[str]:
    """The arguments, or the lines of stdin without any or for ``-``."""
    if arguments and arguments != ("-",):
        return list(arguments)
    if not arguments and sys.stdin.isatty():
        raise UsageError(f"no {what} was given; give it as an argument, or pipe in one a line")
    found = _stdin().removesuffix("\n").split("\n")
    for number, line in enumerate(found, 1):
        if not line.strip():
            raise UsageError(f"line {number} of stdin is empty; each line must hold a {what}")
    return [line.removesuffix("\r") for line in found]


def _json(path: Path) -> Any:
    try:
        return json.loads(text(path))
    except json.JSONDecodeError as error:
        raise UsageError(f"{path} is not JSON: {error.msg} in line {error.lineno}") from None
    except (RecursionError, ValueError):
        raise UsageError(f"{path} nests too deeply or has a number of too many digits") from None


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise UsageError(f"{path} is larger than the {MAX_BYTES >> 20} MiB that a request may carry")
    return data


def _stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError:
        raise UsageError("stdin is not UTF-8 text") from None
