"""The store on disk: its names, its layout, and its durability."""

from __future__ import annotations

import os
from pathlib import Path

import orjson
import pytest

from inferd.errors import StoreError
from inferd.store import models
from inferd.store.models import Manifest, ModelStore, Provenance
from tests.tiny_model import CONTENT, DIGEST, files, load, tiny


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "home")


class TestNames:
    """F-21: no external name becomes a path outside the store."""

    BAD = (
        "",
        ".",
        "..",
        ".hidden",
        "../x",
        "a/../b",
        "/etc/passwd",
        "a\\b",
        "a\0b",
        "a\nb",
        "\udc80",
        "x" * 201,
    )

    @pytest.mark.parametrize("name", BAD)
    def test_a_name_that_could_be_a_path_is_refused(self, store: ModelStore, name: str) -> None:
        manifest = Manifest(name=name, blob=f"sha256:{DIGEST}", size_bytes=1)
        for use in (store.manifest, store.manifest_path, store.name_lock):
            with pytest.raises(
                StoreError, match="cannot be a model's name; use up to 200 printable characters"
            ):
                use(name)
        with pytest.raises(StoreError):
            store.write_manifest(manifest)
        assert not store.home.exists()

    @pytest.mark.parametrize("name", ["a", "smollm2-135m-instruct", "Qwen 2.5 (7B)", "a:b", "a..b", "größe"])
    def test_an_ordinary_name_stays_inside(self, store: ModelStore, name: str) -> None:
        store.write_manifest(Manifest(name=name, blob=f"sha256:{DIGEST}", size_bytes=1))
        assert [path.name for path in (store.home / "manifests").iterdir()] == [f"{name}.json"]
        assert store.manifest(name) is not None

    @pytest.mark.parametrize(
        "digest", ["", "../" * 21 + "x", "g" * 64, "a" * 63, "a" * 65, "sha256:" + "a" * 57]
    )
    def test_an_invalid_digest_is_refused(self, store: ModelStore, digest: str) -> None:
        for use in (store.blob_path, store.partial_dir, store.blob_lock, store.blob_size):
            with pytest.raises(StoreError, match="is not a sha256; it must be 64 hex digits"):
                use(digest)

    def test_a_digest_may_be_in_upper_case(self, store: ModelStore) -> None:
        assert store.blob_path(DIGEST.upper()) == store.blob_path(DIGEST)

    @pytest.mark.parametrize(
        "blob", ["sha256:../../../../etc/passwd", "md5:" + "a" * 32, "", f"sha256:{DIGEST}/.."]
    )
    def test_a_manifest_cannot_point_outside(self, store: ModelStore, blob: str) -> None:
        store.write_manifest(Manifest(name="m", blob=blob, size_bytes=1))
        with pytest.raises(StoreError, match="is not a sha256"):
            store.manifest("m")
        assert store.list() == []


