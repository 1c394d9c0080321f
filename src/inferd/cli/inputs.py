"""Reads the inputs of commands: named files, and stdin. Every failure is a UsageError."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from inferd.client import Attachment
from inferd.errors import UsageError

MAX_BYTES = 128 * 1024 * 1024
"""The maximum size of an input, which is more than a request may carry."""

STDIN = Path("-")
BOM = "\ufeff"
"""The byte order mark that some editors put at the start of a file."""

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
    """Reads an image or a sound from a file. The suffix of the file's name determines the format. Raises
    UsageError for an unknown suffix, and for a file that cannot be read or is too large."""
    mime = TYPES[kind].get(path.suffix.lower())
    if mime is None:
        known = ", ".join(TYPES[kind])
        raise UsageError(f"--{kind} {path} has no known suffix; name a file that ends with one of {known}")
    return Attachment(kind, _read(path), mime=mime)


def text_file(path: Path) -> Attachment:
    """Reads a text file as an attachment. ``-`` means stdin."""
    return Attachment("text", (_stdin() if path == STDIN else text(path)).encode())


def text(path: Path) -> str:
    """Reads a file of UTF-8 text."""
    try:
        return _read(path).decode()
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text") from None


def json_object(given: str) -> dict[str, Any]:
    """Returns a JSON object. ``given`` is the JSON itself or the name of a file."""
    found = _json(given)
    if not isinstance(found, dict):
        raise UsageError(f"{_named(given)} must hold a JSON object")
    return found


def tools(given: str) -> list[dict[str, Any]]:
    """Returns the tools in the form that the v2 protocol requires. ``given`` is the JSON of one tool or of a
    list of tools, or the name of a file.

    Two other forms are accepted: OpenAI's, an object ``function`` in which the schema is called
    ``parameters``, and the answer of an MCP server to ``tools/list``.
    """
    found = _json(given)
    if isinstance(found, dict) and isinstance(found.get("tools"), list):
        found = found["tools"]
    return [_tool(each, given) for each in (found if isinstance(found, list) else [found])]


def _tool(given: Any, source: str) -> dict[str, Any]:
    tool = given
    if isinstance(tool, dict) and isinstance(tool.get("function"), dict):
        tool = dict(tool["function"])
        tool.setdefault("description", "")
        tool["input_schema"] = tool.pop("parameters", {"type": "object"})
        tool.pop("strict", None)
    if isinstance(tool, dict) and {"name", "inputSchema"} <= tool.keys():
        tool = {
            "name": tool["name"],
            "description": tool.get("description", ""),
            "input_schema": tool["inputSchema"],
        }
    if not isinstance(tool, dict) or not {"name", "description", "input_schema"} <= tool.keys():
        raise UsageError(
            f"{_named(source)} must hold a JSON array of tools, each with"
            ' {"name", "description", "input_schema"}'
        )
    return tool


def prompt(words: Sequence[str], *, stdin_taken: bool = False) -> str:
    """Returns the prompt: the words, and then the piped input. With ``-`` or without words, the prompt is
    stdin alone.

    ``stdin_taken`` means that another option of the request has already read stdin. Raises UsageError if
    there is no prompt.
    """
    text = " ".join(words)
    if any(0xD800 <= ord(char) <= 0xDFFF for char in text):
        raise UsageError("the prompt is not text in the encoding of your locale")
    if words == ("-",) or not words:
        if stdin_taken:
            raise UsageError("stdin is read by `--file -` already; give the prompt as an argument")
        if not words and _stdin_is_terminal():
            raise UsageError('no prompt was given; write `inferd run "…"`, or pipe one in')
        text = _stdin().strip()
        if not text:
            raise UsageError("stdin is empty; it must hold the prompt")
        return text
    if stdin_taken or _stdin_is_terminal():
        return text
    piped = _stdin().strip()
    return f"{text}\n\n{piped}" if piped else text


def lines(arguments: tuple[str, ...], what: str) -> list[str]:
    """Returns the arguments. Without arguments, or for ``-``, returns the lines of stdin."""
    if arguments and arguments != ("-",):
        return list(arguments)
    if not arguments and _stdin_is_terminal():
        raise UsageError(f"no {what} was given; give it as an argument, or pipe in one a line")
    found = _stdin().removesuffix("\n").split("\n")
    for number, line in enumerate(found, 1):
        if not line.strip():
            raise UsageError(f"line {number} of stdin is empty; each line must hold a {what}")
    return [line.removesuffix("\r") for line in found]


def _json(given: str) -> Any:
    try:
        return json.loads(given if _is_inline(given) else text(Path(given)).removeprefix(BOM))
    except json.JSONDecodeError as error:
        raise UsageError(f"{_named(given)} is not JSON: {error.msg} in line {error.lineno}") from None
    except (RecursionError, ValueError):
        raise UsageError(f"{_named(given)} nests too deeply or has a number of too many digits") from None


def _is_inline(given: str) -> bool:
    """Whether ``given`` is JSON itself, and not the name of a file."""
    return given.lstrip().startswith(("{", "["))


def _named(given: str) -> str:
    return "the JSON on the command line" if _is_inline(given) else given


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise UsageError(f"{path} is larger than the {MAX_BYTES >> 20} MiB that a request may carry")
    return data


def _stdin_is_terminal() -> bool:
    """Whether stdin is a terminal. True also for a process without stdin."""
    return sys.stdin is None or sys.stdin.closed or sys.stdin.isatty()


def _stdin() -> str:
    if sys.stdin is None:
        raise UsageError("stdin is closed; it must hold text")
    try:
        return sys.stdin.buffer.read(MAX_BYTES).decode().removeprefix(BOM)
    except UnicodeDecodeError:
        raise UsageError("stdin is not UTF-8 text") from None
