"""The files of the prefix cache in the real daemon: they survive a restart, but only for their user."""

from __future__ import annotations

import json
import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inferd.client.admin import AdminClient
from tests.daemon_process import DaemonProcess
from tests.tiny_llama import random_llama, write_llama

Start = Callable[..., DaemonProcess]
LONG = "Remember: " + ", ".join(f"thing {n}" for n in range(25)) + "."


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture
def config(short_dir: Path, tiny: Path) -> Path:
    return write_config(short_dir / "config.json", tiny)


def write_config(path: Path, model: Path, n_ctx: int = 1024) -> Path:
    entry = {"kind": "llamacpp", "name": "chat", "model_path": str(model), "n_ctx": n_ctx}
    path.write_text(json.dumps({"backends": [entry]}))
    return path


def serve(daemon: Start, config: Path, **options: Any) -> DaemonProcess:
    """Each daemon of a test has the same home."""
    more = {"HOME": config.parent, "threads": 1, "active_permits": 1, **options}
    return daemon(backend="", config=config, **more).wait_ready()


def ask(process: DaemonProcess, text: str = LONG, **more: Any) -> dict[str, Any]:
    with process.connect() as wire:
        request = {
            "id": "q",
            "messages": [{"role": "user", "content": text}],
            "max_tokens": 4,
            "temperature": 0,
        }
        wire.send({**request, **more})
        done = [*wire.frames()][-1]
    assert done["type"] == "done", done
    return done


def stop(process: DaemonProcess) -> None:
    process.signal(signal.SIGTERM)
    assert process.wait() == 0


def directory(config: Path) -> Path:
    return config.parent / ".inferd" / "cache"


def states(config: Path) -> list[Path]:
    return sorted(directory(config).glob("*.state"))


def misses(process: DaemonProcess) -> dict[str, int]:
    with AdminClient(process.admin) as admin:
        counted: dict[str, int] = admin.status().metrics["backends"]["chat"]["cache_misses"]
    return counted


def test_the_prefix_cache_survives_a_restart(daemon: Start, short_dir: Path) -> None:
    config = write_config(short_dir / "config.json", random_llama())
    first = serve(daemon, config)
    before = ask(first)
    ask(first, "Something else that is to stay unknown. " * 9, cache=False)
    stop(first)
    (file,) = states(config)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(directory(config).stat().st_mode) == 0o700

    second = serve(daemon, config)
    after = ask(second)
    assert before["usage"].get("cached_tokens", 0) == 0
    assert after["usage"]["cached_tokens"] == after["usage"]["prompt_tokens"] - 2
    assert after["content"] == before["content"]
    with AdminClient(second.admin) as admin:
        (row,) = admin.status().backends
    assert row["engine"]["cache_disk_bytes"] == file.stat().st_size
    assert row["engine"]["cache_files_removed"] == 0


def test_a_damaged_file_is_removed_and_not_used(daemon: Start, config: Path) -> None:
    first = serve(daemon, config)
    before = ask(first)
    stop(first)
    (file,) = states(config)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)

    second = serve(daemon, config)
    after = ask(second)
    assert after["usage"].get("cached_tokens", 0) == 0
    assert after["content"] == before["content"]
    assert not file.exists()
    with AdminClient(second.admin) as admin:
        (row,) = admin.status().backends
    assert row["engine"]["cache_files_removed"] == 1
    assert ask(second)["usage"]["cached_tokens"] > 0


def test_a_file_of_another_context_is_not_used_and_reported(daemon: Start, config: Path, tiny: Path) -> None:
    first = serve(daemon, config)
    ask(first)
    stop(first)
    write_config(config, tiny, n_ctx=512)
    second = serve(daemon, config)
    assert states(config) == []
    assert ask(second)["usage"].get("cached_tokens", 0) == 0
    assert misses(second) == {"model": 1}


def test_a_restarted_engine_has_it_too(daemon: Start, config: Path) -> None:
    process = serve(daemon, config)
    ask(process)
    stop(process)
    process = serve(daemon, config)
    task = Path(f"/proc/{process.process.pid}/task/{process.process.pid}/children")
    (engine,) = task.read_text().split()
    os.kill(int(engine), signal.SIGKILL)
    process.wait_event("engine_started", 2)
    assert ask(process)["usage"]["cached_tokens"] > 0
    process.note_resources()


def test_the_log_says_why_a_prompt_was_computed_and_where_its_time_went(daemon: Start, config: Path) -> None:
    process = serve(daemon, config, log="debug")
    for text in (LONG, LONG[:80] + "Something else. " * 30, LONG):
        ask(process, text)
    missed = process.wait_event("prompt not cached", 2)
    assert [line["reason"] for line in missed] == ["first", "changed"]
    assert (missed[0]["equal_tokens"], 16 <= missed[1]["equal_tokens"] < missed[1]["prompt_tokens"]) == (
        0,
        True,
    )
    timed = process.wait_event("request timed", 3)
    assert len(process.events("prompt not cached")) == 2
    for line in timed:
        parts = [line[f"{part}_ms"] for part in ("thread", "prepare", "prefill", "loop", "first")]
        assert all(isinstance(part, float) for part in parts)
        assert line["first_ms"] > 0


def test_without_a_budget_nothing_is_written(daemon: Start, config: Path) -> None:
    process = serve(daemon, config, cache_disk_mib=0)
    ask(process)
    stop(process)
    assert not directory(config).exists()
