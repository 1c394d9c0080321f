"""The files of the prefix cache: written atomically, authenticated, and within the budget."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from inferd.errors import StoreError
from inferd.store import states
from inferd.store.states import Head, StateFiles

STATE = bytes(range(256)) * 64


def head(text: bytes = b"one", **more: object) -> Head:
    values = {
        "owner": "chat",
        "made_by": "m",
        "scope": b"1",
        "session": b"",
        "tokens": text,
        "size": len(STATE),
    }
    return Head(**{**values, **more})  # type: ignore[arg-type]


def save(files: StateFiles, made: Head, replaces: tuple[int, ...] = (), state: bytes = STATE) -> int:
    with tempfile.TemporaryFile() as file:
        file.write(state)
        file.flush()
        return files.save(made, file.fileno(), replaces)[0]


def read(files: StateFiles, number: int, owner: str = "chat") -> bytes | None:
    found = files.fetch(number, owner)
    if found is None:
        return None
    fd, offset, size = found
    try:
        return os.pread(fd, size, offset)
    finally:
        os.close(fd)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_a_state_comes_back_also_from_another_daemon(directory: Path) -> None:
    files = StateFiles(directory, 1 << 20)
    number = save(files, head(scope=b"7", session=b"s"))
    assert read(files, number) == STATE
    (kept,) = StateFiles(directory, 1 << 20).files()
    assert (kept.head, kept.bytes) == (head(scope=b"7", session=b"s"), kept.path.stat().st_size)


def test_only_the_owner_can_read_anything_of_it(directory: Path) -> None:
    directory.mkdir(mode=0o755)
    save(StateFiles(directory, 1 << 20), head())
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}
    assert len([*directory.iterdir()]) == 2


@pytest.mark.parametrize("at", ["magic", "head", "head code", "state", "code"])
def test_a_changed_byte_is_detected(at: str, directory: Path) -> None:
    files = StateFiles(directory, 1 << 20)
    number = save(files, head())
    (kept,) = files.files()
    data = bytearray(kept.path.read_bytes())
    owner = data.index(b"chat")  # a value of the head, which stays readable
    places = {"magic": 0, "head": owner, "head code": kept.offset - 1, "state": kept.offset + 9, "code": -1}
    data[places[at]] ^= 4
    kept.path.write_bytes(data)
    again = StateFiles(directory, 1 << 20)
    for each in again.files():
        assert read(again, each.number) is None
    assert (again.files(), again.removed, [*directory.glob("*.state")]) == ([], 1, [])
    assert read(files, number) is None


@pytest.mark.parametrize("size", [0, 5, 40, -1, "longer"])
def test_a_file_of_another_size_is_removed(size: int | str, directory: Path) -> None:
    save(StateFiles(directory, 1 << 20), head())
    (path,) = directory.glob("*.state")
    data = path.read_bytes()
    path.write_bytes(data + b"\0" if isinstance(size, str) else data[:size])
    files = StateFiles(directory, 1 << 20)
    assert (files.files(), files.removed, path.exists()) == ([], 1, False)


def test_a_file_of_another_key_is_removed(directory: Path, tmp_path: Path) -> None:
    save(StateFiles(tmp_path / "other", 1 << 20), head())
    StateFiles(directory, 1 << 20)
    (path,) = (tmp_path / "other").glob("*.state")
    (directory / path.name).write_bytes(path.read_bytes())
    files = StateFiles(directory, 1 << 20)
    assert (files.files(), files.removed) == ([], 1)


def test_a_key_that_others_could_read_is_not_used(directory: Path) -> None:
    StateFiles(directory, 1 << 20)
    before = (directory / "key").read_bytes()
    (directory / "key").chmod(0o644)
    StateFiles(directory, 1 << 20)
    assert (directory / "key").read_bytes() != before


def test_a_link_is_not_followed(directory: Path, tmp_path: Path) -> None:
    save(StateFiles(directory, 1 << 20), head())
    (path,) = directory.glob("*.state")
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert StateFiles(directory, 1 << 20).files() == []
    assert (tmp_path / "elsewhere").exists()


def test_no_directory_of_another_user_is_used(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory.mkdir()
    uid = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    if uid == 0:
        os.chown(directory, 12345, -1)
    with pytest.raises(StoreError, match="another user"):
        StateFiles(directory, 1 << 20)


def test_the_budget_evicts_the_least_recently_used(directory: Path) -> None:
    files = StateFiles(directory, 4 * (len(STATE) + 500))
    numbers = [save(files, head(b"%d" % n)) for n in range(3)]
    for number, path in zip(numbers, [kept.path for kept in files.files()], strict=True):
        os.utime(path, (number, number))
    assert read(files, numbers[0]) == STATE  # and is now the one used last
    numbers += [save(files, head(b"%d" % n)) for n in range(3, 6)]
    assert [read(files, number) is not None for number in numbers] == [True, False, False, True, True, True]
    assert sum(path.stat().st_size for path in directory.glob("*.state")) <= 4 * (len(STATE) + 500)
    small = StateFiles(directory, 2 * (len(STATE) + 500))
    assert len(small.files()) == len([*directory.glob("*.state")]) == 2


def test_a_state_that_is_larger_than_the_budget_is_not_kept(directory: Path) -> None:
    files = StateFiles(directory, len(STATE))
    assert save(files, head()) == 0
    assert [path.name for path in directory.iterdir()] == ["key"]


@pytest.mark.parametrize("room", [1, 2, 3])
def test_files_that_are_written_at_once_share_the_budget(
    room: int, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = room * (len(STATE) + 500)
    files = StateFiles(directory, budget)
    save(files, head(b"old"))
    write_all, second = states._write_all, []

    def write_and_save_another(fd: int, data: bytes | memoryview) -> None:
        monkeypatch.setattr(states, "_write_all", write_all)
        second.append(save(files, head(b"second")))
        write_all(fd, data)

    monkeypatch.setattr(states, "_write_all", write_and_save_another)
    assert save(files, head(b"first"))
    assert bool(second[0]) == (room > 1)
    assert sum(path.stat().st_size for path in directory.glob("*.state")) <= budget
    assert [kept.head.tokens for kept in files.files()] == [b"old", b"second", b"first"][3 - room :]


def test_a_disk_that_is_nearly_full_is_left_alone(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = StateFiles(directory, 1 << 20)
    monkeypatch.setattr(states, "FREE_BYTES", 1 << 62)
    assert save(files, head()) == 0
    assert [path.name for path in directory.iterdir()] == ["key"]


def test_an_engine_that_lies_about_the_size_costs_its_state(directory: Path) -> None:
    number = save(StateFiles(directory, 1 << 20), head(b"one"))
    (size,) = (path.stat().st_size for path in directory.glob("*.state"))
    files = StateFiles(directory, size * 3 // 2)  # no room for two
    for state in (STATE[:-1], STATE + b"1"):
        assert save(files, head(b"two"), state=state) == 0
        assert read(files, number) == STATE


def test_a_state_that_ends_early_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(STATE)
    with (tmp_path / "short").open("rb") as file:
        chunks = states._chunks(file.fileno(), 0, len(STATE) + 1)
        assert next(chunks) == STATE
        with pytest.raises(OSError, match="ends early"):
            next(chunks)


def test_a_longer_conversation_takes_the_place_of_the_shorter(directory: Path) -> None:
    files = StateFiles(directory, 1 << 20)
    first = save(files, head())
    foreign = save(files, head(owner="other"))
    second = save(files, head(b"longer"), replaces=(first, foreign, 99))
    assert [kept.number for kept in files.files()] == [foreign, second]


def test_an_engine_gets_no_file_of_another_backend(directory: Path) -> None:
    files = StateFiles(directory, 1 << 20)
    number = save(files, head())
    assert read(files, number, "other") is None
    assert read(files, number) == STATE


def test_files_of_another_model_are_not_used(directory: Path) -> None:
    files = StateFiles(directory, 1 << 20)
    old, new, other = (save(files, made) for made in (head(made_by="old"), head(), head(owner="other")))
    usable, outdated = files.of("chat", "m")
    assert ([kept.number for kept in usable], [kept.number for kept in outdated]) == ([new], [old])
    assert [kept.number for kept in files.files()] == [new, other]
    assert len([*directory.glob("*.state")]) == 2


KILLED = """
import os, sys, tempfile
from pathlib import Path
from inferd.store import states

