"""docs/install.md is correct: its commands, flags and files exist, and it describes the unit."""

from __future__ import annotations

import re
from pathlib import Path

import click

from inferd.cli.commands import app
from tests.cases import cases

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "install.md").read_text()
LINES = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
CALLS = [
    call
    for line in LINES
    for call in re.findall(r"(?:^|&& |; |sudo env \S+ |^as_)inferd ([a-z][^#;&|]*)", line)
]


def test_no_page_installs_a_name_that_is_not_published() -> None:
    """Anyone could register such a name on the package index."""
    files = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "src").rglob("*.py")]
    named = re.compile(r"pip install(?! --no-index)[^\n|;&`]*?['\" ]inferd(\[\w+\])?['\"`\s]")
    assert [(file.name, named.search(text)) for file in files if named.search(text := file.read_text())] == []


def test_the_page_calls_inferd() -> None:
    assert len(CALLS) > 15


@cases("call", sorted(set(CALLS)))
def test_a_command_of_the_page_exists(call: str) -> None:
    words = call.split()
    context = click.Context(app, info_name="inferd")
    command: click.Command = app
    while isinstance(command, click.Group) and words:
        found = command.get_command(context, words[0])
        assert found is not None, call
        command, words = found, words[1:]
    flags = {flag for each in command.params for flag in (*each.opts, *each.secondary_opts)}
    assert {word for word in words if word.startswith("--")} <= flags


def test_its_files_exist_and_its_keys_are_those_of_the_unit() -> None:
    for path in set(re.findall(r"packaging/[\w./*-]+", PAGE)):
        assert list(ROOT.glob(path.rstrip("/"))), path
    unit = (ROOT / "packaging" / "systemd" / "inferd.service").read_text()
    for line in (
        "ExecStart=/usr/bin/inferd serve",
        "User=inferd",
        "HOME=/var/lib/inferd",
        "XDG_RUNTIME_DIR=/run",
        "INFERD_LOG_DIR=/var/log/inferd",
    ):
        assert line in unit
    for key in re.findall(r"^([A-Z][A-Za-z]+)=(?:no|auto)$", PAGE, re.MULTILINE):
        assert f"\n{key}=" in unit, key


def test_links_of_the_page_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)", PAGE):
        assert (ROOT / "docs" / target).exists(), target
