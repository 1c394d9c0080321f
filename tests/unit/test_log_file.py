"""The file of the activity log: rotation, rights, and recovery from faults."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from inferd import log
from inferd.log import file, text
from tests.unit.test_log import entries


class TestFile:
    """The guards of the file: F-4, its mode, and links."""

    def write(self, directory: Path, *messages: str) -> None:
        activity = log.setup("info", directory, stderr=False)
        for message in messages:
            log.get("x").info(message)
        activity.close()

    def test_it_is_private(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            os, "fchmod", lambda fd, mode: None
        )  # it is never readable, not even for a moment
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

    def test_a_file_that_was_moved_away_is_made_anew(self, tmp_path: Path) -> None:
        self.write(tmp_path, "old")
        activity = log.setup("info", tmp_path, stderr=False)
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
