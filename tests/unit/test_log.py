"""The activity log on real files: its records, its redaction, and its recovery from faults."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from inferd import log
from inferd.errors import ConfigError
from inferd.log import text
from tests.daemon_process import until

Setup = Callable[..., log.ActivityLog]


@pytest.fixture
def setup() -> Iterator[Setup]:
    started: list[log.ActivityLog] = []

    def start(level: str, directory: Path | None, stderr: bool = False) -> log.ActivityLog:
        started.append(log.setup(level, directory, stderr))
        return started[-1]

    yield start
    for activity in started:
        activity.close()


def entries(directory: Path, name: str = log.FILE_NAME) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in (directory / name).read_bytes().splitlines()]


def events(directory: Path, msg: str) -> list[dict[str, Any]]:
    """The whole lines of one event."""
    path = directory / log.FILE_NAME
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [entry for entry in map(orjson.loads, lines) if entry["msg"] == msg]


class TestEvents:
    def test_a_line_is_one_object_with_the_head_first(self, setup: Setup, tmp_path: Path) -> None:
        activity = setup("info", tmp_path)
        log.get("session").info("request_done", req_id="q7", conn=3, total_ms=1.5, backend=None, ok=True)
        activity.close()
        (entry,) = entries(tmp_path)
        assert list(entry) == [
            "t",
            "level",
            "component",
            "msg",
            "req_id",
            "conn",
            "total_ms",
            "backend",
            "ok",
        ]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", entry.pop("t"))
        assert entry == {
            "level": "info",
            "component": "session",
            "msg": "request_done",
            "req_id": "q7",
            "conn": 3,
            "total_ms": 1.5,
            "backend": None,
            "ok": True,
        }

    @pytest.mark.parametrize(
        ("level", "written"),
        [
            ("off", []),
            ("0", []),
            ("error", ["error"]),
            ("warn", ["error", "warn"]),
            ("INFO", ["error", "warn", "info"]),
            ("debug", ["error", "warn", "info", "debug"]),
            ("trace", ["error", "warn", "info", "debug"]),
        ],
    )
    def test_levels(self, setup: Setup, tmp_path: Path, level: str, written: list[str]) -> None:
        activity = setup(level, tmp_path)
        component = log.get("x")
        for name in ("error", "warn", "info", "debug"):
            getattr(component, name)("event")
        activity.close()
        found = [entry["level"] for entry in entries(tmp_path)] if written else []
        assert found == written
        assert (tmp_path / log.FILE_NAME).exists() == bool(written)

    def test_an_unknown_level_names_the_known_ones(self) -> None:
        with pytest.raises(ConfigError, match="log level 'loud' is unknown; use one of off, error, warn"):
            log.parse_level("loud")

    def test_it_is_silent_before_setup_and_after_close(self, setup: Setup, tmp_path: Path) -> None:
        component = log.get("early")
        component.error("before")
        setup("trace", tmp_path).close()
        component.error("after")
        assert list(tmp_path.iterdir()) == []

    def test_close_ends_the_thread_and_may_be_repeated(self, setup: Setup, tmp_path: Path) -> None:
        before = threading.active_count()
        activity = setup("info", tmp_path)
        assert threading.active_count() == before + 2
        activity.close()
        activity.close()
        assert threading.active_count() == before

    def test_a_component_with_a_dot_keeps_its_name(self, setup: Setup, tmp_path: Path) -> None:
        activity = setup("info", tmp_path)
        log.get("llama.cpp").info("load: done")
        activity.close()
        assert entries(tmp_path)[0]["component"] == "llama.cpp"

    def test_a_field_cannot_replace_the_head(self, setup: Setup, tmp_path: Path) -> None:
        activity = setup("info", tmp_path)
        log.get("x").info("event", level="fake", t=0)
        activity.close()
        (entry,) = entries(tmp_path)
        assert entry["level"] == "info"
        assert entry["t"] != 0

    def test_any_value_becomes_json(self, setup: Setup, tmp_path: Path) -> None:
        activity = setup("info", tmp_path)
        log.get("x").info(
            "event",
            path=Path("/a b"),
            error=ValueError("boom"),
            huge=2**70,
            surrogate="\udc80",
            nested={"list": [1, ("a", None)], 5: b"x"},
            long="y" * (log.MAX_VALUE_CHARS + 1),
        )
        activity.close()
        (entry,) = entries(tmp_path)
        assert entry["path"] == "/a b"
        assert entry["error"] == "ValueError: boom"
        assert entry["huge"] == str(2**70)
        assert entry["surrogate"] == "\\udc80"
        assert entry["nested"] == {"list": [1, ["a", None]], "5": "b'x'"}
        assert entry["long"].endswith(f"y… ({log.MAX_VALUE_CHARS + 1} characters)")

    def test_a_value_that_cannot_be_rendered_does_not_end_the_log(self, setup: Setup, tmp_path: Path) -> None:
        class Broken:
            def __str__(self) -> str:
                raise RuntimeError("no text")

        activity = setup("info", tmp_path)
        log.get("x").info("first", value=Broken())
        log.get("x").info("second")
        activity.close()
        first, second = entries(tmp_path)
        assert (first["msg"], first["event"], first["reason"]) == (
            "record_unwritable",
            "first",
            "RuntimeError",
        )
        assert second["msg"] == "second"

    def test_a_stalled_sink_drops_records_and_uses_no_memory(
        self, setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(log, "MAX_QUEUED", 10)
        stalled, go_on = threading.Event(), threading.Event()

        class Stuck:
            def __str__(self) -> str:
                stalled.set()
                go_on.wait()
                return "stuck"

        activity = setup("info", tmp_path)
        log.get("x").info("stall", value=Stuck())
        assert stalled.wait(100)
        for number in range(25):
            log.get("x").info("event", number=number)
        go_on.set()
        activity.close()
        written = entries(tmp_path)
        dropped = [entry["count"] for entry in written if entry["msg"] == "records_dropped"]
        assert [entry["number"] for entry in written if entry["msg"] == "event"] == list(range(10))
        assert dropped == [15]


class TestText:
    def lines(self, monkeypatch: pytest.MonkeyPatch, terminal: bool, **fields: object) -> str:
        class Stream(io.StringIO):
            def isatty(self) -> bool:
                return terminal

        stream = Stream()
        monkeypatch.setattr(sys, "stderr", stream)
        activity = log.setup("info", None)
        log.get("daemon").warn("something", **fields)
        activity.close()
        return stream.getvalue()

    def test_short_text(self, monkeypatch: pytest.MonkeyPatch) -> None:
        text = self.lines(monkeypatch, False, a="plain", b="two words", c=3, d=None, e="")
        assert re.fullmatch(r"\S+Z WARN  daemon: something a=plain b='two words' c=3 e=''\n", text)

    def test_colour_only_on_a_terminal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("NO_COLOR", raising=False)
        assert "\x1b[33mWARN \x1b[0m" in self.lines(monkeypatch, True)
        monkeypatch.setenv("NO_COLOR", "1")
        assert "\x1b" not in self.lines(monkeypatch, True)

    def test_a_value_cannot_control_the_terminal_or_forge_a_line(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        text = self.lines(monkeypatch, False, a="\x1b[2J\nERROR forged", b="\x9b2J", c="\u202eabc")
        assert text.count("\n") == 1
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)

    def test_it_is_redacted_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert "hunter2" not in self.lines(monkeypatch, False, a="password=hunter2")

    def test_a_closed_stderr_does_no_harm(
        self, setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stream = io.StringIO()
        monkeypatch.setattr(sys, "stderr", stream)
        activity = setup("info", tmp_path, stderr=True)
        stream.close()
        log.get("x").info("event")
        activity.close()
        assert len(entries(tmp_path)) == 1


class TestStalledStderr:
    """The reader of stderr does not read: a pipe holds some hundred lines."""

    EVENTS = 12_000  # fewer than the log queues, and more than the pipe and the text sink keep

    def test_the_file_has_every_event_and_stderr_counts_dropped_ones(
        self, setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reading, writing = os.pipe()
        with os.fdopen(writing, "w") as stream:
            monkeypatch.setattr(sys, "stderr", stream)
            activity = setup("info", tmp_path, stderr=True)
            for number in range(self.EVENTS):
                log.get("x").info("event", number=number)
            until(lambda: len(events(tmp_path, "event")) == self.EVENTS)
            assert [entry["number"] for entry in events(tmp_path, "event")] == list(range(self.EVENTS))
            received: list[bytes] = []
            thread = threading.Thread(
                target=lambda: received.extend(iter(lambda: os.read(reading, 65536), b""))
            )
            thread.start()
            until(lambda: b"".join(received).count(b"\n") >= text.MAX_KEPT)
            log.get("x").info("event", number=self.EVENTS)
            activity.close()
        thread.join()
        os.close(reading)
        lines = b"".join(received).decode().splitlines()
        missing = [int(line[1:].split()[0]) for line in lines if line.endswith("stderr was not read)")]
        shown = [line for line in lines if "x: event" in line]
        assert missing
        assert len(shown) + sum(missing) == self.EVENTS + 1
        assert sum(entry["count"] for entry in events(tmp_path, "records_not_shown")) == sum(missing)

    def test_exit_does_not_wait_for_the_reader(self, tmp_path: Path) -> None:
        code = (
            "import sys; from pathlib import Path; from inferd import log; from inferd.log import text;"
            "text.CLOSE_SECS = 0.1; activity = log.setup('info', Path(sys.argv[1]));"
            "[log.get('x').info('event', number=n) for n in range(9000)]; activity.close()"
        )
        reading, writing = os.pipe()
        child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stderr=writing)
        os.close(writing)
        assert child.wait(100) == 0
        os.close(reading)
        assert len(events(tmp_path, "event")) == 9000
