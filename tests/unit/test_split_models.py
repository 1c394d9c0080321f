"""Models in several files: the store and the engine treat them as one, and refuse an incomplete one."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from inferd import cli
from inferd.config.entries import LlamaCppEntry, ModelSpec
from inferd.config.settings import Settings
from inferd.daemon.build import build_backend
from inferd.daemon.directory import Directory
from inferd.engine.events import Done
from inferd.engine.local.child.link import MAX_FDS
from inferd.engine.requests import GenerateRequest, Message
from inferd.errors import StoreError
from inferd.sampling import SamplingParams
from inferd.serve.router import Router
from inferd.store.gguf import part_names, plain_name
from inferd.store.models import ModelStore
from inferd.store.upkeep import collect, remove
from tests.tiny_llama import write_llama


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return write_llama(tmp_path / "tiny.gguf", files=3)


async def answers(settings: Settings, entry: LlamaCppEntry) -> bool:
    backend = build_backend(settings, entry, lambda phase, details: None, threading.Event())
    try:
        await backend.start()
        request = GenerateRequest(
            messages=(Message("user", "hi"),), sampling=SamplingParams(temperature=0.0), max_tokens=2
        )
        events = [event async for event in await backend.generate(request)]
        return isinstance(events[-1], Done) and events[-1].usage.completion_tokens == 2
    finally:
        await backend.close()


def parts_of(first: Path) -> Sequence[Path]:
    return [first.with_name(name) for name in part_names(first.name)]


def test_the_names_of_the_files() -> None:
    assert part_names("a-00001-of-00003.gguf")[1:] == ["a-00002-of-00003.gguf", "a-00003-of-00003.gguf"]
    for name in ("a.gguf", "a-00002-of-00003.gguf", "a-00001-of-00001.gguf", "a-00001-of-99999.gguf"):
        assert part_names(name) == []
    assert (plain_name("a-00001-of-00003.gguf"), plain_name("b.gguf")) == ("a", "b")


async def test_it_is_one_model_in_the_store_and_answers(
    first: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = parts_of(first)
    assert len(files) == 3
    assert cli.main(["import", str(first)]) == 0
    capsys.readouterr()
    assert cli.main(["list", "--json"]) == 0
    listing = json.loads(capsys.readouterr().out)
    store = ModelStore(Path(listing["models_home"]))
    (row,) = [row for row in listing["models"] if row["name"] == "tiny"]
    assert (row["stored"], row["size_bytes"]) == (True, sum(file.stat().st_size for file in files))
    assert cli.main(["verify", "tiny"]) == 0
    settings = Settings(models_home=store.home, active_permits=1)
    assert Directory(Router(()), settings).card("tiny").file_bytes == row["size_bytes"]
    assert await answers(settings, LlamaCppEntry(name="t", model=ModelSpec(name="tiny"), n_ctx=64))
    assert await answers(settings, LlamaCppEntry(name="t", model_path=first, n_ctx=64))
    assert list(collect(store, quarantine=False, dry_run=False)) == []

    manifest = store.manifest("tiny")
    assert manifest is not None
    last = store.blob_path(manifest.digests[-1])
    last.write_bytes(last.read_bytes()[:-1] + b"x")
    assert cli.main(["verify", "tiny"]) == 1
    assert not last.exists()  # it is in quarantine
    assert cli.main(["import", str(first)]) == 0
    assert remove(store, "tiny").freed_bytes == row["size_bytes"]
    assert not any(store.blob_path(digest).exists() for digest in manifest.digests)


async def test_a_model_may_have_more_files_than_another_message_has_descriptors(
    tmp_path: Path, home: Path
) -> None:
    path = write_llama(tmp_path / "t.gguf", files=MAX_FDS + 2)
    assert await answers(Settings(active_permits=1), LlamaCppEntry(name="t", model_path=path, n_ctx=64))


def test_an_incomplete_split_model_is_refused(
    first: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = parts_of(first)
    assert cli.main(["import", str(files[1])]) == StoreError.exit_code
    assert "name the first of them" in capsys.readouterr().err
    files[-1].unlink()
    assert cli.main(["import", str(first)]) != 0
    assert files[-1].name in capsys.readouterr().err
