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

SUMMARIES = {
    "serve": "Run the daemon in the foreground.",
    "http": "Serve the APIs of OpenAI, Anthropic and Ollama over HTTP.",
    "agent": "Run a coding agent on the models of this machine.",
    "run": "Answer one prompt: the words of PROMPT, then piped input.",
    "start": "Start a daemon in the background, and wait until it is ready.",
    "chat": "Chat with the model.",
    "embed": "Print the vector of each TEXT, one JSON array a line.",
    "rerank": "Rank the DOCUMENTs by how well they answer QUERY.",
    "status": "Show the daemon's requests, backends and numbers.",
    "top": "Show speeds, queue, backends and requests, live. q quits.",
    "watch": "Print the daemon's events until it ends.",
    "logs": "Show the last lines of the activity log.",
    "reload": "Make the daemon read its configuration again, and wait until it uses the new one.",
    "stop": "Stop the daemon, and wait until it has ended.",
    "pull": "Download and verify a model.",
    "import": "Add a GGUF FILE, or another program's models, to the store.",
    "list": "List the stored models and the catalogue.",
    "show": "Show the facts of a model, and the memory it needs.",
    "load": "Load a stored model into the daemon, before the first request.",
    "unload": "Unload a model.",
    "ps": "List the loaded models, and how long each stays loaded.",
    "verify": "Hash stored models again; without NAME all of them.",
    "rm": "Delete models from the store.",
    "gc": "Delete files in the store that no model needs.",
    "cache": "Show or delete the files of computed prompts.",
    "bench": "Measure the speed of a model on this machine.",
    "config": "Show, check and write the configuration.",
    "doctor": "Check this machine for faults.",
    "rpc-worker": "Compute a part of a model for an inferd on another host.",
    "service": "Run the daemon as a service of your user.",
    "completion": "Print the completion script of SHELL.",
    "help": "Show the help of a command, or of all commands.",
    "version": "Show the version.",
}
"""The first sentences of the commands' help, for the help of all: no command is imported for it."""

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

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(SUMMARIES.items()))

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
