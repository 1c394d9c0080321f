"""Writes answers to terminals and pipes."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, TextIO

from inferd.cli.columns import duration, rate, terminal_width
from inferd.cli.say import say
from inferd.cli.wrapping import Wrapper
from inferd.client import Done, MessageDone
from inferd.controls import harmless
from inferd.errors import InferdError, Unavailable
from inferd.wire.bounds import MAX_TOKENS


class Answer:
    """Streams text to stdout and flushes it.

    On a terminal, control characters are replaced and words are wrapped, and if a ``with`` block ends with an
    error of inferd, the message has its own line. A pipe gets the text unchanged.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._terminal = stream.isatty()
        self._wrapper = Wrapper()
        self._last = ""

    def __enter__(self) -> Answer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._terminal and isinstance(error, InferdError):
            self.end()

    def write(self, text: str) -> None:
        if self._terminal:
            self._stream.write(self._wrapper.feed(harmless(text), terminal_width()))
        else:
            self._stream.write(text)
        self._stream.flush()
        self._last = text[-1:] or self._last

    def end(self) -> None:
        """Ends the answer. Further output starts on a new line."""
        if self._last not in ("", "\n"):
            self._stream.write("\n")
        self._stream.flush()


def check_done(done: Done | MessageDone, choices: Mapping[str, Any]) -> None:
    """Reports an incomplete answer on stderr. Raises Unavailable if the daemon ended the answer early.
    ``choices`` are the options of the request."""
    if done.stop_reason in ("length", "max_tokens"):
        tokens = done.completion_tokens if isinstance(done, Done) else done.output_tokens
        say(f"(cut after {tokens} tokens{_limit(tokens, done.backend, choices)})", err=True)
    elif done.stop_reason == "cancelled" and choices.get("deadline_ms") is not None:
        raise Unavailable("the answer was cut off: the time of --deadline is over, or the daemon stops")
    elif done.stop_reason in ("cancelled", "error"):
        raise Unavailable(f"the daemon ended the answer early ({done.stop_reason}); ask again")
    if isinstance(done, MessageDone) and done.tool_choice_unsatisfied:
        say("(no tool was called, although a call was required)", err=True)


def _limit(tokens: int, backend: str, choices: Mapping[str, Any]) -> str:
    """Returns a phrase with the limit that ended the answer."""
    asked = choices.get("max_tokens")
    if tokens >= (MAX_TOKENS if asked is None else asked):
        return "; --max-tokens sets another limit" if asked is None else ", by --max-tokens"
    return ", by the model's context" if backend == "llamacpp" else ", by the limit of the server"


def summary(done: Done | MessageDone) -> str:
    """Returns one line with the tokens and times of an answer."""
    if isinstance(done, Done):
        read, written = done.prompt_tokens, done.completion_tokens
    else:
        read, written = done.input_tokens, done.output_tokens
    times = [
        f"{name.removesuffix('_ms')} {duration(number / 1e3)}"
        for name, number in done.timings.items()
        if name.endswith("_ms")
    ]
    speed = done.timings.get("tokens_per_second")
    parts = [
        f"{read} tokens read, {written} written",
        f"{rate(speed)} tokens/s",
        ", ".join(times),
        f"{done.model} on {done.backend}",
        done.stop_reason,
    ]
    return "; ".join(part for part in parts if part)
