"""``inferd cache``, and the cache in ``inferd status``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from inferd import cli
from inferd.cli.status import cache_line, guess_line
from inferd.config import paths
from inferd.store.states import StateFiles
from tests.unit.test_states import head, save

Capture = pytest.CaptureFixture[str]


def test_show_and_clear(home: Path, capsys: Capture) -> None:
    assert cli.main(["cache", "show"]) == 0
    assert capsys.readouterr().out == f"{paths.cache_dir()}: 0 files, 0 MB\n"
    files = StateFiles(paths.cache_dir(), 1 << 20)
    save(files, head())
    assert cli.main(["cache", "show"]) == 0
    assert f"{paths.cache_dir()}: 1 files, 0 MB" in capsys.readouterr().out
    assert cli.main(["cache", "show", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["files"], shown["bytes"]) == (1, files.files()[0].bytes)
    assert cli.main(["cache", "clear"]) == 0
    assert capsys.readouterr().out == "1 files removed\n"
    assert [*paths.cache_dir().glob("*.state")] == []


def test_the_line_of_status() -> None:
    numbers = {
        "cache_hits": 3,
        "cache_misses": {"first": 1, "evicted": 1},
        "cache_tokens": 4100,
        "cache_bytes": 7 * 10**6,
    }
    row = {"engine": {"cache_disk_bytes": 25 * 10**6}}
    assert cache_line(row, numbers) == (
        "  cache: 4,100 tokens held, 7 MB in memory, 25 MB on disk,"
        " 3 of 5 requests found half of their prompt or more; the others: 1 first, 1 evicted"
    )
    assert cache_line(row, None) == "  cache: 0 tokens held, 0 MB in memory, 25 MB on disk"
    assert cache_line({"engine": None}, {**numbers, "cache_hits": 0, "cache_misses": {}}) == ""


def test_the_line_of_drafts_and_pools() -> None:
    assert guess_line(None) == ""
    assert guess_line({"drafted_tokens": 0, "accepted_tokens": 0, "routed": {}}) == ""
    assert guess_line({"drafted_tokens": 3000, "accepted_tokens": 1200, "routed": {}}) == (
        "  drafts: 1,200 of 3,000 tokens accepted"
    )
    numbers = {"drafted_tokens": 0, "routed": {"least": 1200, "spill": 2, "retry": 0}}
    assert guess_line(numbers) == "  routed: 1,200 least, 2 spill"
