"""Repositories of the hub by name, from a loopback server with the hub's API."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import trustme

from inferd import cli
from inferd.config.entries import LlamaCppEntry, ModelSpec
from inferd.config.settings import Settings
from inferd.daemon.build import build_backend
from inferd.errors import FetchError
from inferd.store import fetch, https, hub
from inferd.store.catalogue import HubModel
from inferd.store.gguf import part_names
from inferd.store.models import ModelStore
from tests.tiny_llama import WIDTH, write_llama
from tests.tiny_projector import write_vision_projector
from tests.tls_server import Answer, Behaviour, TlsServer, tls_server, trusted

COMMIT = "c0ffee" + "0" * 34


def repository(files: Mapping[str, bytes], *tags: str) -> Behaviour:
    """Answers every request as the hub would for the repository ``org/repo`` with these files."""
    listing = {"sha": COMMIT, "siblings": [{"rfilename": name} for name in files], "tags": ["gguf", *tags]}

    def behave(answer: Answer) -> None:
        path = answer.request_.path
        if path.startswith("/api/models/org/repo"):
            body = json.dumps(listing).encode()
            answer.head(200, Content_Length=len(body), Content_Type="application/json")
            answer.send(body)
            return
        name = path.removeprefix(f"/org/repo/resolve/{COMMIT}/")
        if name not in files:
            answer.head(404, Content_Length=0)
            return
        body = files[name]
        told = {"X_Linked_Etag": f'"{hashlib.sha256(body).hexdigest()}"', "X_Linked_Size": len(body)}
        answer.head(200, Content_Length=len(body), X_Repo_Commit=COMMIT, **told)
        if answer.request_.method == "GET":
            answer.send(body)

    return behave


@pytest.fixture
def server(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TlsServer]:
    ca = trustme.CA()
    monkeypatch.setattr(https, "PAUSE_SECS", 0.001)
    with tls_server(b"", ca) as server:
        for key, value in {**trusted(ca, tmp_path), "HF_ENDPOINT": server.base, "HF_TOKEN": ""}.items():
            monkeypatch.setenv(key, value)
        yield server


def chosen(server: TlsServer, text: str, *names: str, tags: tuple[str, ...] = ()) -> hub.Chosen:
    server.plan = [repository(dict.fromkeys(names, b""), *tags)]
    return hub.choose(text, threading.Event())


MANY = ("m-Q2_K.gguf", "m-Q4_K_M.gguf", "m-Q8_0.gguf", "big/m-F16-00001-of-00002.gguf",
        "big/m-F16-00002-of-00002.gguf", "README.md", "mmproj-m-f16.gguf", "mmproj-m-f32.gguf")  # fmt: skip


def test_selects_the_file_of_a_quantisation_and_its_projector(server: TlsServer) -> None:
    for text, file in (
        ("hf:org/repo", "m-Q4_K_M.gguf"),
        ("hf:org/repo:q8_0", "m-Q8_0.gguf"),
        ("hf:org/repo:F16", "big/m-F16-00001-of-00002.gguf"),
    ):
        found = chosen(server, text, *MANY, tags=("license:apache-2.0",))
        assert found.source == f"hf:org/repo/{file}@{COMMIT}"
        assert (found.projector, found.license) == (f"hf:org/repo/mmproj-m-f16.gguf@{COMMIT}", "apache-2.0")
    found = chosen(server, "hf:org/repo@v1", "only.gguf")
    assert found == hub.Chosen(f"hf:org/repo/only.gguf@{COMMIT}", None, "")
    assert server.requests[-1].path == "/api/models/org/repo/revision/v1"


@pytest.mark.parametrize(
    ("text", "names", "reason"),
    [
        ("hf:org/repo:Q5_0", MANY, "no file of the quantisation Q5_0; .*Q2_K"),
        ("hf:org/repo", ("a-Q2_K.gguf", "b-Q3_K.gguf"), "several files"),
        ("hf:org/repo", ("model.safetensors",), "no GGUF file"),
        ("hf:org/repo:4", ("m-Q4_0.gguf",), "no file of the quantisation 4"),
    ],
)
def test_an_ambiguous_name_lists_the_choices(
    server: TlsServer, text: str, names: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(FetchError, match=reason):
        chosen(server, text, *names)


@pytest.mark.parametrize("body", [b"", b"[]", b'{"sha":"x","siblings":[]}', b"[" * 100_000])
def test_a_malformed_list_is_refused(server: TlsServer, body: bytes) -> None:
    def behave(answer: Answer) -> None:
        answer.head(200, Content_Length=len(body))
        answer.send(body)

    server.plan = [behave]
    with pytest.raises(FetchError, match="org/repo"):
        hub.choose("hf:org/repo", threading.Event())


async def test_a_split_model_and_its_projector_come_as_one(
    server: TlsServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = write_llama(tmp_path / "see-Q8_0.gguf", files=3)
    paths = [first.with_name(name) for name in part_names(first.name)]
    paths.append(write_vision_projector(tmp_path / "mmproj-F16.gguf", WIDTH))
    files = {path.name: path.read_bytes() for path in paths}
    server.plan = [repository(files, "license:mit")] * 50
    assert cli.main(["pull", "hf:org/repo:Q8_0", "--name", "see"]) == 0
    assert cli.main(["list", "--json"]) == 0
    listing = json.loads(capsys.readouterr().out.splitlines()[-1])
    store = ModelStore(Path(listing["models_home"]))
    manifest = store.manifest("see")
    assert manifest is not None
    assert (manifest.license, len(manifest.parts)) == ("mit", len(paths) - 2)
    assert manifest.whole_bytes == sum(map(len, files.values()))
    store.blob_path(manifest.digests[1]).unlink()
    assert cli.main(["pull", "see"]) == 0  # the sources of all files are known
    settings = Settings(models_home=store.home, active_permits=1)
    entry = LlamaCppEntry(name="t", model=ModelSpec(name="see"), n_ctx=64)
    backend = build_backend(settings, entry, lambda phase, details: None, threading.Event())
    try:
        await backend.start()
        assert backend.capabilities().vision
    finally:
        await backend.close()


def test_a_name_of_the_catalogue_is_pinned_by_its_first_pull(
    server: TlsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = HubModel(
        name="tiny-chat", source="hf:org/repo:Q8_0", license="Gemma", size_bytes=1, description="d"
    )
    monkeypatch.setattr(fetch, "HUB_MODELS", {known.name: known})
    first = write_llama(tmp_path / "tiny-Q8_0.gguf").read_bytes()
    server.plan = [repository({"tiny-Q8_0.gguf": first})] * 10
    assert cli.main(["pull", "tiny-chat"]) == 0
    assert cli.main(["list", "--json"]) == 0
    listing = json.loads(capsys.readouterr().out.splitlines()[-1])
    store = ModelStore(Path(listing["models_home"]))
    manifest = store.manifest("tiny-chat")
    assert manifest is not None
    assert (manifest.sha256, manifest.license) == (hashlib.sha256(first).hexdigest(), "Gemma")
    assert manifest.source is not None
    assert manifest.source.text == f"hf:org/repo/tiny-Q8_0.gguf@{COMMIT}"
    # The hub has another file now. The name still refers to the first one, which is requested again.
    store.blob_path(manifest.sha256).unlink()
    server.plan = [repository({"tiny-Q8_0.gguf": first[::-1]}, "license:mit")] * 10
    assert cli.main(["pull", "tiny-chat"]) != 0
    assert "sha256" in capsys.readouterr().err
    again = store.manifest("tiny-chat")
    assert again is not None
    assert again.sha256 == manifest.sha256