def save(directory, left):
    files = states.StateFiles(directory, 1 << 30)
    def write_all(fd, data, write_all=states._write_all):
        nonlocal left
        left -= 1
        if left < 0:
            os.write(fd, bytes(data)[: len(data) // 2])
            os.kill(os.getpid(), 9)
        write_all(fd, data)
    states._write_all = write_all
    with tempfile.TemporaryFile() as file:
        size = (3 << 20) + 17
        file.truncate(size)
        head = states.Head(owner="chat", made_by="m", scope=b"1", session=b"", tokens=b"t", size=size)
        files.save(head, file.fileno(), [])
        os.kill(os.getpid(), 9)

for writes in range(7):
    child = os.fork()
    if child == 0:
        save(Path(sys.argv[1]) / str(writes), writes)
    assert os.waitpid(child, 0)[1] == 9
"""


def test_killed_in_the_middle_of_writing_leaves_no_half_of_a_file(tmp_path: Path) -> None:
    """Killed at each write: the head, four chunks of the state, the final code; and after them."""
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=True)
    for writes in range(7):
        directory = tmp_path / str(writes)
        assert len([*directory.glob("*.part")]) == (writes < 6)
        files = StateFiles(directory, 1 << 30)
        assert [*directory.glob("*.part")] == []
        assert len(files.files()) == (writes == 6)
        assert all(read(files, kept.number) is not None for kept in files.files())
        assert files.removed == 0


def test_a_file_that_is_being_written_is_not_swept_away(directory: Path) -> None:
    import fcntl

    StateFiles(directory, 1 << 20)
    with (directory / "x.part").open("wb") as writing:
        fcntl.flock(writing, fcntl.LOCK_EX)
        StateFiles(directory, 1 << 20)
        assert (directory / "x.part").exists()
    StateFiles(directory, 1 << 20)
    assert not (directory / "x.part").exists()


def test_clear_leaves_no_state_and_a_daemon_that_runs_notices(directory: Path) -> None:
    files = StateFiles(directory, 1 << 20)
    number = save(files, head())
    assert [found.st_size for found in states.usage(directory)] == [files.files()[0].bytes]
    assert states.clear(directory) == 1
    assert read(files, number) is None
    assert (states.usage(directory), states.clear(directory)) == ([], 0)