class TestLayout:
    def test_places(self, store: ModelStore) -> None:
        home, two = store.home, DIGEST[:2]
        assert store.blob_path(DIGEST) == home / "blobs" / "sha256" / two / DIGEST / "data"
        assert store.partial_dir(DIGEST) == home / "blobs" / "sha256" / two / f".partial-{DIGEST}"
        assert store.manifest_path("n") == home / "manifests" / "n.json"
        assert store.name_lock("n") == home / "locks" / "n.lock"

    def test_a_manifest_has_every_field(self, store: ModelStore) -> None:
        source = Provenance(registry="pypi", repo="r", revision="1", filename="f")
        manifest = Manifest(
            name="m",
            blob=f"sha256:{DIGEST}",
            size_bytes=5,
            license="MIT",
            source=source,
            produced_by="inferd",
            produced_at="2026-01-02T03:04:05Z",
        )
        store.write_manifest(manifest)
        assert orjson.loads(store.manifest_path("m").read_bytes()) == {
            "schema_version": 1,
            "name": "m",
            "format": "gguf",
            "blob": f"sha256:{DIGEST}",
            "size_bytes": 5,
            "license": "MIT",
            "source": {"registry": "pypi", "repo": "r", "revision": "1", "filename": "f"},
            "produced_by": "inferd",
            "produced_at": "2026-01-02T03:04:05Z",
        }
        assert store.manifest("m") == manifest
        assert manifest.sha256 == DIGEST

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            (b"{", "truncated"),
            (b'{"name":"m"}', "missing required field `blob`"),
            (b'{"name":"m","blob":"sha256:x","size_bytes":"1"}', "Expected `int`"),
            (
                b'{"name":"m","blob":"sha256:%s","size_bytes":1,"schema_version":2}',
                "schema version 2 is not 1",
            ),
            (b'{"name":"n","blob":"sha256:%s","size_bytes":1}', "it is about 'n'"),
            (b'{"name":"\xff"}', "can't decode byte 0xff"),
            (b'{"more":' + b"[" * 100_000, "recursion"),
        ],
        ids=range(7),
    )
    def test_an_unusable_manifest_gives_reason_and_advice(
        self, store: ModelStore, text: bytes, reason: str
    ) -> None:
        path = store.manifest_path("m")
        path.parent.mkdir(parents=True)
        path.write_bytes(text.replace(b"%s", DIGEST.encode()))
        with pytest.raises(StoreError) as caught:
            store.manifest("m")
        assert str(path) in str(caught.value)
        assert reason in str(caught.value)
        assert "run `inferd pull m`" in str(caught.value)

    def test_a_manifest_of_another_tool_may_say_more_and_less(self, store: ModelStore) -> None:
        path = store.manifest_path("m")
        path.parent.mkdir(parents=True)
        path.write_bytes(orjson.dumps({"name": "m", "blob": f"sha256:{DIGEST}", "size_bytes": 1, "x": []}))
        assert store.manifest("m") == Manifest(name="m", blob=f"sha256:{DIGEST}", size_bytes=1)

    def test_the_list_is_sorted_and_omits_unreadable_manifests(self, store: ModelStore) -> None:
        assert store.list() == []
        for name in ("b", "a"):
            store.write_manifest(Manifest(name=name, blob=f"sha256:{DIGEST}", size_bytes=1))
        (store.home / "manifests" / "broken.json").write_text("{")
        (store.home / "manifests" / ".b.json.tmp").write_text("{")
        assert [manifest.name for manifest in store.list()] == ["a", "b"]


class TestDurability:
    def record(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The names of files and directories in the order in which they are synced and renamed."""
        steps: list[str] = []
        fsync, replace = os.fsync, Path.replace

        def recorded_fsync(fd: int) -> None:
            steps.append(f"sync {Path(f'/proc/self/fd/{fd}').readlink().name}")
            fsync(fd)

        def recorded_replace(self: Path, target: Path) -> Path:
            steps.append(f"rename {self.name} {target.name}")
            return replace(self, target)

        monkeypatch.setattr(os, "fsync", recorded_fsync)
        monkeypatch.setattr(Path, "replace", recorded_replace)
        return steps

    @pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="names of descriptors come from /proc")
    def test_a_manifest_is_synced_renamed_and_its_directory_synced(
        self, store: ModelStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        steps = self.record(monkeypatch)
        store.write_manifest(Manifest(name="m", blob=f"sha256:{DIGEST}", size_bytes=1))
        assert steps[-3:] == ["sync .m.json.tmp", "rename .m.json.tmp m.json", "sync manifests"]
        assert f"sync {store.home.name}" in steps  # the new directory itself

    @pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="names of descriptors come from /proc")
    def test_a_blob_is_in_place_before_the_manifest_that_names_it(
        self, store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "in.gguf").write_bytes(CONTENT)
        steps = self.record(monkeypatch)
        load(store, tiny(f"file:{tmp_path}/in.gguf"), auto_pull=True).close()
        order = ["sync data.tmp", "rename data.tmp data", "rename .tiny.json.tmp tiny.json"]
        assert sorted(order, key=steps.index) == order
        assert steps[steps.index(order[1]) + 1] == f"sync {DIGEST}"


def test_a_reader_sees_the_old_or_the_new_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "f"
    models.write_whole(path, b"old")
    with path.open("rb") as reader:
        models.write_whole(path, b"new and longer")
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new and longer"
    assert files(tmp_path) == ["f"]
