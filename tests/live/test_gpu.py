"""Models on a GPU: the dry run before a load, and the memory budget there.

Skipped unless exactly one GPU is visible: over several GPUs, llama.cpp divides a model by their free memory.
Mesa's software device counts as a GPU (CONTRIBUTING.md says how).
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inferd.cli.columns import megabytes
from inferd.client.admin import AdminClient
from inferd.engine.backend import Need
from inferd.engine.local import _llama
from inferd.engine.local.embedding import EmbeddingModel
from inferd.engine.local.llamacpp import LlamaCpp
from inferd.engine.local.opening import (
    LlamaCppConfig,
    dry_embedder,
    dry_run,
    open_draft,
    open_engine,
    open_model,
)
from inferd.store.gguf import PROCESS_BYTES, read_card
from inferd.store.models import ModelStore
from tests.cases import cases
from tests.daemon_process import DaemonProcess
from tests.live.test_engine_process import engines
from tests.shell import Shell
from tests.tiny_bert import write_bert
from tests.tiny_llama import RANDOM_WIDTH, random_llama, write_llama
from tests.tiny_model import stock
from tests.tiny_projector import write_vision_projector

Start = Callable[..., DaemonProcess]

GPUS = [*_llama.free_of_gpus()]
pytestmark = pytest.mark.skipif(len(GPUS) != 1, reason="not exactly one GPU is visible")

LONG = {"llama.context_length": 16384}


def config(path: Path, fd: int, **more: Any) -> LlamaCppConfig:
    return LlamaCppConfig(name="m", model="m", path=path, fd=fd, **{"n_parallel": 1, **more})


def need_of(path: Path, n_ctx: int, **more: Any) -> Need:
    with path.open("rb") as file:
        return dry_run(config(path, file.fileno(), **more), [n_ctx])[0]


def go_on(fraction: float) -> bool:
    return True


# The dry run.


@cases(
    "n_ctx, options",
    [
        (512, {}),
        (2048, {}),
        (512, {"n_gpu_layers": 1}),
        (512, {"kv_unified": True, "n_parallel": 3, "kv_cache_type": "q8_0"}),
    ],
)
def test_the_dry_run_of_a_model_is_exact(n_ctx: int, options: dict[str, Any]) -> None:
    with random_llama().open("rb") as file, random_llama().open("rb") as draft:
        wanted = config(random_llama(), file.fileno(), draft_fd=draft.fileno(), drafts="on", **options)
        (need,) = dry_run(wanted, [n_ctx])
        model = open_model(wanted, go_on)
        engine = open_engine(wanted, model, n_ctx, open_draft(wanted, go_on))
        assert engine.taken()[1] == need.gpus
        assert need.gpus[GPUS[0]] > 0


def test_the_dry_run_of_an_embedding_model_is_exact(tmp_path: Path) -> None:
    path = write_bert(tmp_path / "bert")
    with path.open("rb") as file:
        wanted = config(path, file.fileno(), n_ctx=48)
        (need,) = dry_embedder(wanted, None)
        loaded = EmbeddingModel.load(wanted, progress=lambda *_: None, cancelled=threading.Event())
        assert loaded._embedder.taken()[1] == need.gpus


def test_without_layers_on_a_gpu_nothing_of_a_model_is_there(tmp_path: Path) -> None:
    """Not its draft model or projector either, and no buffer for prompts."""
    more = {"projector": write_vision_projector(tmp_path / "projector", RANDOM_WIDTH), "drafts": "on"}
    with random_llama().open("rb") as file, random_llama().open("rb") as draft:
        wanted = config(random_llama(), file.fileno(), draft_fd=draft.fileno(), **more)
        (one,), (none,) = (dry_run(replace(wanted, n_gpu_layers=layers), [512]) for layers in (1, 0))
        (less,) = dry_run(replace(wanted, n_gpu_layers=1, projector=None), [512])
        assert one.gpus[GPUS[0]] > less.gpus[GPUS[0]]
        assert none.gpus == {}
        assert none.here > one.here
        loaded = LlamaCpp.load(
            replace(wanted, n_gpu_layers=0), progress=lambda *_: None, cancelled=threading.Event()
        )
        assert loaded.gpus == {}


# The budget.


class Daemon:
    """A daemon with models on demand. ``a`` and ``b`` in its store are the same model of 512 tokens."""

    def __init__(
        self, start: Start, directory: Path, budget: int, model: Path, ram: int = 0, **entry: Any
    ) -> None:
        home, file = directory / "models", directory / "config.json"
        entries = [{"kind": "llamacpp", "name": name, "model": {"name": name}, **entry} for name in "ab"]
        for name in "ab":
            # The files differ, since the store keeps equal ones once.
            stock(ModelStore(home), name, model.read_bytes() + name.encode())
        backends = [{"kind": "mock", "name": "main"}, *({**each, "preload": False} for each in entries)]
        limits = {"gpu_memory_budget_bytes": budget, "memory_budget_bytes": ram}
        file.write_text(json.dumps({"backends": backends, "limits": limits}))
        options = {"backend": "", "config": file, "MODELS_HOME": home, "threads": 1, "active_permits": 1}
        self.process = start(**options).wait_ready()

    def ask(self, model: str) -> dict[str, Any]:
        with self.process.connect() as client:
            message = {"role": "user", "content": "hi"}
            client.send({"id": "q", "model": model, "messages": [message], "max_tokens": 2})
            return [*client.frames()][-1]

    def taken(self) -> dict[str, dict[str, int]]:
        """What each resident model takes of the GPUs."""
        with AdminClient(self.process.admin) as admin:
            rows = admin.status().backends
            return {row["name"]: row["engine"]["gpu_bytes"] for row in rows if row["engine"]}


def test_two_models_take_turns_on_a_gpu_without_room_for_both(daemon: Start, short_dir: Path) -> None:
    need = need_of(random_llama(), 512).gpus
    held = Daemon(daemon, short_dir, need[GPUS[0]] * 3 // 2, random_llama(), n_ctx=512)
    for name in ("a", "b", "a"):
        done = held.ask(name)
        assert (done["type"], done["model"]) == ("done", name)
        assert held.taken() == {name: need}
    held.process.note_resources()


def test_two_models_stay_on_a_gpu_with_room_for_both(daemon: Start, short_dir: Path) -> None:
    need = need_of(random_llama(), 512).gpus
    held = Daemon(daemon, short_dir, need[GPUS[0]] * 2, random_llama(), n_ctx=512)
    assert [held.ask(name)["type"] for name in "ab"] == ["done", "done"]
    assert held.taken() == {"a": need, "b": need}
    lines = Shell(held.process.dir)("ps").stdout.splitlines()
    assert sum(f", {megabytes(need[GPUS[0]])}" in line for line in lines) == 2
    held.process.note_resources()


def test_the_weights_on_a_gpu_need_no_room_in_ram(daemon: Start, short_dir: Path) -> None:
    with random_llama().open("rb") as file:
        by_header = read_card(file.fileno()).memory_bytes(512, 1)
    need = need_of(random_llama(), 512)
    assert need.here + PROCESS_BYTES < by_header - 1
    held = Daemon(daemon, short_dir, 0, random_llama(), ram=by_header - 1, n_ctx=512)
    assert held.ask("a")["type"] == "done"
    held.process.note_resources()


def test_a_gpu_that_is_too_small_gets_as_many_layers_as_fit(daemon: Start, short_dir: Path) -> None:
    model = random_llama(layers=8)
    part = need_of(model, 512, n_gpu_layers=4).gpus
    held = Daemon(daemon, short_dir, part[GPUS[0]], model, n_ctx=512)
    assert held.ask("a")["type"] == "done"
    assert held.taken() == {"a": part}
    assert ", 4 of 9 layers" in Shell(held.process.dir)("ps").stdout
    (event,) = held.process.events("gpu_too_small")
    assert (event["backend"], event["gpu_layers"]) == ("a", 4)
    (child,) = engines(held.process)
    os.kill(child, signal.SIGKILL)
    held.process.wait_event("engine_died")
    assert held.ask("a")["type"] == "done"
    assert held.taken() == {"a": part}, "the next process loads the same layers"
    held.process.note_resources()


def test_a_model_runs_without_a_gpu_that_is_too_small_for_a_layer(daemon: Start, short_dir: Path) -> None:
    held = Daemon(daemon, short_dir, 1, random_llama(), n_ctx=512)
    assert held.ask("a")["type"] == "done"
    assert held.taken() == {"a": {}}
    (event,) = held.process.events("gpu_too_small")
    assert event["gpu_layers"] == 0
    held.process.note_resources()


def test_a_start_gives_a_small_gpu_as_many_layers_as_fit(daemon: Start, short_dir: Path) -> None:
    model, file = random_llama(layers=8), short_dir / "config.json"
    part = need_of(model, 512, n_gpu_layers=4).gpus
    entry = {"kind": "llamacpp", "name": "main", "model_path": str(model), "n_ctx": 512}
    limits = {"gpu_memory_budget_bytes": part[GPUS[0]]}
    file.write_text(json.dumps({"backends": [entry], "limits": limits}))
    process = daemon(backend="", config=file, threads=1, active_permits=1).wait_ready()
    with AdminClient(process.admin) as admin:
        (row,) = admin.status().backends
    assert (row["gpu_layers"], row["layers"], row["engine"]["gpu_bytes"]) == (4, 9, part)


def test_a_set_number_of_layers_is_refused_before_the_weights_are_read(
    daemon: Start, short_dir: Path
) -> None:
    need = need_of(random_llama(), 512).gpus[GPUS[0]]
    held = Daemon(daemon, short_dir, need - 1, random_llama(), n_ctx=512, n_gpu_layers=3)
    with AdminClient(held.process.admin) as admin:
        admin.snapshot()
        refused = held.ask("a")
        assert refused["code"] == "backend_unavailable"
        assert f"needs about {need >> 20} MiB on {GPUS[0]}" in refused["message"]
        assert "raise limits.gpu_memory_budget_bytes" in refused["message"]
        phases = []
        while (event := next(admin.events())).get("state") != "failed":
            phases.append(event.get("phase"))
    assert "mmap" not in phases
    assert engines(held.process) == []


def test_the_largest_context_with_room_on_the_gpu_is_chosen(daemon: Start, short_dir: Path) -> None:
    model = write_llama(short_dir / "long.gguf", keys=LONG)
    need = need_of(model, 4096).gpus
    held = Daemon(daemon, short_dir, need[GPUS[0]], model)
    assert held.ask("a")["type"] == "done"
    assert held.taken() == {"a": need}
    held.process.note_resources()


# A reload.


def write_config(path: Path, name: str, n_ctx: int, budget: int) -> None:
    model = {"model_path": str(random_llama()), "n_ctx": n_ctx, "n_gpu_layers": 3}
    entry = {"kind": "llamacpp", "name": name, **model}
    path.write_text(json.dumps({"backends": [entry], "limits": {"gpu_memory_budget_bytes": budget}}))


@pytest.fixture
def reloading(daemon: Start, short_dir: Path) -> Callable[[str, int], DaemonProcess]:
    """Reloads a daemon with a model of 512 tokens, on a GPU with room for one and a half."""
    file = short_dir / "config.json"
    budget = need_of(random_llama(), 512).gpus[GPUS[0]] * 3 // 2
    write_config(file, "old", 512, budget)
    process = daemon(backend="", config=file, threads=1, active_permits=1).wait_ready()

    def reload(name: str, n_ctx: int) -> DaemonProcess:
        write_config(file, name, n_ctx, budget)
        process.signal(signal.SIGHUP)
        return process

    return reload


def test_a_reload_exchanges_models_that_do_not_fit_together(
    reloading: Callable[[str, int], DaemonProcess],
) -> None:
    process = reloading("new", 512)
    process.wait_event("reloaded")
    told = [event["msg"] for event in process.events()]
    steps = ("making_room", "model_rests", "engine_started", "reloaded")
    assert [msg for msg in told if msg in steps] == ["engine_started", *steps]
    process.note_resources()


def test_a_model_that_no_gpu_can_hold_does_not_put_the_old_one_to_rest(
    reloading: Callable[[str, int], DaemonProcess],
) -> None:
    process = reloading("new", 1 << 16)
    before = engines(process)
    (failed,) = process.wait_event("reload_failed")
    assert f"MiB on {GPUS[0]}" in failed["error"]
    assert "making_room" not in [event["msg"] for event in process.events()]
    assert engines(process) == before
    process.note_resources()
