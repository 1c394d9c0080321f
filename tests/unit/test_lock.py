"""Locks between real processes and threads, and paths that another user occupied first (F-2)."""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from inferd.errors import BootCancelled, LockHeld, StoreError
from inferd.store import runtime
from inferd.store.runtime import Lock, ensure_private_dir, holder, is_held, make_private_dir

HOLD = """
import sys
from pathlib import Path
from inferd.store.runtime import Lock
lock = Lock.acquire(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "inferd.lock"


class TestLock:
    def test_a_second_lock_is_refused_until_the_first_is_released(self, path: Path) -> None:
        first = Lock.acquire(path)
        with pytest.raises(LockHeld) as caught:
            Lock.acquire(path)
        assert str(caught.value) == f"another inferd-daemon already holds the lock at {path}"
        first.release()
        first.release()
        Lock.acquire(path).release()

    def test_its_directory_and_file_are_private(self, path: Path) -> None:
        old = os.umask(0)
        try:
            with Lock.acquire(path):
                assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
                assert stat.S_IMODE(path.stat().st_mode) == 0o600
        finally:
            os.umask(old)

    def test_a_held_lock_contains_the_pid(self, path: Path) -> None:
        with Lock.acquire(path):
            assert path.read_text() == f"{os.getpid()}\n"
            assert holder(path) == os.getpid()
        assert path.read_bytes() == b""
        assert holder(path) is None
        assert holder(path.with_name("none")) is None

    def test_it_ends_with_its_process(self, path: Path) -> None:
        with subprocess.Popen(
            [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"held\n"
            with pytest.raises(LockHeld):
                Lock.acquire(path)
            assert holder(path) == process.pid
            process.kill()
        with Lock.acquire(path):
            assert holder(path) == os.getpid()

    def test_a_child_does_not_inherit_it(self, path: Path) -> None:
        lock = Lock.acquire(path)
        with subprocess.Popen(
            [sys.executable, "-c", "input('running')"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            close_fds=False,
        ) as process:
            assert process.stdout is not None
            process.stdout.read(1)  # only now it surely is the new program, with nothing of ours open
            lock.release()
            Lock.acquire(path).release()
            process.communicate(b"\n")

    def test_a_file_deleted_under_the_holder_is_not_the_lock_of_the_next(self, path: Path) -> None:
        with Lock.acquire(path):
            path.unlink()
            with Lock.acquire(path), pytest.raises(LockHeld):
                Lock.acquire(path)

    def test_a_file_deleted_between_open_and_lock_is_opened_again(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = runtime._open

        def open_and_lose(place: Path) -> int:
            fd = real(place)
            monkeypatch.setattr(runtime, "_open", real)
            place.unlink()
            return fd

        monkeypatch.setattr(runtime, "_open", open_and_lose)
        with Lock.acquire(path), pytest.raises(LockHeld):
            Lock.acquire(path)


class TestWait:
    def test_wait_reports_each_poll_and_takes_a_free_lock(self, path: Path) -> None:
        first = Lock.acquire(path)
        looks: list[int | None] = []

        def held() -> None:
            looks.append(holder(path))
            if len(looks) == 2:
                first.release()

        Lock.wait(path, threading.Event(), held).release()
        assert looks == [os.getpid()] * 2

    def test_a_cancelled_wait_ends(self, path: Path) -> None:
        cancelled = threading.Event()
        with Lock.acquire(path), pytest.raises(BootCancelled):
            Lock.wait(path, cancelled, cancelled.set)


class TestPlaces:
    """F-2: the lock is a plain file of its own, or it is refused and nothing is touched."""

    def test_a_symlink_is_refused_and_its_target_untouched(self, path: Path) -> None:
        victim = path.parent.parent / "victim"
        victim.touch()
        path.parent.mkdir()
        path.symlink_to(victim)
        with pytest.raises(StoreError, match=f"the lock {path} is a symbolic link; remove it"):
            Lock.acquire(path)
        assert victim.read_bytes() == b""

    def test_a_dangling_symlink_does_not_make_its_target(self, path: Path) -> None:
        path.parent.mkdir()
        path.symlink_to(path.parent / "target")
        with pytest.raises(StoreError, match="symbolic link"):
            Lock.acquire(path)
        assert not (path.parent / "target").exists()

    @pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir])
    def test_a_path_that_is_not_a_file_is_refused(self, path: Path, make: object) -> None:
        path.parent.mkdir()
        assert callable(make)
        make(path)
        with pytest.raises(StoreError, match=str(path)):
            Lock.acquire(path)

    def test_a_second_name_of_another_file_is_refused(self, path: Path) -> None:
        victim = path.parent.parent / "victim"
        victim.touch()
        path.parent.mkdir()
        path.hardlink_to(victim)
        with pytest.raises(StoreError, match="not a plain file, or has a hard link"):
            Lock.acquire(path)
        assert victim.read_bytes() == b""

    def test_a_document_given_by_mistake_keeps_its_content(self, path: Path) -> None:
        path.parent.mkdir()
        path.write_text("dear diary\n")
        with Lock.acquire(path):
            assert holder(path) is None
        assert path.read_text() == "dear diary\n"

    def test_a_directory_that_cannot_be_made_is_explained(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(StoreError, match=f"cannot make the directory {tmp_path}/file/run: "):
            Lock.acquire(tmp_path / "file" / "run" / "inferd.lock")


class TestDirectories:
    def test_missing_parents_are_private_and_existing_ones_unchanged(self, tmp_path: Path) -> None:
        (tmp_path / "old").mkdir()
        (tmp_path / "old").chmod(0o755)
        old = os.umask(0)
        try:
            make_private_dir(tmp_path / "old" / "a" / "b")
        finally:
            os.umask(old)
        modes = [stat.S_IMODE((tmp_path / place).stat().st_mode) for place in ("old", "old/a", "old/a/b")]
        assert modes == [0o755, 0o700, 0o700]

    def test_a_file_in_its_place_is_explained(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(StoreError, match="exists and is not a directory"):
            ensure_private_dir(tmp_path / "file")

    @pytest.mark.parametrize("through_a_link", [False, True])
    def test_a_directory_of_another_user_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, through_a_link: bool
    ) -> None:
        place = tmp_path / "place"
        if through_a_link:
            place.symlink_to(tmp_path)
        else:
            place.mkdir()
        ensure_private_dir(place)
        if os.getuid() == 0:
            os.lchown(place, 12345, 12345)
        else:
            monkeypatch.setattr(os, "getuid", lambda: place.lstat().st_uid + 1)
        with pytest.raises(StoreError, match="belongs to another user; remove it or choose another one"):
            ensure_private_dir(place)


class TestLook:
    def test_is_held_creates_nothing(self, path: Path) -> None:
        assert not is_held(path)
        assert not path.parent.exists()
        with Lock.acquire(path):
            assert is_held(path)
        assert not is_held(path)

    @pytest.mark.parametrize("left", ["", "4194305\n", "{pid}\n"])
    def test_is_held_does_not_block_a_start(
        self, left: str, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """``left`` is what the daemon before left behind: it stopped, or was killed. In a container it had
        the pid that this one has. No process has a pid above 4194304."""
        Lock.acquire(path).release()
        path.write_text(left.format(pid=os.getpid()))
        with path.open() as looker:
            fcntl.flock(looker, fcntl.LOCK_SH)  # as is_held does
            monkeypatch.setattr(runtime.time, "sleep", lambda _: fcntl.flock(looker, fcntl.LOCK_UN))
            Lock.acquire(path).release()
