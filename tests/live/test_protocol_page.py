"""docs/protocol.md: every example is sent to a daemon, and every table is compared with the code."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from inferd import sampling
from inferd.engine.local import suggested
from inferd.wire import admin, attachments, embed, rerank, v1, v2
from tests.daemon_process import DaemonProcess, Wire

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
BLOCKS = [(kind, text) for kind, text in re.findall(r"^```(\w[\w ]*)\n(.*?)^```$", PAGE, re.M | re.S)]


@dataclass(frozen=True)
class Example:
    sent: str
    answer: str
    how: frozenset[str]

    @property
    def surface(self) -> str:
        return next(iter(self.how - {"auth", "calls"}), "v1")


def examples() -> Iterator[Example]:
    for (kind, text), (next_kind, answer) in itertools.pairwise(BLOCKS):
        if kind.startswith("json in"):
            assert next_kind == "json out"
            yield Example(text.removesuffix("\n") + "\n", answer, frozenset(kind.split()[2:]))


EXAMPLES = list(examples())
# Only for the daemon's own HTTP bridge: it needs a token that no client has.
BRIDGE_FIELDS = {"on_behalf_of"}
CALLING = [
    {"thinking": "I have to look."},
    "Let me see.",
    {"id": "tc-1", "name": "weather", "arguments": '{"city":"Oslo"}'},
]


@pytest.fixture
def hello(daemon: Callable[..., DaemonProcess]) -> Callable[..., DaemonProcess]:
    def start(tape: list[Any] | None = None, **options: object) -> DaemonProcess:
        return daemon(mock={"tape": tape or ["Hel", "lo"]}, **options).wait_ready()

    return start


def same(shown: dict[str, Any], received: dict[str, Any]) -> bool:
    """The frames are equal, including the order of keys, except for values that depend on the backend."""
    for frame in (shown, received):
        for key in ("backend", "model", "usage"):
            if key in frame:
                frame[key] = sorted(frame[key]) if isinstance(frame[key], dict) else type(frame[key])
        frame.pop("timings", None)
    return list(shown.items()) == list(received.items())


def name(example: Example) -> str:
    return str(json.loads(example.answer.splitlines()[-1])["id"])


@pytest.mark.parametrize("example", EXAMPLES, ids=name)
def test_the_examples_match_the_daemon(hello: Callable[..., DaemonProcess], example: Example) -> None:
    if "auth" in example.how:
        process = hello(tcp="127.0.0.1:0", api_key="the-key")
        port = int(process.wait_event("ready")[0]["address"].rpartition(":")[2])
        wire = Wire(("127.0.0.1", port))
    else:
        tape = CALLING if "calls" in example.how else None
        wire = hello(tape, embed=1, rerank=1).connect(example.surface)
    with wire:
        wire.send(example.sent.encode())
        for line in example.answer.splitlines():
            received = wire.frame()
            assert same(json.loads(line), received), received


def test_the_python_example_prints_the_answer(hello: Callable[..., DaemonProcess]) -> None:
    (program,) = [text for kind, text in BLOCKS if kind == "python"]
    process = hello()
    ran = subprocess.run(
        [sys.executable, "-c", program],
        env={"PATH": os.environ["PATH"], "XDG_RUNTIME_DIR": str(process.dir)},
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert ran.stdout == "Hello"


def test_the_python_example_of_frames_prints_the_answer(hello: Callable[..., DaemonProcess]) -> None:
    (program,) = [text for kind, text in BLOCKS if kind == "python frames"]
    process = hello()
    ran = subprocess.run(
        [sys.executable, "-c", program],
        env={"PATH": os.environ["PATH"], "XDG_RUNTIME_DIR": str(process.dir)},
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert ran.stdout == "Hello"


@pytest.mark.skipif(shutil.which("socat") is None, reason="socat is not installed")
def test_the_shell_example_prints_the_answer(hello: Callable[..., DaemonProcess]) -> None:
    (script,) = [text for kind, text in BLOCKS if kind == "sh"]
    process = hello()
    ran = subprocess.run(
        ["sh", "-c", script],
        env={"PATH": os.environ["PATH"], "XDG_RUNTIME_DIR": str(process.dir)},
        capture_output=True,
        timeout=100,
        check=True,
    )
    frames = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [frame["content"] for frame in frames] == ["Hel", "lo", "Hello"]


def test_status_frames_are_shown_as_they_are_sent(hello: Callable[..., DaemonProcess]) -> None:
    (text,) = [text for kind, text in BLOCKS if kind == "json admin"]
    shown = {}
    for line in text.splitlines():
        frame = admin.parse(line.encode())
        details = {key: value for key, value in frame.items() if key not in ("id", "type", "status")}
        assert admin.encode_status(frame["status"], details) == line.encode() + b"\n"
        shown[frame["status"]] = frame
    frames = hello().wait_for("ready")
    for frame in frames:
        if frame["status"] == "capabilities":
            assert list(frame) == list(shown["capabilities"])
        else:
            assert frame == shown[frame["status"]]


def shape(value: Any, key: str = "") -> Any:
    """The form of a JSON value: names and types; the first item represents a list."""
    if isinstance(value, dict):
        inner = {name: shape(item, name) for name, item in value.items()}
        named = key in ("errors", "cancels", "cache_misses", "breaker", "routed", "surfaces", "backends")
        return next(iter(inner.values()), {}) if named else inner
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value)


def test_a_snapshot_has_the_form_that_is_shown(daemon: Callable[..., DaemonProcess]) -> None:
    (text,) = [text for kind, text in BLOCKS if kind == "json snapshot"]
    shown = json.loads(text)
    served = daemon(mock={"tape": ["a", "b"], "gate": True}, active_permits=1).wait_ready()
    with served.connect() as one, served.connect() as two, served.subscribe() as asking:
        one.send({"messages": [{"role": "user", "content": "hi"}]})
        served.release(2)
        assert one.frame()["type"] == one.frame()["type"] == "token"
        two.send({"messages": [{"role": "user", "content": "hi"}]})
        received: dict[str, Any] = {"waiting": []}
        while not received["waiting"]:
            asking.send({"type": "snapshot"})
            while (received := asking.frame())["status"] != "snapshot":
                pass
        served.release(4)
        assert [*one.frames(), *two.frames()]
    # The mock measures nothing, and no error occurred.
    shown["running"][0]["prompt_read"] = None
    for metrics in (shown["metrics"], received["metrics"]):
        for owners in metrics.values():
            for numbers in owners.values():
                for name, value in numbers.items():
                    if name in ("errors", "cancels", "cache_misses", "breaker", "routed"):
                        numbers[name] = {}
                    elif name.endswith("_per_second"):
                        value.update(dict.fromkeys(("p50", "p90", "p99")))
    received["settings"] = {name: received["settings"][name] for name in shown["settings"]}  # of many
    assert shape(received) == shape(shown)


def rows(heading: str) -> set[str]:
    """The names in the first column of the table under ``heading``."""
    (table,) = re.findall(rf"^\| {heading} \|.*\n\|[-|]+\n((?:\|.*\n)+)", PAGE, re.M)
    return {name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])}


def test_every_field_of_a_request_is_described() -> None:
    fields = rows("field") | BRIDGE_FIELDS
    assert fields == set(v1.Request.__struct_fields__)
    assert rows("v2 field") | (fields - {"image_token_budget"}) == set(v2.Request.__struct_fields__)
    assert rows("embed field") | BRIDGE_FIELDS == set(embed.Request.__struct_fields__)
    assert rows("rerank field") | BRIDGE_FIELDS == set(rerank.Request.__struct_fields__)


def test_every_kind_of_block_and_attachment_is_described() -> None:
    assert rows("block") == v2._BLOCK_TYPES - {"video"}
    assert rows("kind") == attachments.KINDS - {"video"}
    for mime in (*attachments.IMAGE_TYPES, *attachments.AUDIO_TYPES, *embed.TASKS):
        assert f"`{mime}`" in PAGE


def test_every_surface_is_shown() -> None:
    assert {example.surface for example in EXAMPLES} == {"v1", "v2", "embed", "rerank"}


def test_the_defaults_are_those_of_the_code() -> None:
    shown = dict(re.findall(r"^\| `(\w+)` \| \w+ \| ([\d.]+) \|", PAGE, re.M))
    assert float(shown["temperature"]) == suggested.DEFAULTS.temperature
    assert float(shown["top_p"]) == suggested.DEFAULTS.top_p
    assert int(shown["top_k"]) == suggested.DEFAULTS.top_k
    assert int(shown["max_tokens"]) == sampling.MAX_TOKENS
