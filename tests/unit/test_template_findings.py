"""What the chat templates of stored models support: found by a real engine process, kept, and shown."""

from __future__ import annotations

import asyncio
import math
import os
import re
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from inferd import cli
from inferd.config import paths
from inferd.config.entries import LlamaCppEntry, ModelSpec
from inferd.config.settings import Settings
from inferd.daemon import templates
from inferd.daemon.build import build_backend
from inferd.daemon.residency import Residency
from inferd.daemon.templates import Findings, Source, analysis_of, findings
from inferd.engine.local import _llama
from inferd.engine.local.child import messages as m
from inferd.engine.local.child import spawned
from inferd.engine.local.child.load import (
    ANALYSIS_CPU_SECS,
    analyse_template,
    cage_profile,
    load_model,
    preload_modules,
)
from inferd.engine.local.child.messages import Load, Template
from inferd.engine.local.child.process import EngineProcess, Patience
from inferd.engine.mock import Mock
from inferd.errors import ModelError
from inferd.progress import Progress, ignored
from inferd.serve.router import Router
from inferd.store.models import ModelStore
from tests.daemon_process import is_gone
from tests.in_process import PATIENCE_SECS, until
from tests.tiny_llama import write_llama, write_model
from tests.tiny_model import stock

VENDORED = Path(__file__).parents[2] / "vendor/llama.cpp/models/templates"
THINKS = (VENDORED / "LFM2-8B-A1B.jinja").read_text()
"""It turns thinking on and off, but has none of the marks by which its text could be recognised."""
NO_TOOLS = (VENDORED / "fireworks-ai-llama-3-firefunction-v2.jinja").read_text()
"""It mentions tools, but describes none to the model, because it expects them in a form of its own."""


class Home:
    """A store in ``directory`` with ``models`` by name, and the residency over it."""

    def __init__(self, directory: Path, models: Mapping[str, Path], *entries: LlamaCppEntry) -> None:
        self.store = ModelStore(directory / "store")
        self.files = {name: stock(self.store, name, path.read_bytes()) for name, path in models.items()}
        for path in self.files.values():  # as after a download
            self.store.write_stamp(path.parent.name, path.stat())
        self.settings = Settings(models_home=self.store.home, backends=entries, active_permits=1, threads=1)
        self.models = Residency(Router([Mock("main")]), build_backend, self.settings, lambda *_: None)

    async def listing(self) -> dict[str, tuple[object, object]]:
        """Which models support tools and thinking, as the listing has it now."""
        rows = await self.models.listing()
        return {str(row["name"]): (row["tools"], row["thinking"]) for row in rows}

    async def analysed(self) -> None:
        """Returns when no template waits for its analysis."""
        await until(lambda: self.models._directory._analyses._work is None)

    async def settled(self) -> dict[str, tuple[object, object]]:
        """The listing after the analyses that a first one begins."""
        await self.listing()
        await self.analysed()
        return await self.listing()


class Started(list[EngineProcess]):
    """The processes that analysed templates since ``watch``. ``signal`` is sent to each at its start. Their
    patience is endless."""

    def __init__(self) -> None:
        self.signal = 0
        self.most_at_once = 0
        self.priorities: list[int] = []

    def watch(self, monkeypatch: pytest.MonkeyPatch) -> Started:
        started = self

        class Watched(EngineProcess):
            def __init__(self, name: str, on_exit: object, patience: Patience) -> None:
                super().__init__(name, lambda reason: None, Patience(hang_secs=math.inf))
                started.append(self)
                running = [each for each in started if not is_gone(each.pid)]
                started.most_at_once = max(started.most_at_once, len(running))

            async def load(self, load: Load, fds: Sequence[int], progress: Progress) -> m.Loaded:
                started.priorities.append(os.getpriority(os.PRIO_PROCESS, self.pid))
                os.kill(self.pid, started.signal)
                return await super().load(load, fds, progress)

        monkeypatch.setattr(templates, "EngineProcess", Watched)
        return self


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    return Started().watch(monkeypatch)


