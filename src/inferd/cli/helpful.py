"""A group of commands that shows its help when called without a command."""

from __future__ import annotations

import click

from inferd.cli.say import say


class HelpfulGroup(click.Group):
    """Without a command, the group prints its help to stderr and exits with 2, as ``inferd`` itself does."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args:
            say(ctx.get_help(), err=True)
            ctx.exit(2)
        return super().parse_args(ctx, args)
