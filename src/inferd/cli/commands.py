"""The command ``inferd``. The module of a subcommand is imported only when the subcommand is needed."""

from __future__ import annotations

from importlib import import_module

import click

from inferd import __version__
from inferd.cli.say import say

COMMANDS = {
    "serve": ("serve", "Run the daemon in the foreground."),
    "http": ("http", "Serve the APIs of OpenAI, Anthropic and Ollama over HTTP."),
    "agent": ("agent", "Run a coding agent on the models of this machine."),
    "run": ("run", "Answer one prompt: the words of PROMPT, then piped input."),
    "start": ("start", "Start a daemon in the background, and wait until it is ready."),
    "chat": ("chat", "Chat with the model."),
    "embed": ("vectors", "Print the embedding of each TEXT as a JSON array on one line."),
    "rerank": ("vectors", "Rank the DOCUMENTs by their relevance to QUERY."),
    "status": ("status", "Show the daemon's requests, backends and metrics."),
    "top": ("top", "Show speeds, queue, backends and requests, live. q quits."),
    "watch": ("status", "Print the daemon's events until the daemon ends."),
    "logs": ("logs", "Show the last lines of the activity log."),
    "reload": (
        "control",
        "Make the daemon read its configuration again, and wait until it uses the new one.",
    ),
    "stop": ("control", "Stop the daemon, and wait until it has ended."),
    "pull": ("models", "Download and verify a model."),
    "import": ("models", "Add a GGUF FILE, or another program's models, to the store."),
    "list": ("models", "List the stored models and the catalogue."),
    "show": ("show", "Show the metadata of a model, and the memory that the model needs."),
    "load": ("loaded", "Load a stored model into the daemon, before the first request."),
    "unload": ("loaded", "Unload a model."),
    "ps": ("loaded", "List the loaded and loading models, and how long each stays loaded."),
    "verify": ("models", "Check the hashes of stored models."),
    "rm": ("models", "Delete models from the store."),
    "gc": ("models", "Delete files in the store that no model needs."),
    "cache": ("cache", "Show or delete the files with the KV caches of earlier prompts."),
    "bench": ("bench", "Measure the speed of a model on this machine."),
    "config": ("config", "Show, check and write the configuration."),
    "doctor": ("doctor", "Check this machine and the configuration for faults."),
    "rpc-worker": ("rpc_worker", "Compute some layers of a model for an inferd on another host."),
    "service": ("service", "Run the daemon as a service of your user."),
    "completion": ("completion", "Print the completion script of SHELL."),
    "help": ("commands", "Show the help of a command, or of all commands."),
    "version": ("commands", "Show the version."),
}
"""Maps each command to its module and to the first sentence of its help.

The command is the attribute ``NAME_command`` of the module, with underscores instead of hyphens. The help of
``inferd`` lists all commands without importing their modules.
"""

ALIASES = {"ls": "list"}
"""Maps the names of commands in similar programs to inferd's."""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        cmd_name = ALIASES.get(cmd_name, cmd_name)
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"inferd.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, f"{cmd_name.replace('-', '_')}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])

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
@click.option("--verbose", is_flag=True, help="With --version, also show how the engine was built.")
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
