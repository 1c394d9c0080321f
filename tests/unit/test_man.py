"""There is a man page for every command, and man can read it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from inferd.cli import man
from inferd.cli.commands import COMMANDS


def test_every_command_has_a_page() -> None:
    made = man.pages()
    names = {"inferd", "inferd-daemon", "inferdctl", "inferdctl-status", "inferd-config-show"}
    assert {f"{name}.1" for name in names | {f"inferd-{each}" for each in COMMANDS}} <= made.keys()
    assert "\\fB\\-\\-json\\-schema FILE|JSON\\fR\n" in made["inferd-run.1"]


@pytest.mark.skipif(shutil.which("groff") is None, reason="needs groff")
def test_man_can_read_the_pages(tmp_path: Path) -> None:
    assert man.main([str(tmp_path)]) == 0
    for path in sorted(tmp_path.iterdir()):
        command = ["groff", "-Kutf8", "-man", "-Tutf8", "-ww", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stderr == "", path
