"""Sources that a user names: the hash and the name of their model."""

from __future__ import annotations

import hashlib
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from inferd.config.entries import ModelSpec
from inferd.errors import FetchError, ModelError, StoreError
from inferd.store import https
from inferd.store.catalogue import CATALOGUE, CatalogueModel
from inferd.store.fetch import ensure_model, resolve
from inferd.store.models import Manifest, ModelStore
from inferd.store.pinning import pin
from tests.tiny_model import CONTENT, DIGEST, EVIL, Phases
from tests.tls_server import TlsServer, plain, redirect, status, tls_server, trusted

GGUF = b"GGUF" + CONTENT
GGUF_DIGEST = hashlib.sha256(GGUF).hexdigest()
COMMIT = "c0ffee" + "0" * 34


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "home")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TlsServer]:
    ca = trustme.CA()
    monkeypatch.setattr(https, "PAUSE_SECS", 0.001)
    with tls_server(GGUF, ca) as server:
        for key, value in {**trusted(ca, tmp_path), "HF_ENDPOINT": server.base, "HF_TOKEN": ""}.items():
            monkeypatch.setenv(key, value)
        yield server


def told(digest: str = GGUF_DIGEST, **headers: str) -> dict[str, str]:
    return {
        "X_Linked_Etag": f'"{digest}"',
        "X_Linked_Size": str(len(GGUF)),
        "X_Repo_Commit": COMMIT,
        **headers,
    }


def pinned(
    store: ModelStore, text: str, name: str | None = None, sha256: str | None = None, license: str = "MIT"
) -> CatalogueModel:
    return pin(
        store,
        text,
        name=name,
        sha256=sha256,
        license=license,
        progress=Phases(),
        cancelled=threading.Event(),
    )


def bring(store: ModelStore, spec: CatalogueModel | ModelSpec) -> None:
    ensure_model(
        store, spec, auto_pull=True, verify="auto", progress=Phases(), cancelled=threading.Event()
    ).close()


class TestFile:
    def test_it_is_hashed_and_named_after_its_file(self, store: ModelStore, tmp_path: Path) -> None:
        path = tmp_path / "My Model.gguf"
        path.write_bytes(GGUF)
        assert pinned(store, f"file:{path}") == CatalogueModel(
            name="My Model",
            sha256=GGUF_DIGEST,
            size_bytes=len(GGUF),
            license="MIT",
            sources=(f"file:{path}",),
        )
        assert pinned(store, f"file:{path}", name="x").name == "x"

    def test_a_file_that_is_not_a_model_is_refused(self, store: ModelStore, tmp_path: Path) -> None:
        (tmp_path / "m").write_bytes(EVIL)
        with pytest.raises(ModelError, match=f"{tmp_path}/m is not a GGUF file; convert the model"):
            pinned(store, f"file:{tmp_path}/m")
        with pytest.raises(ModelError, match="cannot open the model file"):
            pinned(store, f"file:{tmp_path}/none")

    def test_a_part_of_a_split_model_is_not_taken(self, store: ModelStore, tmp_path: Path) -> None:
        part = tmp_path / "big-00002-of-00003.gguf"
        key = b"split.count"
        part.write_bytes(
            b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, len(key)) + key + struct.pack("<IH", 2, 3) + bytes(64)
        )
        with pytest.raises(StoreError, match="one of the 3 files of a split model; name the first"):
            pinned(store, f"file:{part}")

    def test_a_hash_that_is_given_must_be_right(self, store: ModelStore, tmp_path: Path) -> None:
        (tmp_path / "m").write_bytes(GGUF)
        pinned(store, f"file:{tmp_path}/m", sha256=GGUF_DIGEST.upper())
        with pytest.raises(StoreError, match=f"has the sha256 {GGUF_DIGEST} and not {DIGEST}; check both"):
            pinned(store, f"file:{tmp_path}/m", sha256=DIGEST)

    def test_a_name_that_means_something_else_is_not_taken_over(
        self, store: ModelStore, tmp_path: Path
    ) -> None:
        (tmp_path / "m").write_bytes(GGUF)
        store.write_manifest(Manifest(name="m", blob=f"sha256:{DIGEST}", size_bytes=1))
        for name in (None, "smollm2", "smollm2-135m-instruct"):
            with pytest.raises(StoreError, match="means another model; choose one with --name"):
                pinned(store, f"file:{tmp_path}/m", name=name)
        store.write_manifest(Manifest(name="m", blob=f"sha256:{GGUF_DIGEST}", size_bytes=1))
        assert pinned(store, f"file:{tmp_path}/m").name == "m"

    def test_a_name_that_could_be_a_path_is_refused(self, store: ModelStore, tmp_path: Path) -> None:
        (tmp_path / "m").write_bytes(GGUF)
        with pytest.raises(StoreError, match="cannot be a model's name"):
            pinned(store, f"file:{tmp_path}/m", name="../m")


