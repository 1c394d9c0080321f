"""The man pages in packaging/man are those of the commands, and man can read them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from inferd.cli import man
from inferd.cli.commands import COMMANDS

DIRECTORY = Path(__file__).parents[2] / "packaging" / "man"


def test_the_pages_are_those_of_the_commands() -> None:
    made = man.pages()
    assert {f"inferd-{name}.1" for name in COMMANDS} < made.keys()
    assert {path.name: path.read_text() for path in DIRECTORY.iterdir()} == made, (
        "run: python -m inferd.cli.man packaging/man"
    )


@pytest.mark.skipif(shutil.which("groff") is None, reason="needs groff")
def test_man_can_read_the_pages() -> None:
    for path in sorted(DIRECTORY.iterdir()):
        command = ["groff", "-Kutf8", "-man", "-Tutf8", "-P-c", "-ww", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stderr == "", path
        assert "SYNOPSIS" in re.sub(".\b", "", done.stdout)
