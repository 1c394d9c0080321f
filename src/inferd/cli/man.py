"""Generates man pages from the help of the commands: ``inferd.1``, one ``inferd-COMMAND.1`` for each command,
``inferd-daemon.1`` and ``inferdctl.1``.
"""

from __future__ import annotations

from collections.abc import Iterator

import click

from inferd import __version__


def pages() -> dict[str, str]:
    """Returns the pages by file name."""
    from inferd.cli.commands import app
    from inferd.cli.ctl import ctl
    from inferd.cli.serve import daemon_command

    made: dict[str, str] = {}
    for name, command in (("inferd", app), ("inferd-daemon", daemon_command()), ("inferdctl", ctl)):
        for context in _walk(click.Context(command, info_name=name, **command.context_settings)):
            made[f"{context.command_path.replace(' ', '-')}.1"] = _page(context)
    return made


def _walk(context: click.Context) -> Iterator[click.Context]:
    yield context
    command = context.command
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            if found is not None:
                yield from _walk(click.Context(found, info_name=name, parent=context))


def _page(context: click.Context) -> str:
    command, path = context.command, context.command_path
    lines = [
        f'.TH "{path.replace(" ", "-").upper()}" 1 "" "inferd {__version__}"',
        ".SH NAME",
        f"{_text(path.replace(' ', '-'))} \\- {_text(command.get_short_help_str(200).rstrip('.'))}",
        ".SH SYNOPSIS",
        f".B {_text(path)}",
        _text(" ".join(command.collect_usage_pieces(context))),
        ".SH DESCRIPTION",
        *_paragraphs(command.help or ""),
    ]
    options = [record for each in command.get_params(context) if (record := each.get_help_record(context))]
    if options:
        lines.append(".SH OPTIONS")
        for names, text in options:
            lines += [".TP", f"\\fB{_text(names)}\\fR", _text(text)]
    if isinstance(command, click.Group):
        lines.append(".SH COMMANDS")
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            if found is not None:
                lines += [".TP", f"\\fB{_text(f'{path}-{name}'.replace(' ', '-'))}\\fR(1)"]
                lines.append(_text(found.get_short_help_str(200)))
    return "\n".join(lines) + "\n"


def _paragraphs(text: str) -> Iterator[str]:
    for number, paragraph in enumerate(text.split("\n\n")):
        if number:
            yield ".PP"
        if paragraph.startswith("\b"):
            yield from (".nf", *map(_text, paragraph.splitlines()[1:]), ".fi")
        else:
            yield _text(" ".join(paragraph.split()))


def _text(text: str) -> str:
    """Returns the text, escaped for roff."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")
    return f"\\&{escaped}" if escaped.startswith(".") else escaped
