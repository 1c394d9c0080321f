"""What a model would take is measured before it is loaded, and the process of the model waits for a grant.

tests/live/test_gpu.py measures on a GPU.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import weakref
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inferd.engine.backend import GpuRoom, Need, Needs
from inferd.engine.local.child import spawned
from inferd.engine.local.child.messages import Load
from inferd.engine.local.child.supervisor import HostedModel
from inferd.engine.local.opening import (
    LlamaCppConfig,
    dry_embedder,
    dry_run,
    fitting_part,
    open_draft,
    open_embedder,
    open_engine,
    open_model,
)
from inferd.errors import ModelError, ModelTooLarge
from inferd.store.gguf import part_names
from tests.daemon_process import is_gone
from tests.in_process import until
from tests.tiny_bert import write_bert
from tests.tiny_llama import RANDOM_WIDTH, random_llama, write_llama
from tests.tiny_memories import random_model
from tests.tiny_projector import write_vision_projector
from tests.unit.test_engine_process import ask, finish, pid_of, restarts_of


def config(path: Path, fd: int, **more: object) -> LlamaCppConfig:
    return LlamaCppConfig(name="m", model="m", path=path, fd=fd, **{"threads": 1, **more})  # type: ignore[arg-type]


def go_on(fraction: float) -> bool:
    return True


def test_a_dry_run_measures_what_a_load_takes() -> None:
    with random_llama().open("rb") as file, random_llama().open("rb") as draft:
        alone = config(random_llama(), file.fileno(), n_gpu_layers=0)
        pair = config(random_llama(), file.fileno(), n_gpu_layers=0, draft_fd=draft.fileno(), drafts="on")
        for wanted in (alone, pair):
            needs = dry_run(wanted, [512, 2048])
            model, small = open_model(wanted, go_on), open_draft(wanted, go_on)
            taken = [open_engine(wanted, model, n_ctx, small).taken() for n_ctx in (512, 2048)]
            assert [(need.here, need.gpus) for need in needs] == taken
        assert dry_run(alone, [512])[0].here < dry_run(pair, [512])[0].here


@pytest.mark.parametrize("architecture", ["mamba", "jamba", "cohere2"])
def test_a_dry_run_measures_other_kinds_of_memory(architecture: str) -> None:
    path = random_model(architecture)
    with path.open("rb") as file:
        wanted = config(path, file.fileno(), n_gpu_layers=0)
        (need,) = dry_run(wanted, [512])
        assert need.here == open_engine(wanted, open_model(wanted, go_on), 512, None).taken()[0]


def test_a_dry_run_reads_all_files_of_a_split_model(tmp_path: Path) -> None:
    path = write_llama(tmp_path / "split-00001-of-00003.gguf", files=3)
    with ExitStack() as held:
        files = [held.enter_context((tmp_path / name).open("rb")) for name in part_names(path.name)]
        first, *parts = (file.fileno() for file in files)
        wanted = config(path, first, n_gpu_layers=0, parts=tuple(parts))
        (need,) = dry_run(wanted, [512])
        assert need.here == open_engine(wanted, open_model(wanted, go_on), 512, None).taken()[0]


def test_a_dry_run_includes_the_weights_of_a_projector(tmp_path: Path) -> None:
    projector = write_vision_projector(tmp_path / "projector.gguf", RANDOM_WIDTH)
    with random_llama().open("rb") as file:
        alone = config(random_llama(), file.fileno(), n_gpu_layers=0)
        both = replace(alone, projector=projector)
        (without,), (with_it,) = dry_run(alone, [512]), dry_run(both, [512])
        assert 0 < with_it.here - without.here < projector.stat().st_size


def test_a_dry_run_measures_what_an_embedding_model_takes(tmp_path: Path) -> None:
    path = write_bert(tmp_path / "bert")
    with path.open("rb") as file:
        wanted = config(path, file.fileno(), n_gpu_layers=0, n_ctx=48)
        (need,) = dry_embedder(wanted, None)
        assert need.here == open_embedder(wanted, open_model(wanted, go_on), 48, None).taken()[0]


def test_a_dry_run_does_not_read_the_weights(tmp_path: Path) -> None:
    """The weights are cut off, and the file has its size again."""
    whole, cut = random_llama(), tmp_path / "cut.gguf"
    size = whole.stat().st_size
    weights = dry_size(whole) // 2
    cut.write_bytes(whole.read_bytes()[: size - weights])
    os.truncate(cut, size)
    with whole.open("rb") as one, cut.open("rb") as other:
        assert dry_run(config(whole, one.fileno()), [512]) == dry_run(config(cut, other.fileno()), [512])


def dry_size(path: Path) -> int:
    """The bytes of a model's weights."""
    with path.open("rb") as file:
        return open_model(config(path, file.fileno()), go_on, dry=True).size


