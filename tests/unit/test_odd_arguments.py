"""No argument of a command, and no variable, ends in a traceback, in silence, or with control characters on
the screen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from inferd import cli
from inferd.cli import commands
from inferd.config.settings import OPTIONS

VALUES = (
    "",
    " ",
    "-1",
    "9" * 20,
    "1e400",
    "nan",
    "x" * 5000,
    "ü\u202e\x1b[31m",
    "\udcff",
    "/",
    ".",
    "-",
    "nowhere/x",
    "/dev/null",
    "tcp://",
    "tcp://[::1]:99999",
    "http://[::1",
    "{}",
    "[{}]",
    '{"type": 1}',
    '{"properties": 3}',
    '[{"name": "a", "input_schema": 3}]',
    '[{"type": "function", "function": {}}]',
)
# These serve, change the services of the machine, or end without a word if there is nothing to do.
ASIDE = {"serve", "http", "rpc-worker", "start", "service", "watch", "top", "doctor"}
FIRST = {"agent": "claude", "completion": "bash"}


def leaves(
    command: click.Command, line: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if not isinstance(command, click.Group):
        yield line, command
        return
    context = click.Context(command)
    for name in set(command.list_commands(context)) - ASIDE:
        found = command.get_command(context, name)
        assert found is not None
        yield from leaves(found, (*line, name))


def lines(line: tuple[str, ...], command: click.Command, value: str) -> Iterator[list[str]]:
    """Command lines in which one option, or all arguments, have the value. They start no daemon."""
    arguments = [
        "--",
        *(FIRST.get(line[0], "x") for each in command.params if isinstance(each, click.Argument)),
    ]
    options = [each for each in command.params if isinstance(each, click.Option) and not each.is_flag]
    address = ["--address", "/nowhere/s"] if any("--address" in each.opts for each in options) else []
    for option in options:
        elsewhere = address if option.opts[0] != "--address" else []
        if value or elsewhere == address:  # an empty address is none
            yield [*line, *elsewhere, option.opts[0], value, *arguments]
    if len(arguments) > 1:
        yield [*line, *address, "--", *[value] * (len(arguments) - 1)]


@pytest.mark.parametrize("variable", [option.env for option in OPTIONS if option.env] + ["INFERD_ADDRESS"])
def test_an_odd_variable_gets_a_sentence(
    variable: str, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in VALUES:
        monkeypatch.setenv(variable, value)
        for words in (["config", "show"], ["config", "check"], ["ps"]):
            code = cli.main(words)
            assert code == 0 or capsys.readouterr().err, (value, words)


@pytest.mark.parametrize("value", VALUES)
def test_an_odd_value_gets_a_sentence(
    value: str, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    for line, command in leaves(commands.app):
        for words in lines(line, command, value):
            code = cli.main(words)
            out, err = capsys.readouterr()
            assert code == 0 or err, words
            assert not any(char < " " and char not in "\n\t" for char in out + err), words
