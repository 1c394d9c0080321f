"""A group of commands that shows its help when it is called alone."""

from __future__ import annotations

import click

from inferd.cli.say import say


class HelpfulGroup(click.Group):
    """Without a command, the help goes to stderr and the exit code is 2, as for ``inferd`` itself."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args:
            say(ctx.get_help(), err=True)
            ctx.exit(2)
        return super().parse_args(ctx, args)
