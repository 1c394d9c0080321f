"""Downloads that clients of the admin socket ask for: what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest

from inferd.config.settings import Settings
from inferd.daemon import pulls
from inferd.daemon.pulls import MAX_PULLS, Pulls
from inferd.errors import InvalidRequest, ModelNotFound

pytestmark = pytest.mark.both_loops


def ignore(phase: str, details: Mapping[str, object]) -> None:
    pass


async def test_a_daemon_without_downloads_starts_none(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="auto_pull"):
        await Pulls(lambda: Settings(models_home=tmp_path, auto_pull=False)).pull("smollm2", ignore)


async def test_an_unknown_name_and_another_source_are_refused(tmp_path: Path) -> None:
    one = Pulls(lambda: Settings(models_home=tmp_path))
    with pytest.raises(ModelNotFound):
        await one.pull("none", ignore)
    for source in ("https://localhost/m.gguf", "file:/m.gguf", "pypi:m==1/m.gguf"):
        with pytest.raises(InvalidRequest, match="inferd pull"):
            await one.pull(source, ignore)


async def test_few_models_are_downloaded_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(store: object, text: str, show: object, cancelled: object) -> str:
        assert hasattr(cancelled, "wait")
        cancelled.wait()
        return text

    monkeypatch.setattr(pulls, "_fetch", fetch)
    one = Pulls(lambda: Settings(models_home=tmp_path))
    running = [asyncio.create_task(one.pull(str(number), ignore)) for number in range(MAX_PULLS)]
    await asyncio.sleep(0)
    with pytest.raises(InvalidRequest, match=f"{MAX_PULLS} models"):
        await one.pull("more", ignore)
    for task in running:
        task.cancel()
    await asyncio.wait(running)
