"""``inferd completion``: prints the script by which a shell completes commands, options and names of models.

The script calls ``inferd`` with a variable in its environment, and click prints the completions.
"""

from __future__ import annotations

import os

import click
from click.shell_completion import BashComplete, FishComplete, ZshComplete, shell_complete

from inferd.cli.say import say

VARIABLE = "_INFERD_COMPLETE"

SHELLS = ("bash", "zsh", "fish")


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
def completion_command(shell: str) -> None:
    """Print the completion script of SHELL.

    \b
    bash:  inferd completion bash > ~/.local/share/bash-completion/completions/inferd
    zsh:   inferd completion zsh > ~/.zfunc/_inferd     (with ~/.zfunc in fpath)
    fish:  inferd completion fish > ~/.config/fish/completions/inferd.fish
    """
    say(script(shell))


def script(shell: str) -> str:
    """Returns the completion script of one of SHELLS."""
    from inferd.cli.commands import app

    kinds = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}
    return kinds[shell](app, {}, "inferd", VARIABLE).source()


def answer(command: click.Command) -> int | None:
    """If the completion script started this process, prints the completions and returns the exit code.

    Returns ``None`` for any other process.
    """
    instruction = os.environ.get(VARIABLE)
    return shell_complete(command, {}, "inferd", VARIABLE, instruction) if instruction else None