class TestHub:
    def test_it_gets_hash_size_and_commit_without_the_file(self, store: ModelStore, hub: TlsServer) -> None:
        hub.plan = [plain(b"", 302, Location="https://elsewhere.invalid/", Content_Length="0", **told())]
        model = pinned(store, "hf:org/repo/dir/m.gguf")
        assert model == CatalogueModel(
            name="m",
            sha256=GGUF_DIGEST,
            size_bytes=len(GGUF),
            license="MIT",
            sources=(f"hf:org/repo/dir/m.gguf@{COMMIT}",),
        )
        assert [(request.method, request.path) for request in hub.requests] == [
            ("HEAD", "/org/repo/resolve/main/dir/m.gguf")
        ]
        bring(store, model)
        assert hub.requests[1].path == f"/org/repo/resolve/{COMMIT}/dir/m.gguf"

    def test_it_can_be_fetched_again_by_its_name_alone(self, store: ModelStore, hub: TlsServer) -> None:
        hub.plan = [plain(b"", 200, Content_Length="0", **told())]
        bring(store, pinned(store, "hf:org/repo/m.gguf"))
        store.blob_path(GGUF_DIGEST).unlink()
        bring(store, resolve(store, ModelSpec(name="m")))
        assert store.blob_path(GGUF_DIGEST).read_bytes() == GGUF

    def test_a_repository_that_moved_is_followed(self, store: ModelStore, hub: TlsServer) -> None:
        hub.plan = [redirect("/org/new/resolve/main/m.gguf"), status(302, Location="/cdn", **told())]
        assert pinned(store, "hf:org/repo/m.gguf").sha256 == GGUF_DIGEST
        assert len(hub.requests) == 2

    def test_failures_are_retried_and_reported(self, store: ModelStore, hub: TlsServer) -> None:
        hub.plan = [status(503), status(200, **told())]
        assert pinned(store, "hf:org/repo/m.gguf").sha256 == GGUF_DIGEST
        hub.plan = [status(404)]
        with pytest.raises(FetchError, match=r"cannot ask for .*: the server answers 404 Not Found"):
            pinned(store, "hf:org/repo/m.gguf")

    def test_a_file_without_a_known_hash_needs_one(self, store: ModelStore, hub: TlsServer) -> None:
        hub.plan = [status(200, ETag='"abc"')]
        with pytest.raises(
            FetchError, match=r"the hub reports no sha256 of hf:org/repo/m\.gguf; give it with"
        ):
            pinned(store, "hf:org/repo/m.gguf")
        model = pinned(store, "hf:org/repo/m.gguf", sha256=GGUF_DIGEST)
        assert (model.sha256, model.size_bytes, model.sources) == (GGUF_DIGEST, None, ("hf:org/repo/m.gguf",))
        assert len(hub.requests) == 1


@pytest.mark.parametrize("text", ["https://host/dir/m.gguf", "pypi:package==1.0/dir/m.gguf"])
def test_a_source_without_a_known_hash_needs_one(store: ModelStore, text: str) -> None:
    with pytest.raises(StoreError, match=f"no sha256 is known for {text}; give its sha256"):
        pinned(store, text)
    assert pinned(store, text, sha256=DIGEST) == CatalogueModel(
        name="m", sha256=DIGEST, size_bytes=None, license="MIT", sources=(text,)
    )


@pytest.mark.parametrize("text", ["hf:a", "https://me:hush@host/m", "ftp://host/m"])
def test_a_malformed_source_is_named_without_its_secrets(store: ModelStore, text: str) -> None:
    with pytest.raises(FetchError, match=f"cannot fetch from {text.replace('me:hush@', '')}: ") as caught:
        pinned(store, text)
    assert "hush" not in str(caught.value)


def test_an_alias_resolves_to_the_catalogue_name(store: ModelStore) -> None:
    known = CATALOGUE["smollm2-135m-instruct"]
    model = pinned(store, "https://host/smollm2.gguf", sha256=known.sha256, license="")
    assert (model.name, model.license) == (known.name, known.license)
    assert pinned(store, "https://host/smollm2.gguf", sha256=known.sha256).license == "MIT"
