"""The files below ``share``: a valid man page for every command, and completion scripts."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from inferd.cli import man, share
from inferd.cli.commands import COMMANDS


def test_every_command_has_a_page() -> None:
    made = man.pages()
    names = {"inferd", "inferd-daemon", "inferdctl", "inferdctl-status", "inferd-config-show"}
    assert {f"{name}.1" for name in names | {f"inferd-{each}" for each in COMMANDS}} <= made.keys()
    assert "\\fB\\-\\-json\\-schema FILE|JSON\\fR\n" in made["inferd-run.1"]


@pytest.mark.skipif(shutil.which("groff") is None, reason="needs groff")
def test_man_can_read_the_pages(tmp_path: Path) -> None:
    assert share.main([str(tmp_path)]) == 0
    pages = sorted(map(str, (tmp_path / "man" / "man1").iterdir()))
    command = ["groff", "-Kutf8", "-man", "-Tutf8", "-ww", *pages]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""  # which names the page and the line


def test_each_shell_finds_its_script() -> None:
    """The shells search these paths below ``share`` by default."""
    made = share.files()
    for shell, path in share.SCRIPTS.items():
        assert f"_INFERD_COMPLETE={shell}_complete" in made[path]


def test_bash_completes_a_command_by_the_script(tmp_path: Path) -> None:
    assert share.main([str(tmp_path)]) == 0
    (tmp_path / "inferd").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m inferd "$@"\n')
    (tmp_path / "inferd").chmod(0o755)
    asked = """
        . "$1/bash-completion/completions/inferd"
        PATH="$1:$PATH" COMP_WORDS=(inferd compl) COMP_CWORD=1
        _inferd_completion inferd compl inferd
        echo "${COMPREPLY[@]}"
    """
    command = ["bash", "-c", asked, "bash", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["completion"]
