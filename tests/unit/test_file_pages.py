"""The pages of a mapped file that inferd gives back."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import pytest

from inferd.engine.local import file_pages
from tests.unit.test_llamacpp import backend

SIZE = 4 << 20


def resident(path: Path) -> int:
    """The resident bytes of this process's mappings of a file."""
    found, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            ours = line.endswith(str(path))
        elif ours and line.startswith("Rss:"):
            found += int(line.split()[1]) << 10
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_the_pages_of_a_file_are_given_back_and_come_again(tmp_path: Path) -> None:
    path, other = tmp_path / "model", tmp_path / "other"
    for each in (path, other):
        each.write_bytes(bytes(range(256)) * (SIZE // 256))
    with path.open("rb") as file, other.open("rb") as beside:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        kept = mmap.mmap(beside.fileno(), 0, access=mmap.ACCESS_READ)
        assert sum(mapped[::4096]) == sum(kept[::4096])
        assert resident(path) == resident(other) == SIZE
        assert file_pages.give_back(file.fileno()) == SIZE
        assert resident(path) == 0
        assert resident(other) == SIZE
        assert mapped[:] == kept[:]
        mapped.close()
        kept.close()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
async def test_a_load_gives_back_the_pages_of_its_file(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []

    def give_back(*files: int) -> int:
        given.append(file_pages.give_back(*files))
        assert resident(tiny_llama) == 0
        return given[-1]

    monkeypatch.setattr("inferd.engine.local.llamacpp.give_back", give_back)
    async with backend(tiny_llama):
        assert given[0] > 0