@pytest.fixture
def thinker(tmp_path: Path, home: Path) -> Home:
    return Home(home, {"thinker": write_llama(tmp_path / "thinker.gguf", template=THINKS)})


async def test_a_listing_guesses_first_and_then_knows(tmp_path: Path, home: Path) -> None:
    toolless = write_llama(tmp_path / "toolless.gguf", template=NO_TOOLS)
    there = Home(home, {"t": write_llama(tmp_path / "t.gguf", template=THINKS), "toolless": toolless})
    assert await there.listing() == {"t": (True, False), "toolless": (True, False)}
    await there.analysed()
    assert await there.listing() == {"t": (True, True), "toolless": (False, False)}
    await there.models.close()


async def test_each_model_is_analysed_once_by_one_process_at_a_time(
    tmp_path: Path, home: Path, started: Started
) -> None:
    one, other = (write_llama(tmp_path / str(n), template=text) for n, text in enumerate((THINKS, NO_TOOLS)))
    there = Home(home, {"a": one, "b": other, "copy": one})
    for _ in range(3):
        await there.listing()
    await there.settled()
    assert (len(started), started.most_at_once) == (2, 1)
    assert started.priorities == [templates.LOWEST_PRIORITY] * 2
    await there.models.close()
    again = Home(home, {})
    assert (await again.listing())["copy"] == (True, True)
    assert len(started) == 2
    await again.models.close()


async def test_more_models_than_the_file_keeps_are_analysed_once(
    tmp_path: Path, home: Path, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(templates, "MAX_FINDINGS", 1)
    one, other = (write_llama(tmp_path / str(n), template=text) for n, text in enumerate((THINKS, NO_TOOLS)))
    there = Home(home, {"a": one, "b": other})
    for _ in range(2):
        assert await there.settled() == {"a": (True, True), "b": (False, False)}
    await there.analysed()
    assert len(started) == 2
    await there.models.close()


async def test_a_load_makes_an_analysis_needless(thinker: Home, started: Started) -> None:
    async with thinker.models.hold("thinker", None):
        assert await thinker.listing() == {"thinker": (True, True)}
    await thinker.models.close()
    assert not started
    assert findings().all() == {thinker.files["thinker"].parent.name: Template(tools=True, thinking=True)}
    assert paths.templates_path().stat().st_mode & 0o777 == 0o600


async def test_a_model_that_ends_its_process_keeps_the_guess_and_is_not_tried_again(
    thinker: Home, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    started.signal = signal.SIGSEGV
    assert await thinker.settled() == {"thinker": (True, False)}
    templates._findings.cache_clear()  # as in a new process
    assert await Home(thinker.store.home.parent, {}).settled() == {"thinker": (True, False)}
    assert [is_gone(each.pid) for each in started] == [True]
    started.signal = 0
    monkeypatch.setattr(templates, "__version__", "another")
    templates._findings.cache_clear()  # as in a new process
    other = Home(thinker.store.home.parent, {})
    assert await other.settled() == {"thinker": (True, True)}
    assert len(started) == 2
    for each in (thinker, other):
        await each.models.close()


async def test_a_killed_analysis_is_tried_again_by_the_next_daemon(thinker: Home, started: Started) -> None:
    started.signal = signal.SIGKILL
    for _ in range(2):
        assert await thinker.settled() == {"thinker": (True, False)}
    assert len(started) == 1
    findings().add("another", None)  # which writes the file
    await thinker.models.close()
    started.signal = 0
    templates._findings.cache_clear()  # as in a new process
    assert findings().all() == {"another": None}
    again = Home(thinker.store.home.parent, {})
    assert await again.settled() == {"thinker": (True, True)}
    await again.models.close()


async def test_a_load_replaces_a_failure(thinker: Home, started: Started) -> None:
    started.signal = signal.SIGKILL
    await thinker.settled()
    async with thinker.models.hold("thinker", None):
        assert await thinker.listing() == {"thinker": (True, True)}
    await thinker.models.close()


async def test_a_process_that_hangs_is_ended(
    thinker: Home, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(templates, "ANALYSIS_SECS", 0.01)
    started.signal = signal.SIGSTOP
    assert await thinker.settled() == {"thinker": (True, False)}
    assert [is_gone(each.pid) for each in started] == [True]
    assert list(findings().all().values()) == [None]
    await thinker.models.close()


async def test_a_stop_ends_an_analysis_without_a_finding(
    thinker: Home, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spawned, "END_SECS", math.inf)  # it does not wait for the process to end by itself
    started.signal = signal.SIGSTOP
    await thinker.listing()
    await until(lambda: len(started.priorities) == 1)
    await asyncio.wait_for(thinker.models.close(), PATIENCE_SECS)
    assert is_gone(started[0].pid)
    assert not findings().all()
    await thinker.listing()  # the admin socket is open until the end
    await thinker.analysed()
    assert len(started) == 1


async def test_the_first_listing_of_a_daemon_that_has_stopped_starts_no_analysis(
    thinker: Home, started: Started
) -> None:
    await thinker.models.close()
    await thinker.listing()
    await thinker.analysed()
    assert not started


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b"\xff\x00"),
        lambda path: path.write_text('{"version": "0.9.0", "templates": {"a": 3}}'),
        lambda path: path.write_text("[" * 100_000),
        lambda path: path.unlink(),
    ],
)
async def test_a_damaged_file_is_replaced(thinker: Home, damage: Callable[[Path], None]) -> None:
    await thinker.settled()
    await thinker.models.close()
    path = paths.templates_path()
    whole = path.read_bytes()
    damage(path)
    templates._findings.cache_clear()  # as in a new process
    again = Home(thinker.store.home.parent, {})
    assert await again.listing() == {"thinker": (True, False)}
    await again.analysed()
    assert await again.listing() == {"thinker": (True, True)}
    assert path.read_bytes() == whole
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    await again.models.close()


