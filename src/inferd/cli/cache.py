"""``inferd cache``: shows and deletes the files of the prefix cache."""

from __future__ import annotations

import time

import click

from inferd.cli.columns import duration, megabytes
from inferd.cli.helpful import HelpfulGroup
from inferd.cli.say import say, say_json
from inferd.config import paths
from inferd.store import states


@click.group("cache", cls=HelpfulGroup)
def cache_command() -> None:
    """Show or delete the files with the KV caches of earlier prompts."""


@cache_command.command("show")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show_command(as_json: bool) -> None:
    """Show the number, the size and the last use of the files with the KV caches of earlier prompts."""
    directory = paths.cache_dir()
    found = states.usage(directory)
    taken = sum(status.st_size for status in found)
    if as_json:
        used = [status.st_mtime for status in found]
        say_json(
            {
                "directory": str(directory),
                "files": len(found),
                "bytes": taken,
                "used_at": max(used, default=None),
            }
        )
        return
    say(f"{directory}: {len(found)} files, {megabytes(taken)}")
    if found:
        now = time.time()
        ages = [max(0.0, now - status.st_mtime) for status in found]
        say(f"used last {duration(min(ages))} ago, the oldest {duration(max(ages))} ago")


@cache_command.command("clear")
def clear_command() -> None:
    """Delete the files with the KV caches of earlier prompts. A running daemon keeps the KV caches that it
    has in memory."""
    say(f"{states.clear(paths.cache_dir())} files removed")
