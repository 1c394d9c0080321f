"""Building a backend from a configuration entry: the checks, and the loaded file."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from inferd.config.entries import InferdEntry, LlamaCppEntry, ModelSpec
from inferd.config.settings import Settings
from inferd.daemon import local, templates
from inferd.daemon.build import build_backend, build_key
from inferd.engine.backend import Backend
from inferd.engine.local import _llama
from inferd.engine.local.child.load import load_model
from inferd.engine.local.child.messages import Load
from inferd.engine.remote.inferd import Inferd
from inferd.errors import ConfigError, HashMismatch, ModelError
from inferd.progress import Progress
from inferd.store.models import ModelStore
from tests.cases import cases
from tests.demo_model import demo_model
from tests.tiny_projector import write_vision_projector

DEMO_WIDTH = 576  # of the demo model's embeddings


def build(
    settings: Settings, entry: LlamaCppEntry, progress: Progress = lambda phase, details: None
) -> Backend:
    return build_backend(settings, entry, progress, threading.Event())


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(models_home=tmp_path / "models", active_permits=1, auto_pull=False)


@pytest.fixture
def entry() -> LlamaCppEntry:
    return LlamaCppEntry(name="chat", model_path=demo_model(), n_ctx=256)


async def test_a_projector_comes_from_the_store(
    settings: Settings, entry: LlamaCppEntry, tmp_path: Path
) -> None:
    made = write_vision_projector(tmp_path / "eyes.gguf", DEMO_WIDTH)
    digest = hashlib.sha256(made.read_bytes()).hexdigest()
    blob = ModelStore(settings.models_home).blob_path(digest)
    blob.parent.mkdir(parents=True)
    made.rename(blob)

    def swap(phase: str, details: object) -> None:
        """Replaces the verified file while the model is loaded."""
        if phase == "mmap":
            blob.unlink(missing_ok=True)
            blob.write_bytes(b"something else")

    backend = build(settings, entry._replace(mmproj=ModelSpec(name="eyes", sha256=digest)), swap)
    try:
        await backend.start()
        assert backend.capabilities().vision
    finally:
        await backend.close()
    with pytest.raises(HashMismatch):
        build(settings, entry._replace(mmproj=ModelSpec(name="eyes", sha256=digest)))


@pytest.mark.parametrize("asked", ["cuda", "metal"])
async def test_a_model_does_not_run_where_it_must_not(
    settings: Settings, entry: LlamaCppEntry, asked: str
) -> None:
    backend = build(settings.replaced(force_backend=asked), entry._replace(n_gpu_layers=0))
    try:
        with pytest.raises(ModelError, match=f"INFERD_FORCE_BACKEND asks for {asked}, .* would run on cpu"):
            await backend.start()
    finally:
        await backend.close()


async def test_a_model_can_be_kept_off_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = [("gpu", "CUDA0", "a GPU", 1 << 34), *_llama.devices()]
    monkeypatch.setattr(_llama, "devices", lambda: devices)
    path = demo_model()
    wanted = Load(name="t", model="t", path=str(path), n_ctx=256, n_parallel=1, force_backend="cpu")
    with path.open("rb") as file:
        backend = load_model(wanted, [file.fileno()], lambda phase, details: None)
    await backend.start()
    try:
        accelerator = backend.capabilities().accelerator
        assert (accelerator.kind, accelerator.gpu_layers) == ("cpu", 0)
    finally:
        await backend.close()


def test_device_and_memory_options_are_part_of_the_build_key(
    settings: Settings, entry: LlamaCppEntry
) -> None:
    assert build_key(settings, entry) == build_key(settings.replaced(queue_depth=1), entry)
    assert build_key(settings, entry) != build_key(settings.replaced(force_backend="cpu"), entry)
    assert build_key(settings, entry) != build_key(settings.replaced(engine_memory_factor=99), entry)


def test_serves_is_part_of_the_build_key_only_if_it_names_the_model(settings: Settings) -> None:
    bare = InferdEntry(name="far", address="/far.sock", serves="old")
    renamed = bare._replace(serves="new")
    assert [Inferd(entry).model for entry in (bare, renamed)] == ["old", "new"]
    assert build_key(settings, bare) != build_key(settings, renamed)
    named = bare._replace(model="there")
    assert build_key(settings, named) == build_key(settings, named._replace(serves="new"))


@cases(
    "data, reason",
    [
        (None, "cannot read the chat template .*: No such file"),
        (b"x" * (templates.MAX_TEMPLATE_BYTES + 1), "is larger than"),
        (b"\xff", "is not UTF-8"),
    ],
)
def test_a_template_file_that_cannot_be_used_is_named(
    settings: Settings, entry: LlamaCppEntry, tmp_path: Path, data: bytes | None, reason: str
) -> None:
    path = tmp_path / "template"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ConfigError, match=reason):
        build(settings, entry._replace(chat_template_file=path))


@pytest.mark.parametrize("n_ctx", [None, 256])
async def test_a_model_that_may_not_fit_is_loaded_with_a_warning(
    n_ctx: int | None, settings: Settings, entry: LlamaCppEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, object]] = []
    monkeypatch.setattr(local, "_log", SimpleNamespace(warn=lambda msg, **fields: told.append(fields)))
    for budget_mib in (100_000, 64):
        limited = settings.replaced(memory_budget_bytes=budget_mib << 20)
        await build(limited, entry._replace(n_ctx=n_ctx)).close()
    (fields,) = told
    assert (fields["model"], fields["available_mib"]) == ("chat", 64)
    assert int(str(fields["needed_mib"])) > 64
