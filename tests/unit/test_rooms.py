"""The sizes of folders and files: engine folders are small, and the head of a long file gives the reason."""

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


def test_the_long_files_alone_give_a_reason_in_their_heads() -> None:
    places = (ROOT / name for name in ("src/inferd", "tests", "bench", "packaging", "examples"))
    files = [file for place in places for file in place.rglob("*") if file.suffix in SOURCES]
    lines = {file.relative_to(ROOT).as_posix(): file.read_text("utf-8").splitlines() for file in files}
    heads = {name: "\n".join(found[:HEAD_LINES]) for name, found in lines.items()}
    long = {name for name, found in lines.items() if len(found) > MOST_LINES}
    assert len(long) > 5
    assert {name for name, head in heads.items() if "over 400 lines" in head.lower()} == long
