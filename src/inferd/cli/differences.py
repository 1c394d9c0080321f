"""Warns if the environment or the config file of this command has settings that differ from those of the
running daemon. Flags are not compared.
"""

from __future__ import annotations

import contextlib

from inferd.cli.say import say
from inferd.client import AdminClient
from inferd.config import sources
from inferd.config.settings import Settings
from inferd.errors import InferdError

ASK_SECS = 1.0


def tell(settings: Settings) -> None:
    """Prints a note to stderr if some variables or config keys have other values here than in the running
    daemon. The note names these variables and keys."""
    with contextlib.suppress(InferdError):
        given = sources.read({})
        if not given.origins:
            return
        from inferd.config import fingerprints

        with AdminClient(settings.admin_addr, ASK_SECS) as admin:
            places = fingerprints.differing(given, admin.status().settings)
        if places:
            say(
                f"(the running daemon has another {' and '.join(places)}; `inferd reload` takes on what the"
                " config file says, and after `inferd stop` the next command starts one with these settings)",
                err=True,
            )
