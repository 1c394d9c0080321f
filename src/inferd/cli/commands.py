"""The group of commands; a command's module is imported on demand."""

from __future__ import annotations

from importlib import import_module

import click

from inferd import __version__
from inferd.cli.say import say

COMMANDS = {
    "serve": "serve",
    "http": "http",
    "agent": "agent",
    "run": "run",
    "start": "start",
    "chat": "chat",
    "embed": "vectors",
    "rerank": "vectors",
    "status": "status",
    "top": "top",
    "watch": "status",
    "logs": "logs",
    "reload": "control",
    "stop": "control",
    "pull": "models",
    "import": "models",
    "list": "models",
    "show": "show",
    "load": "loaded",
    "unload": "loaded",
    "ps": "loaded",
    "verify": "models",
    "rm": "models",
    "gc": "models",
    "cache": "cache",
    "bench": "bench",
    "config": "config",
    "doctor": "doctor",
    "rpc-worker": "rpc_worker",
    "service": "service",
    "completion": "completion",
    "help": "commands",
    "version": "commands",
}
"""Command → module; the command is the module's attribute ``NAME_command``, with underscores."""

ALIASES = {"ls": "list"}
"""Names of commands in similar programs."""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        cmd_name = ALIASES.get(cmd_name, cmd_name)
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"inferd.cli.{COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, f"{cmd_name.replace('-', '_')}_command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in (*COMMANDS, *ALIASES):
            from inferd.config.nearest import nearest

            near = nearest(args[0], COMMANDS)
            hint = "" if near is None else f"; the nearest is {near!r}"
            raise click.UsageError(f"there is no command {args[0]!r}{hint}", ctx)
        return super().resolve_command(ctx, args)


@click.group(
    cls=_Commands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.option("-V", "--version", is_flag=True, help="Show the version.")
@click.option("--verbose", is_flag=True, help="With --version: also show the engine's build.")
@click.pass_context
def app(context: click.Context, version: bool, verbose: bool) -> None:
    """Local inference: one model in memory for every program of this machine."""
    if verbose and not version:
        raise click.UsageError("--verbose belongs to --version", context)
    if version:
        say(f"inferd {__version__}")
        if verbose:
            for line in import_module("inferd.cli.versions").lines():
                say(line)
    elif context.invoked_subcommand is None:
        say(context.get_help(), err=True)
        context.exit(2)


@click.command("help")
@click.argument("words", metavar="[COMMAND]...", nargs=-1)
@click.pass_context
def help_command(context: click.Context, words: tuple[str, ...]) -> None:
    """Show the help of a command, or of all commands."""
    shown = context.find_root()
    for word in words:
        if not isinstance(shown.command, click.Group):
            raise click.UsageError(f"`{shown.command_path}` has no command {word!r}", shown)
        shown.command.resolve_command(shown, [word])  # raises for an unknown command
        found = shown.command.get_command(shown, word)
        if found is None:
            raise click.UsageError(f"`{shown.command_path}` has no command {word!r}", shown)
        shown = click.Context(found, info_name=found.name, parent=shown)
    say(shown.get_help())


@click.command("version")
def version_command() -> None:
    """Show the version."""
    say(f"inferd {__version__}")
