"""Replays the transcripts. Each conversation is sent as a whole, byte by byte, cut at every point, and with
another request after it.

A transcript is NDJSON. The first line has its subject, whether the connection is ``open`` or ``closed`` at
its end, and the surface if it is not v1. The others have the bytes sent (``in``; ``in_hex`` if they are not
text) and the lines received (``out``). ``out_start`` is the start of a message that quotes the JSON parser.
"""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cases import cases
from tests.daemon_process import DaemonProcess, Wire

AT_ONCE = 32  # connections that are cut at the same time
TRANSCRIPTS = Path(__file__).parents[1] / "transcripts"
# A request of each surface, and its answer.
TAILS = {
    "v1": (
        b'{"id":"tail","messages":[{"role":"user","content":"hi"}],"stream":false}\n',
        b'{"type":"done","id":"tail","content":"mock-response","usage":{"prompt_tokens":0,'
        b'"completion_tokens":1},"stop_reason":"end","backend":"mock","model":"mock"}\n',
    ),
    "v2": (
        b'{"id":"tail","messages":[{"role":"user","content":[{"type":"text","text":"hi"}]}],"max_tokens":0}\n',
        b'{"type":"done","id":"tail","usage":{"input_tokens":0,"output_tokens":0},"stop_reason":"max_tokens",'
        b'"backend":"mock","model":"mock"}\n',
    ),
    "embed": (
        b'{"id":"tail","input":["x"],"dimensions":1}\n',
        b'{"type":"embeddings","id":"tail","embeddings":[[0.5]],"dimensions":1,"model":"mock",'
        b'"usage":{"input_tokens":1},"backend":"mock"}\n',
    ),
    "rerank": (
        b'{"id":"tail","query":"q","documents":["x"]}\n',
        b'{"type":"rerank","id":"tail","results":[{"index":0,"score":0.5}],"model":"mock",'
        b'"usage":{"input_tokens":2},"backend":"mock"}\n',
    ),
}

Connect = Callable[[str], Wire]


@dataclass(frozen=True)
class Transcript:
    surface: str
    sent: bytes
    answer: re.Pattern[bytes]
    stays_open: bool

    @classmethod
    def read(cls, name: str) -> Transcript:
        lines = (TRANSCRIPTS / f"{name}.ndjson").read_text(encoding="utf-8").splitlines()
        head, *rows = map(json.loads, lines)
        sent, answer = b"", b""
        for row in rows:
            ((kind, text),) = row.items()
            if kind in ("in", "in_hex"):
                sent += text.encode() if kind == "in" else bytes.fromhex(text)
            else:
                answer += re.escape(text.encode()) + {"out": b"", "out_start": rb"[^\n]*"}[kind] + rb"\n"
        return cls(head.get("surface", "v1"), sent, re.compile(answer), head["end"] == "open")

    def is_answered_by(self, received: bytes, more: bytes = b"") -> bool:
        return received.endswith(more) and self.answer.fullmatch(received.removesuffix(more)) is not None


NAMES = sorted(path.stem for path in TRANSCRIPTS.glob("*.ndjson"))


@pytest.fixture(scope="module")
def connect() -> Iterator[Connect]:
    with tempfile.TemporaryDirectory(prefix="i", dir="/tmp") as directory:
        options = {"log": "error", "embed": 1, "rerank": 1, "queue_depth": 2 * AT_ONCE}
        process = DaemonProcess(Path(directory) / "0", options, {}).wait_ready()
        yield process.connect
        assert process.end() == []


def play(wire: Wire, transcript: Transcript, pieces: list[bytes]) -> None:
    """Sends the pieces, each read before the next is sent, and checks everything that comes back."""
    with wire:
        for piece in pieces:
            wire.send(piece)
            wire.wait_until_read()
        wire.finish_sending()
        received = wire.rest()
        assert transcript.is_answered_by(received), received


def test_transcripts_cover_both_ends_and_every_surface() -> None:
    assert {Transcript.read(name).stays_open for name in NAMES} == {True, False}
    assert {Transcript.read(name).surface for name in NAMES} == set(TAILS)


@cases("name", NAMES)
def test_whole_and_byte_by_byte(connect: Connect, name: str) -> None:
    transcript = Transcript.read(name)
    play(connect(transcript.surface), transcript, [transcript.sent])
    play(connect(transcript.surface), transcript, [bytes([byte]) for byte in transcript.sent])


@pytest.mark.parametrize("name", NAMES)
def test_cut_at_every_point(connect: Connect, name: str) -> None:
    transcript = Transcript.read(name)
    cuts = range(1, len(transcript.sent))
    for some in (cuts[start : start + AT_ONCE] for start in range(0, len(cuts), AT_ONCE)):
        with contextlib.ExitStack() as wires:
            opened = [(wires.enter_context(connect(transcript.surface)), cut) for cut in some]
            for wire, cut in opened:
                wire.send(transcript.sent[:cut])
            for wire, _ in opened:
                wire.wait_until_read()
            for wire, cut in opened:
                wire.send(transcript.sent[cut:])
                wire.finish_sending()
            for wire, cut in opened:
                received = wire.rest()
                assert transcript.is_answered_by(received), (cut, received)


@cases("name", NAMES)
def test_without_its_last_newline(connect: Connect, name: str) -> None:
    transcript = Transcript.read(name)
    play(connect(transcript.surface), transcript, [transcript.sent.removesuffix(b"\n")])


@cases("name", NAMES)
def test_with_a_tail(connect: Connect, name: str) -> None:
    """Further bytes are served on an open connection and dropped on a closing one."""
    transcript = Transcript.read(name)
    tail, tail_answer = TAILS[transcript.surface]
    more = tail_answer if transcript.stays_open else b""
    for pieces in ([transcript.sent + tail], [transcript.sent, tail], [transcript.sent + tail[:7], tail[7:]]):
        with connect(transcript.surface) as wire:
            for piece in pieces:
                wire.send(piece)
            wire.finish_sending()
            received = wire.rest()
            assert transcript.is_answered_by(received, more), received
