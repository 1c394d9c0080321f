"""Every test that SECURITY.md names exists, so that every listed guard is tested."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "SECURITY.md").read_text()
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::([\w:]+)`", TEXT)))


DEFINED = re.compile(r"^(    )?(?:async )?(class|def) (\w+)", re.M)


def names(file: str) -> set[str]:
    """The functions of a file, those of its classes too, as pytest calls them."""
    found: set[str] = set()
    within = ""
    for inner, kind, name in DEFINED.findall((ROOT / file).read_text()):
        if kind == "class":
            within = f"{name}::"
        else:
            found.add(f"{within}{name}" if inner else name)
    return found


def test_every_named_test_exists() -> None:
    in_file = {file: names(file) for file, _ in NAMED}
    assert [f"{file}::{name}" for file, name in NAMED if name not in in_file[file]] == []


def test_every_threat_names_a_test() -> None:
    rows = [line for line in TEXT.splitlines() if line.startswith("| F-")]
    assert len(rows) > 20
    numbers = [row.split("|")[1].strip() for row in rows]
    assert numbers == [f"F-{number}" for number in range(1, len(rows) + 1)]
    assert [row for row in rows if not re.search(r"`tests/[\w/]+\.py::[\w:]+`", row)] == []