def test_the_file_keeps_the_newest_findings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "MAX_FINDINGS", 2)
    found = Findings(tmp_path / "there" / "templates.json")
    for key in "abc":
        found.add(key, None)
    found.add("b", Template(tools=True, thinking=False))
    assert list(Findings(tmp_path / "there" / "templates.json").all()) == ["b", "c"]


def test_a_file_that_cannot_be_written_costs_only_the_memory_of_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "templates.json").mkdir()
    for directory in (tmp_path / "file", tmp_path):
        found = Findings(directory / "templates.json")
        found.add("a", None)
        assert found.all() == {"a": None}
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "templates.json"]


async def test_a_file_that_changes_is_analysed_anew(tmp_path: Path, home: Path, started: Started) -> None:
    path = write_llama(tmp_path / "t.gguf", template=NO_TOOLS)
    entry = LlamaCppEntry(name="mine", model_path=path, preload=False)
    there = Home(home, {}, entry)
    assert await there.settled() == {"mine": (False, False)}
    write_llama(path, template=THINKS)
    assert await there.settled() == {"mine": (True, True)}
    assert len(started) == 2
    await there.models.close()


async def test_a_damaged_model_of_the_store_is_another_one(thinker: Home, tmp_path: Path) -> None:
    assert await thinker.settled() == {"thinker": (True, True)}
    thinker.files["thinker"].write_bytes(write_llama(tmp_path / "t", template=NO_TOOLS).read_bytes())
    assert await thinker.settled() == {"thinker": (False, False)}
    await thinker.models.close()


async def test_the_template_of_an_entry_counts(thinker: Home, tmp_path: Path, started: Started) -> None:
    replacement = tmp_path / "template.jinja"
    replacement.write_text(NO_TOOLS)
    entry = LlamaCppEntry(
        name="mine", model=ModelSpec(name="thinker"), chat_template_file=replacement, preload=False
    )
    there = Home(thinker.store.home.parent, {}, entry)
    assert await there.settled() == {"mine": (False, False)}
    replacement.write_text(THINKS)
    assert await there.settled() == {"mine": (True, True)}
    replacement.unlink()  # a load would fail
    assert await there.settled() == {"mine": (True, False)}
    assert len(started) == 2
    await there.models.close()