# A model with more layers than a GPU can hold.


def test_as_many_layers_as_fit_go_to_the_gpus() -> None:
    measured: list[int] = []

    def measure(wanted: LlamaCppConfig) -> Need:
        layers = wanted.n_gpu_layers
        measured.append(layers)
        return Need(48, 1, {"G0": layers * 10, "G1": layers}, layers)

    path = random_llama(layers=16)
    with path.open("rb") as file:
        wanted = config(path, file.fileno())
        for room, least, layers in (
            ({"G0": 100}, 0, 10),
            ({"G0": 109}, 0, 10),
            ({"G0": 100, "G1": 7}, 0, 7),
            ({"G0": 1000, "G1": 1000}, 0, 16),  # at most all but the first
            ({"G0": 9, "G1": 9}, 0, 0),
            ({"G0": 9, "G1": 9}, 1, 1),
        ):
            assert fitting_part(wanted, measure, room, least).layers == layers, room
            assert len(measured) <= 5, "few dry runs"
            measured.clear()


def test_a_dry_run_tells_its_layers() -> None:
    with random_llama().open("rb") as file:
        for layers in (-1, 1):
            wanted = config(random_llama(), file.fileno(), n_gpu_layers=layers)
            assert [need.layers for need in dry_run(wanted, [512, 256])] == [layers, layers]


# The question of the process. Without a GPU, it asks only if it is told to.


class Asking:
    """A model in a process that asks for its memory."""

    def __init__(self, *granted: Need | GpuRoom | Exception | None, **options: Any) -> None:
        self.asked: list[Needs] = []
        self.granted = iter(granted)
        load = Load(name="m", model="m", path="m", n_ctx=1024, n_parallel=1, threads=1, **options)
        self.model = HostedModel(load, [os.open(random_llama(), os.O_RDONLY)], lambda *_: None)
        self.model.ask_first(self.grant, [1024, 512], always=True)
        self.pids: list[int] = []
        self.waits: asyncio.Event | None = None
        self.left = False

    async def grant(self, needs: Needs) -> Need | GpuRoom | None:
        self.asked.append(needs)
        self.pids.append(pid_of(self.model))
        try:
            if self.waits is not None:
                await self.waits.wait()
        finally:
            self.left = True
        granted = next(self.granted)
        if isinstance(granted, Exception):
            raise granted
        return granted


@pytest.mark.parametrize(("granted", "n_ctx"), [(Need(512, 7), 512), (None, 1024)])
async def test_a_process_loads_the_context_that_it_is_granted(granted: Need | None, n_ctx: int) -> None:
    asking = Asking(granted)
    model = asking.model
    try:
        await model.start()
        assert model.capabilities().n_ctx == n_ctx
        # The next process loads the same, and need not ask.
        os.kill(pid_of(model), 9)
        await until(lambda: restarts_of(model) == 1 and model._serving is not None)
        assert (await finish(await model.generate(ask(max_tokens=2)))).stop_reason == "length"
        assert model.capabilities().n_ctx == n_ctx
        assert len(asking.asked) == 1
    finally:
        await model.close()


