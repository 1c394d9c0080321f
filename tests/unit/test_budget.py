"""The memory budget: what is available, and what the loaded models already hold of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from inferd.daemon import memory
from tests.home import Home


def test_the_budget_is_a_share_of_the_available_and_of_the_private_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 1000)
    assert memory.budget_bytes(0) == 800
    assert memory.budget_bytes(500) == 1200
    assert memory.budget_bytes(500, asked=77) == 77
    monkeypatch.setattr(memory, "available_bytes", lambda: 0)
    assert memory.budget_bytes(500) == 0, "unknown"


@pytest.mark.parametrize(("limit", "room"), [("max", 0), ("5000", 4000), ("900", 1)])
def test_cached_files_leave_room_in_a_cgroup(
    limit: str, room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Path("/proc/self/cgroup").read_text().rpartition("::")[2].strip().lstrip("/")
    group = tmp_path / own
    group.mkdir(parents=True, exist_ok=True)
    (group / "memory.max").write_text(f"{limit}\n")
    (group / "memory.current").write_text("4000\n")
    (group / "memory.stat").write_text("anon 900\nfile 3100\nshmem 100\n")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert memory._group_room() == room


async def test_the_mapped_file_of_a_model_is_not_counted_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The models of this test hold no private memory: the system can take all of it back."""
    home = Home(tmp_path)
    need = home.need("a")
    monkeypatch.setattr(memory, "available_bytes", lambda: int(1.5 * need / memory.SHARE))
    await home.use("a")
    await home.use("b")
    assert home.resident() == {"b"}
    await home.models.close()
