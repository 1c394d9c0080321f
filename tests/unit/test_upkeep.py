"""Removing models from the store by name, deleting unused files, and the files that must stay."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from inferd.errors import StoreError
from inferd.store.catalogue import CATALOGUE
from inferd.store.models import Manifest, ModelStore
from inferd.store.runtime import Lock
from inferd.store.upkeep import Removed, collect, remove
from tests.tiny_model import CONTENT, DIGEST, EVIL, files, load, put, tiny

SIZE = len(CONTENT)
DATA = f"blobs/sha256/{DIGEST[:2]}/{DIGEST}/data"


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "home")


@pytest.fixture
def full(store: ModelStore, tmp_path: Path) -> ModelStore:
    """A store to which inferd has added the tiny model."""
    (tmp_path / "good").write_bytes(CONTENT)
    load(store, tiny(f"file:{tmp_path}/good"), auto_pull=True).close()
    return store


def name(store: ModelStore, called: str) -> None:
    store.write_manifest(Manifest(name=called, blob=f"sha256:{DIGEST}", size_bytes=SIZE))


def part(store: ModelStore, *names: str) -> Path:
    """A download directory with this many bytes in each file of ``names``."""
    directory = store.partial_dir(DIGEST)
    directory.mkdir(parents=True)
    for each in names:
        (directory / each).write_bytes(bytes(100))
    return directory


def gone(store: ModelStore, *, quarantine: bool = False, dry_run: bool = False) -> list[tuple[str, str, int]]:
    """The result of ``collect``, with paths relative to the store."""
    found = collect(store, quarantine=quarantine, dry_run=dry_run)
    return [(each.what, str(each.path.relative_to(store.home)), each.size_bytes) for each in found]


class TestRemove:
    def test_remove_deletes_name_and_file(self, full: ModelStore) -> None:
        assert remove(full, "tiny") == Removed("tiny", SIZE)
        assert files(full.home) == [f"locks/.{DIGEST}.lock", "locks/tiny.lock"]
        assert not full.blob_path(DIGEST).parent.exists()

    def test_remove_deletes_a_file_of_another_tool(self, store: ModelStore) -> None:
        put(store, CONTENT)
        name(store, "theirs")
        assert remove(store, "theirs").freed_bytes == SIZE
        assert not store.blob_path(DIGEST).exists()

    def test_files_of_other_tools_are_kept(self, full: ModelStore) -> None:
        note = full.blob_path(DIGEST).with_name("note-of-another-tool")
        note.touch()
        remove(full, "tiny")
        assert note.exists()
        assert not full.blob_path(DIGEST).exists()

    def test_a_file_with_another_name_stays(self, full: ModelStore) -> None:
        name(full, "second")
        assert remove(full, "tiny") == Removed("tiny", 0, ("second",))
        load(full, tiny(name="second")).close()
        assert remove(full, "second") == Removed("second", SIZE)

    def test_a_file_that_an_unreadable_name_may_refer_to_stays(self, full: ModelStore) -> None:
        full.manifest_path("broken").write_text("{")
        assert remove(full, "tiny") == Removed("tiny", 0, ("broken",))
        assert full.blob_path(DIGEST).exists()

    def test_a_name_that_cannot_be_read_can_be_removed(self, full: ModelStore) -> None:
        full.manifest_path("tiny").write_text("{")
        assert remove(full, "tiny") == Removed("tiny", 0)
        assert not full.manifest_path("tiny").exists()
        assert full.blob_path(DIGEST).exists()

    def test_the_manifest_goes_before_the_file(
        self, full: ModelStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        order: list[str] = []
        unlink = Path.unlink

        def recorded(path: Path, missing_ok: bool = False) -> None:
            order.append(path.name)
            unlink(path, missing_ok=missing_ok)

        monkeypatch.setattr(Path, "unlink", recorded)
        remove(full, "tiny")
        assert order.index("tiny.json") < order.index("data")
        assert order.index("data") < order.index("produced_by")  # until then it is ours to collect

    def test_remove_deletes_a_partial_download_by_name_and_alias(self, store: ModelStore) -> None:
        for called in ("smollm2", "smollm2-135m-instruct"):
            model = CATALOGUE["smollm2-135m-instruct"]
            directory = store.partial_dir(model.sha256)
            directory.mkdir(parents=True)
            (directory / "data.tmp").write_bytes(bytes(70))
            assert remove(store, called) == Removed(model.name, 70)
            assert not directory.exists()

    def test_an_unknown_name_is_reported(self, store: ModelStore) -> None:
        for called in ("nobody", "smollm2"):
            with pytest.raises(StoreError, match=f"is in the store at {store.home}; `inferd list` shows"):
                remove(store, called)
        assert not store.home.exists()

    @pytest.mark.parametrize("bad", ["../tiny", "/etc/passwd", ".", ""])
    def test_a_name_that_could_be_a_path_removes_nothing(self, full: ModelStore, bad: str) -> None:
        before = files(full.home.parent)
        with pytest.raises(StoreError, match="cannot be a model's name"):
            remove(full, bad)
        assert files(full.home.parent) == before

    @pytest.mark.parametrize("lock", ["name", "blob"])
    def test_a_file_being_fetched_stays(self, full: ModelStore, lock: str) -> None:
        before = [path for path in files(full.home) if not path.startswith("locks")]
        with (
            Lock.acquire(full.name_lock("tiny") if lock == "name" else full.blob_lock(DIGEST)),
            pytest.raises(StoreError, match=f"is in use by process {os.getpid()}; wait for it"),
        ):
            remove(full, "tiny")
        assert [path for path in files(full.home) if not path.startswith("locks")] == before


class TestCollect:
    def test_a_store_in_use_has_no_unused_files(self, full: ModelStore) -> None:
        before = files(full.home)
        assert gone(full, quarantine=True) == []
        assert files(full.home) == before

    def test_a_file_of_ours_without_a_name(self, full: ModelStore) -> None:
        full.manifest_path("tiny").unlink()
        assert gone(full, dry_run=True) == [("model without a name", str(Path(DATA).parent), SIZE)]
        assert full.blob_path(DIGEST).exists()
        assert gone(full) == [("model without a name", str(Path(DATA).parent), SIZE)]
        assert not full.blob_path(DIGEST).parent.exists()

    def test_a_file_of_another_tool_stays(self, store: ModelStore) -> None:
        put(store, CONTENT)
        load(store, tiny()).close()
        store.manifest_path("tiny").unlink()
        assert gone(store) == []
        assert store.blob_path(DIGEST).exists()

    def test_an_unreadable_name_keeps_every_file(self, full: ModelStore) -> None:
        full.manifest_path("tiny").write_text("{")
        assert gone(full) == []
        assert full.blob_path(DIGEST).exists()

    @pytest.mark.parametrize("names", [("data.tmp", "source.json"), ("scratch",), ()])
    def test_a_partial_download_is_removed(self, store: ModelStore, names: tuple[str, ...]) -> None:
        directory = part(store, *names)
        assert [(what, size) for what, _, size in gone(store)] == [
            ("part of a download", 100 if names else 0)
        ]
        assert not directory.exists()

    def test_a_download_of_another_tool_stays(self, store: ModelStore) -> None:
        directory = part(store, "data.tmp")
        assert gone(store) == []
        assert directory.exists()

    def test_a_file_being_fetched_stays(self, full: ModelStore) -> None:
        full.manifest_path("tiny").unlink()
        part(full, "data.tmp", "source.json")
        with Lock.acquire(full.blob_lock(DIGEST)):
            assert gone(full) == []
        assert len(gone(full)) == 2

    def test_a_link_is_not_followed(self, store: ModelStore, tmp_path: Path) -> None:
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        for each in ("data.tmp", "source.json", "produced_by", "data"):
            (elsewhere / each).touch()
        store.partial_dir(DIGEST).parent.mkdir(parents=True)
        store.partial_dir(DIGEST).symlink_to(elsewhere)
        store.blob_path(DIGEST).parent.symlink_to(elsewhere)
        assert gone(store) == []
        assert len(files(elsewhere)) == 4

    def test_quarantine_only_when_asked(self, store: ModelStore, tmp_path: Path) -> None:
        (tmp_path / "bad").write_bytes(EVIL)
        place = store.quarantine(tmp_path / "bad")
        other = place.with_name("kept.bin")
        other.touch()
        assert gone(store) == []
        assert gone(store, quarantine=True) == [("quarantined file", f"locks/quarantine/{place.name}", SIZE)]
        assert files(place.parent) == ["kept.bin"]
