"""``inferd start``: starts a daemon in the background."""

from __future__ import annotations

import click

from inferd.cli import background
from inferd.cli.options import target
from inferd.cli.progress import Progress
from inferd.cli.say import say


@click.command("start")
def start_command() -> None:
    """Start a daemon in the background, and wait until it is ready.

    If a daemon runs already, wait until that daemon is ready. If this command starts a daemon, that daemon
    stops when no client has been connected for 15 minutes. INFERD_IDLE_EXIT_SECS sets a different time.
    """
    daemon = target(None, None)
    with daemon.client() as client, Progress() as progress:
        background.connect(client, daemon, progress.frame)
    say("the daemon is ready")
