"""The activity log on real files: its records, its redaction, and its recovery from faults."""

from __future__ import annotations

import io
import os
import re
import stat
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
from inferd.log import file, text
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


class TestFile:
    """Guards of the file: F-4, its mode, and links."""

    def write(self, directory: Path, *messages: str) -> None:
        activity = log.setup("info", directory, stderr=False)
        for message in messages:
            log.get("x").info(message)
        activity.close()

    def test_it_is_private(self, tmp_path: Path) -> None:
        old = os.umask(0)
        try:
            self.write(tmp_path / "logs", "event")
        finally:
            os.umask(old)
        assert stat.S_IMODE((tmp_path / "logs").stat().st_mode) == 0o700
        assert stat.S_IMODE((tmp_path / "logs" / log.FILE_NAME).stat().st_mode) == 0o600

    def test_a_file_that_others_could_read_is_made_private(self, tmp_path: Path) -> None:
        (tmp_path / log.FILE_NAME).touch(0o644)
        self.write(tmp_path, "event")
        assert stat.S_IMODE((tmp_path / log.FILE_NAME).stat().st_mode) == 0o600

    def test_a_symlink_is_not_followed(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        victim = tmp_path / "victim"
        victim.write_text("precious\n")
        logs = tmp_path / "logs"
        logs.mkdir()
        (logs / log.FILE_NAME).symlink_to(victim)
        self.write(logs, "event")
        assert victim.read_text() == "precious\n"
        assert "it is a symbolic link" in capsys.readouterr().err

    def test_a_fifo_is_refused(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        os.mkfifo(tmp_path / log.FILE_NAME)
        self.write(tmp_path, "event")
        assert "it is not a regular file" in capsys.readouterr().err

    def test_an_unwritable_directory_is_one_warning(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "file").touch()
        activity = log.setup("info", tmp_path / "file" / "logs", stderr=True)
        for _ in range(3):
            log.get("x").info("event")
        activity.close()
        text = capsys.readouterr().err
        assert text.count("the activity log cannot be written, events go to stderr only") == 1
        assert text.count("x: event") == 3

    def test_rotation_happens_before_the_write_that_would_pass_the_limit(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.write(tmp_path, "e" * 10)
        line = (tmp_path / log.FILE_NAME).stat().st_size
        monkeypatch.setattr(file, "MAX_FILE_BYTES", 2 * line)
        self.write(tmp_path, "e" * 10)
        assert (tmp_path / log.FILE_NAME).stat().st_size == 2 * line
        assert not (tmp_path / f"{log.FILE_NAME}.1").exists()
        self.write(tmp_path, "e" * 10)
        assert (tmp_path / log.FILE_NAME).stat().st_size == line
        assert (tmp_path / f"{log.FILE_NAME}.1").stat().st_size == 2 * line

    def test_three_old_files_are_kept(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(file, "MAX_FILE_BYTES", 1)
        self.write(tmp_path, *(f"event-{number}" for number in range(6)))
        names = [log.FILE_NAME, *(f"{log.FILE_NAME}.{number}" for number in (1, 2, 3))]
        assert sorted(path.name for path in tmp_path.iterdir()) == names
        assert [entries(tmp_path, name)[0]["msg"] for name in names] == [
            "event-5",
            "event-4",
            "event-3",
            "event-2",
        ]

    def test_the_limit_is_sixteen_mebibytes(self) -> None:
        assert file.MAX_FILE_BYTES == 16 * 1024 * 1024
        assert file.KEPT_FILES == 3

    @pytest.mark.parametrize("renames_before_the_crash", [0, 1, 2])
    def test_rotation_survives_a_crash_in_the_middle(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames_before_the_crash: int
    ) -> None:
        real, done = Path.replace, []

        def crash(self: Path, target: Path) -> Path:
            if len(done) == renames_before_the_crash:
                raise OSError(5, "the machine stopped here")
            done.append(target)
            return real(self, target)

        monkeypatch.setattr(file, "MAX_FILE_BYTES", 1)
        self.write(tmp_path, "a", "b", "c")
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", crash)
            self.write(tmp_path, "lost with the machine")
        assert self.messages(tmp_path) == ["c", "b", "a"]
        self.write(tmp_path, "d")
        assert self.messages(tmp_path) == ["d", "c", "b", "a"]

    def messages(self, directory: Path) -> list[str]:
        files = sorted(directory.iterdir(), key=lambda path: path.name)
        return [entry["msg"] for path in files for entry in entries(directory, path.name)]

    def test_a_line_cut_by_a_crash_is_not_glued_to_the_next(self, tmp_path: Path) -> None:
        self.write(tmp_path, "whole")
        with (tmp_path / log.FILE_NAME).open("ab") as file:
            file.write(b'{"t":"2026-01-01T00:00')
        self.write(tmp_path, "next")
        lines = (tmp_path / log.FILE_NAME).read_bytes().splitlines()
        assert orjson.loads(lines[2])["msg"] == "next"

    def test_a_file_that_was_moved_away_is_made_anew(self, setup: Setup, tmp_path: Path) -> None:
        self.write(tmp_path, "old")
        activity = setup("info", tmp_path)
        (tmp_path / log.FILE_NAME).rename(tmp_path / "taken")
        log.get("x").info("new")
        activity.close()
        assert [entry["msg"] for entry in entries(tmp_path)] == ["new"]
        assert [entry["msg"] for entry in entries(tmp_path, "taken")] == ["old"]


FULL_DISK = """
import resource, signal, sys, time
from pathlib import Path
from inferd import log
activity = log.setup("info", Path(sys.argv[1]), stderr=False)
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
for number in range(100):
    log.get("x").info("event", number=number)
written = Path(sys.argv[1]) / log.FILE_NAME
while not activity._file._failed:
    time.sleep(0.001)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(written.read_text(), end="")
log.get("x").info("room again")
activity.close()
"""


def test_a_full_disk_leaves_no_part_of_a_line(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("}\n")
    numbers = [orjson.loads(line)["number"] for line in done.stdout.splitlines()]
    assert numbers == list(range(len(numbers)))
    assert 2500 < len(done.stdout) <= 3000
    assert "cannot be written" in done.stderr
    assert [entry["msg"] for entry in entries(tmp_path)] == ["event"] * len(numbers) + ["room again"]


class TestBackground:
    """stdout and stderr of a daemon without a terminal."""

    CODE = """
import os, sys, time
from pathlib import Path
from inferd import log
from inferd.log import text
text.MAX_BACKGROUND_BYTES = 20_000
activity = log.setup("info", Path(sys.argv[1]))
for number in range(int(sys.argv[2])):
    log.get("x").info("event", number=number)
    if number % 500 == 0:  # several writes
        file = Path(sys.argv[1]) / log.FILE_NAME
        while not file.exists() or b"number\\":%d}" % number not in file.read_bytes():
            time.sleep(0.001)
        while activity._text._written < number:
            time.sleep(0.001)
activity.close()
os.write(1, b"last of stdout\\n")
os.write(2, b"last of stderr\\n")
"""

    def run(self, directory: Path, output: Path, events: int) -> None:
        with output.open("ab") as stream:
            command = [sys.executable, "-c", self.CODE, str(directory), str(events)]
            subprocess.run(command, stdout=stream, stderr=stream, check=True)

    def test_it_does_not_grow_without_end(self, tmp_path: Path) -> None:
        output = tmp_path / text.BACKGROUND_NAME
        self.run(tmp_path, output, 2000)
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            text.BACKGROUND_NAME,
            f"{text.BACKGROUND_NAME}.1",
            log.FILE_NAME,
        ]
        assert output.stat().st_size < 60_000
        assert stat.S_IMODE(output.stat().st_mode) == 0o600
        *_, event, first, second = output.read_text().splitlines()
        assert event.endswith("number=1999")
        assert (first, second) == ("last of stdout", "last of stderr")

    def test_a_file_chosen_by_the_user_is_kept(self, tmp_path: Path) -> None:
        output = tmp_path / "mine.log"
        self.run(tmp_path, output, 500)
        assert output.read_text().count("x: event") == 500
        assert not (tmp_path / "mine.log.1").exists()