# An engine process that believes in a GPU on which each layer takes ten bytes. It computes on the CPU.
ON_GPU = """
import sys
from inferd.engine.backend import Accelerator, Need
from inferd.engine.local.child import host, load

def dry_run(config, contexts):
    layers = config.n_gpu_layers
    return [Need(n, 1, {"G0": 10 * (layers if layers >= 0 else 3)}, layers) for n in contexts]

load.accelerator_of = lambda *_: Accelerator(kind="vulkan")
load.dry_run = dry_run
free = iter([100, 99])  # another program takes a byte between the two questions
load._llama.free_of_gpus = lambda: {"G0": next(free)}
host.serve()
"""


async def test_a_process_offloads_as_many_layers_as_there_is_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "on_gpu.py").write_text(ON_GPU)
    monkeypatch.setattr(spawned, "PROGRAM", "on_gpu")
    environment = {**spawned.environment(), "PYTHONPATH": str(tmp_path)}
    monkeypatch.setattr(spawned, "environment", lambda: environment)
    part = Need(512, 7, {"G0": 20}, 2)
    asking = Asking(GpuRoom({"G0": 25}), part)
    model = asking.model
    try:
        await model.start()
        whole, partly = ([(need.n_ctx, need.layers) for need in asked.sizes] for asked in asking.asked)
        assert whole == [(1024, -1), (512, -1)]
        assert partly == [(512, 2)]
        assert [asked.free for asked in asking.asked] == [{"G0": 100}] * 2, "the layers fit into this"
        assert model.capabilities().n_ctx == 512
        assert (model._settings.n_ctx, model._settings.n_gpu_layers) == (512, 2)
        # The next process loads the same, and need not ask.
        os.kill(pid_of(model), signal.SIGKILL)
        await until(lambda: restarts_of(model) == 1 and model._serving is not None)
        assert model.capabilities().n_ctx == 512
        assert len(asking.asked) == 2
    finally:
        await model.close()


@pytest.mark.parametrize(
    ("options", "least"), [({}, 0), ({"require_gpu": True}, 1), ({"force_backend": "vulkan"}, 1)]
)
async def test_a_gpu_that_must_be_used_gets_at_least_one_layer(
    options: dict[str, Any], least: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "on_gpu.py").write_text(ON_GPU)
    monkeypatch.setattr(spawned, "PROGRAM", "on_gpu")
    environment = {**spawned.environment(), "PYTHONPATH": str(tmp_path)}
    monkeypatch.setattr(spawned, "environment", lambda: environment)
    asking = Asking(GpuRoom({"G0": 5}), ModelTooLarge("it does not fit"), **options)
    try:
        with pytest.raises(ModelTooLarge):
            await asking.model.start()
        assert [need.layers for need in asking.asked[1].sizes] == [least]
    finally:
        await asking.model.close()


async def test_a_loaded_model_does_not_keep_its_grant() -> None:
    asking = Asking(None)
    model, kept = asking.model, weakref.ref(asking)
    try:
        await model.start()
        del asking
        gc.collect()
        assert kept() is None
    finally:
        await model.close()


async def test_no_room_is_made_for_a_process_that_has_died() -> None:
    asking = Asking(None)
    asking.waits = asyncio.Event()
    starting = asyncio.create_task(asking.model.start())
    await until(lambda: bool(asking.pids))
    os.kill(asking.pids[0], signal.SIGKILL)
    with pytest.raises(ModelError, match="SIGKILL"):
        await starting
    await until(lambda: asking.left)
    await asking.model.close()


async def test_a_refused_process_ends() -> None:
    asking = Asking(ModelTooLarge("too large"))
    with pytest.raises(ModelTooLarge):
        await asking.model.start()
    await until(lambda: is_gone(asking.pids[0]))
    await asking.model.close()
