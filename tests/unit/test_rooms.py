"""The sizes of folders and files: a folder of the engine is one idea, and a long file says why it is long."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = {".py", ".pyx", ".pxi", ".pxd", ".pyi", ".h", ".cpp", ".js"}
MOST_FILES = 16
MOST_LINES = 400
HEAD_LINES = 25


def test_a_folder_of_the_engine_has_few_files() -> None:
    folders = [folder for folder in (ROOT / "src/inferd/engine").rglob("*") if folder.is_dir()]
    counts = {folder: sum(file.suffix in SOURCES for file in folder.iterdir()) for folder in folders}
    assert len(counts) > 10
    assert {folder: count for folder, count in counts.items() if count > MOST_FILES} == {}


def test_a_long_file_says_why_it_is_long() -> None:
    places = (ROOT / name for name in ("src/inferd", "tests", "bench", "packaging", "examples"))
    files = [file for place in places for file in place.rglob("*") if file.suffix in SOURCES]
    lines = {file.relative_to(ROOT).as_posix(): file.read_text("utf-8").splitlines() for file in files}
    long = {name: "\n".join(found[:HEAD_LINES]) for name, found in lines.items() if len(found) > MOST_LINES}
    assert len(long) > 5
    assert [name for name, head in long.items() if "ver 400 lines" not in head] == []
