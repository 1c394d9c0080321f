"""The verification of model files between the disk and the engine."""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
import threading
from pathlib import Path

import orjson
import pytest

from inferd.errors import BootCancelled, HashMismatch, ModelError, StoreError
from inferd.store import verify
from inferd.store.models import Manifest, ModelStore, Stamp
from tests.tiny_model import CONTENT, DIGEST, EVIL, Phases, files, load, put, tiny


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "home")


@pytest.fixture
def full(store: ModelStore) -> ModelStore:
    """A store that holds MODEL, not verified yet."""
    put(store, CONTENT)
    store.write_manifest(Manifest(name="tiny", blob=f"sha256:{DIGEST}", size_bytes=len(CONTENT)))
    return store


class TestVerification:
    def test_a_blob_is_hashed_once_and_then_known_by_its_stamp(self, full: ModelStore) -> None:
        first, second = Phases(), Phases()
        with load(full, progress=first) as model:
            assert os.read(model.fd, len(CONTENT)) == CONTENT
            assert (model.name, model.sha256, model.size_bytes) == ("tiny", DIGEST, len(CONTENT))
            assert model.path == full.blob_path(DIGEST)
        load(full, progress=second).close()
        assert first.names == ["checking_local", "verify"]
        assert second.names == ["checking_local"]
        assert first[1][1] == {"path": str(full.blob_path(DIGEST))}

    def test_verify_always_hashes_again(self, full: ModelStore) -> None:
        load(full).close()
        phases = Phases()
        load(full, progress=phases, verify="always").close()
        assert phases.names == ["checking_local", "verify"]

    @pytest.mark.parametrize("change", ["mtime", "inode", "stamp", "home", "blobs", "directory", "file"])
    def test_an_unreliable_stamp_is_ignored(self, full: ModelStore, change: str) -> None:
        path = full.blob_path(DIGEST)
        load(full).close()
        found = path.stat()
        if change == "mtime":
            os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns + 1))
        elif change == "inode":
            path.rename(path.with_name("old"))
            path.write_bytes(CONTENT)
            os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
        elif change == "stamp":
            path.with_name("verified.json").write_text("{")
        else:
            place = {"home": full.home, "blobs": full.home / "blobs", "directory": path.parent, "file": path}[
                change
            ]
            place.chmod(stat.S_IMODE(place.stat().st_mode) | 0o020)
        phases = Phases()
        load(full, progress=phases).close()
        assert phases.names == ["checking_local", "verify"]

    def test_the_stamp_is_the_size_mtime_and_inode(self, full: ModelStore) -> None:
        load(full).close()
        found = full.blob_path(DIGEST).stat()
        stamp = orjson.loads(full.blob_path(DIGEST).with_name("verified.json").read_bytes())
        assert stamp == {"size": len(CONTENT), "mtime_ns": found.st_mtime_ns, "inode": found.st_ino}

    def test_wrong_content_is_quarantined_and_never_opened(self, full: ModelStore) -> None:
        path = put(full, EVIL)
        phases = Phases()
        with pytest.raises(HashMismatch) as caught:
            load(full, progress=phases)
        (place,) = (full.home / "locks" / "quarantine").iterdir()
        actual = hashlib.sha256(EVIL).hexdigest()
        assert not path.exists()
        assert place.read_bytes() == EVIL
        assert place.name.endswith("Z-sha-mismatch.bin")
        assert phases[-1] == (
            "quarantine",
            {
                "path": str(path),
                "expected_sha256": DIGEST,
                "actual_sha256": actual,
                "quarantine_path": str(place),
            },
        )
        for part in (actual, DIGEST, str(place), "run `inferd pull tiny`"):
            assert part in str(caught.value)

    def test_quarantine_never_replaces_an_older_file(self, store: ModelStore, tmp_path: Path) -> None:
        for number in range(3):
            (tmp_path / "bad").write_text(str(number))
            store.quarantine(tmp_path / "bad")
        files = (store.home / "locks" / "quarantine").iterdir()
        assert sorted(path.read_text() for path in files) == ["0", "1", "2"]

    def test_the_comparison_takes_constant_time(
        self, full: ModelStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """F-5: every verdict on a digest comes from hmac.compare_digest."""
        compared: list[tuple[bytes, bytes]] = []

        def refuse(a: bytes, b: bytes) -> bool:
            compared.append((a, b))
            return False

        monkeypatch.setattr(hmac, "compare_digest", refuse)
        with pytest.raises(HashMismatch):
            load(full)
        path = put(full, CONTENT)
        with pytest.raises(HashMismatch):
            verify.open_file(path, DIGEST, progress=Phases(), cancelled=threading.Event())
        assert compared == [(DIGEST.encode(), DIGEST.encode())] * 2

    def test_the_descriptor_that_was_verified_is_the_one_that_is_loaded(self, full: ModelStore) -> None:
        """F-6: a file that replaces the blob during the hash is not returned."""
        path = full.blob_path(DIGEST)

        def swap() -> None:
            (path.parent / "evil").write_bytes(EVIL)
            (path.parent / "evil").replace(path)

        with load(full, progress=Phases(verify=swap)) as model:
            assert os.read(model.fd, len(CONTENT)) == CONTENT
        with pytest.raises(HashMismatch):  # and the stamp does not match the new file
            load(full)

    def test_a_file_that_changes_while_it_is_hashed_is_refused(
        self, full: ModelStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = full.blob_path(DIGEST)
        stamps = iter([Stamp(size=1, mtime_ns=1, inode=1), Stamp(size=1, mtime_ns=2, inode=1)])
        monkeypatch.setattr(Stamp, "of", lambda _: next(stamps))
        with pytest.raises(StoreError, match=f"{path} was changed while it was verified; try again"):
            load(full)

    def test_a_file_replaced_meanwhile_is_not_quarantined(self, full: ModelStore) -> None:
        path = put(full, EVIL)

        def mend() -> None:
            (path.parent / "good").write_bytes(CONTENT)
            (path.parent / "good").replace(path)

        with pytest.raises(StoreError, match=f"{path} was changed while it was verified; try again"):
            load(full, progress=Phases(verify=mend))
        assert path.read_bytes() == CONTENT

    def test_wrong_content_that_cannot_be_moved_is_not_loaded(self, full: ModelStore) -> None:
        put(full, EVIL)
        (full.home / "locks").touch()
        with pytest.raises(HashMismatch, match=r"has the sha256 .*; cannot make the directory .*/locks"):
            load(full)

    def test_a_symlink_in_the_blobs_place_is_refused(self, full: ModelStore) -> None:
        path = full.blob_path(DIGEST)
        path.rename(path.with_name("elsewhere"))
        path.symlink_to(path.with_name("elsewhere"))
        with pytest.raises(StoreError, match="cannot open the model"):
            load(full, tiny(size=None))

    def test_cancelling_the_hash(self, full: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(verify, "HASH_CHUNK_BYTES", 1024)
        cancelled = threading.Event()
        free = os.dup(0)
        os.close(free)
        with pytest.raises(BootCancelled):
            load(full, progress=Phases(verify=cancelled.set), cancelled=cancelled)
        with pytest.raises(OSError, match="Bad file descriptor"):  # the blob's was the next free one
            os.fstat(free)
        assert files(full.blob_path(DIGEST).parent) == ["data"]

    def test_progress_of_the_hash(self, full: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(verify, "HASH_CHUNK_BYTES", len(CONTENT) // 4)
        monkeypatch.setattr(verify, "REPORT_SECS", 0)
        phases = Phases()
        load(full, progress=phases).close()
        parts = [
            details["progress"] for name, details in phases if name == "verify" and "progress" in details
        ]
        assert parts == [0.25, 0.5, 0.75, 1.0]


class TestMissing:
    def test_without_auto_pull_the_error_says_how_to_get_it(self, store: ModelStore) -> None:
        with pytest.raises(StoreError) as caught:
            load(store)
        message = f"model 'tiny' is missing from the store at {store.home}; run `inferd pull tiny`"
        assert str(caught.value) == message
        assert not store.home.exists()

    def test_a_cut_blob_says_so(self, full: ModelStore) -> None:
        put(full, CONTENT[:100])
        with pytest.raises(StoreError, match=f"is cut to 100 of {len(CONTENT)} bytes in the store"):
            load(full)

    def test_a_blob_without_a_manifest_gets_one(self, store: ModelStore) -> None:
        put(store, CONTENT)
        load(store, tiny("https://host/tiny.gguf", "https://other/tiny.gguf")).close()
        manifest = store.manifest("tiny")
        assert manifest is not None
        assert (manifest.sha256, manifest.size_bytes, manifest.license) == (DIGEST, len(CONTENT), "MIT")
        assert manifest.source is not None
        assert manifest.source.text == "https://host/tiny.gguf"

    def test_a_manifest_that_cannot_be_used_is_written_again(self, full: ModelStore) -> None:
        full.manifest_path("tiny").write_text("{")
        load(full).close()
        assert [manifest.name for manifest in full.list()] == ["tiny"]

    def test_a_store_that_cannot_be_written_can_still_be_read(self, store: ModelStore) -> None:
        put(store, CONTENT)
        (store.home / "locks").touch()  # no lock, and so no manifest, can be made
        load(store).close()
        assert store.list() == []


class TestOpenFile:
    def open(self, path: Path, digest: str | None = None, progress: Phases | None = None) -> verify.OpenModel:
        return verify.open_file(
            path, digest, progress=Phases() if progress is None else progress, cancelled=threading.Event()
        )

    def test_without_a_digest_it_is_only_opened(self, tmp_path: Path) -> None:
        path = tmp_path / "my model.gguf"
        path.write_bytes(CONTENT)
        phases = Phases()
        with self.open(path, None, phases) as model:
            assert (model.path, model.name, model.sha256) == (path, "my model", None)
            assert os.read(model.fd, 9) == CONTENT[:9]
        assert phases == [("checking_local", {"path": str(path)})]
        model.close()

    def test_with_a_digest_it_is_verified(self, tmp_path: Path) -> None:
        path = tmp_path / "m"
        path.write_bytes(CONTENT)
        phases = Phases()
        with self.open(path, DIGEST.upper(), phases) as model:
            assert model.sha256 == DIGEST
        assert phases.names == ["checking_local", "verify"]

    def test_a_wrong_file_of_the_user_stays_where_it_is(self, tmp_path: Path) -> None:
        path = tmp_path / "m"
        path.write_bytes(EVIL)
        with pytest.raises(HashMismatch, match=f"{path} has the sha256 .* check the file or the sha256"):
            self.open(path, DIGEST)
        assert files(tmp_path) == ["m"]

    def test_an_unreadable_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=f"cannot open the model file {tmp_path}/none: No such file"):
            self.open(tmp_path / "none")
        os.mkfifo(tmp_path / "fifo")
        for path in (tmp_path, tmp_path / "fifo"):
            with pytest.raises(ModelError, match=f"the model {path} is not a regular file"):
                self.open(path)

    def test_a_digest_that_is_none_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match="is not a sha256"):
            self.open(tmp_path, "abc")