async def test_a_model_for_vectors_supports_neither(tmp_path: Path, home: Path, started: Started) -> None:
    pooled = write_llama(tmp_path / "p.gguf", template=THINKS, keys={"llama.pooling_type": 3})
    forced = LlamaCppEntry(name="forced", model=ModelSpec(name="plain"), embed=True, preload=False)
    plain = write_llama(tmp_path / "plain.gguf", template=THINKS)
    there = Home(home, {"pooled": pooled, "plain": plain}, forced)
    assert await there.settled() == {"pooled": (False, False), "forced": (False, False)}
    assert not started
    await there.models.close()


async def test_the_analysis_is_in_the_sandbox_with_limits(thinker: Home) -> None:
    source = Source("thinker", thinker.files["thinker"])
    process = EngineProcess("test", lambda reason: None, Patience())
    with source.opened() as fd:
        loaded = await process.load(analysis_of(source), [fd], ignored)
        status, limits = (read_of(process.pid, name) for name in ("status", "limits"))
        await process.close()
    assert loaded.template == Template(tools=True, thinking=True)
    assert (loaded.cage["seccomp"], loaded.cage["no_new_privs"]) == ("yes", "yes")
    assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")
    assert int(limits["Max cpu time"]) == ANALYSIS_CPU_SECS
    assert int(limits["Max data size"]) < 2 << 30


def read_of(pid: int, name: str) -> dict[str, str]:
    """The keys of a file of a process in /proc, each with the first word of its value."""
    lines = Path(f"/proc/{pid}/{name}").read_text().splitlines()
    split = (re.match(r"(.+?)(?::\s+|\s{2,})(\S+)", line) for line in lines)
    return {found[1]: found[2] for found in split if found}


def test_the_analysis_needs_no_weights_and_no_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {"general.architecture": "llama", "llama.context_length": 8, "llama.embedding_length": 8}
    path = write_model(tmp_path / "t.gguf", keys, {"token_embd.weight": np.ones((8192, 8), np.float32)})
    load = Load(name="t", model="t", path=str(path), n_parallel=1)
    analysis = analysis_of(Source("t", path, template=THINKS))
    with path.open("rb") as file, monkeypatch.context() as changed:
        changed.setattr(_llama, "devices", lambda: pytest.fail("this starts the driver of a GPU"))
        preload_modules(analysis)
        assert cage_profile(analysis) == "cpu"
        assert analyse_template(analysis, file.fileno()) == Template(tools=True, thinking=True)
    with path.open("rb") as file, pytest.raises(ModelError):
        load_model(load, [file.fileno()], ignored)


async def test_the_first_file_of_a_split_model_suffices(tmp_path: Path, home: Path) -> None:
    path = write_llama(tmp_path / "t.gguf", files=3, template=THINKS)
    there = Home(home, {}, LlamaCppEntry(name="split", model_path=path, preload=False))
    assert await there.settled() == {"split": (True, True)}
    await there.models.close()


def test_show_analyses_at_once(
    thinker: Home, capsys: pytest.CaptureFixture[str], started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELS_HOME", str(thinker.store.home))
    for _ in range(2):
        assert cli.main(["show", "thinker"]) == 0
        assert "yes, with tools and thinking" in capsys.readouterr().out
    assert len(started) == 1


def test_show_prints_the_guess_if_the_analysis_fails(
    thinker: Home, capsys: pytest.CaptureFixture[str], started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELS_HOME", str(thinker.store.home))
    started.signal = signal.SIGKILL
    for _ in range(2):
        assert cli.main(["show", "thinker"]) == 0
        assert "yes, with tools\n" in capsys.readouterr().out
    assert len(started) == 1
