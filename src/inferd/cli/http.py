"""``inferd http``: runs only the HTTP bridge, in the foreground, for a daemon that already runs."""

from __future__ import annotations

from typing import Any

import click

from inferd.cli.kind_type import KindType
from inferd.cli.say import say
from inferd.cli.serve import flags_of
from inferd.collecting import collect_as_usual
from inferd.config import sources
from inferd.config.addresses import HttpAddress
from inferd.config.settings import OPTIONS

_NAMES = frozenset(option.name for option in OPTIONS if option.group == "HTTP") - {"http"}
_ALSO = frozenset({"api_key", "api_key_file", "log_level", "log_dir", "max_connections"})


def _http(address: str | None, **flags: Any) -> int:
    """Serve the APIs of OpenAI, Anthropic and Ollama over HTTP.

    ADDRESS is IP:PORT. Without ADDRESS, the command uses the address in the configuration, or else
    127.0.0.1:11434. `inferd serve --http` runs the daemon together with the same bridge. In its queue and its
    log, the daemon treats all HTTP clients of this command as one client.
    """
    settings, _ = sources.load(flags, serving=False)
    settings = settings.replaced(http=address or settings.http or HttpAddress().bare)
    from inferd.daemon import bridge

    bridge.check(settings)
    from inferd.http import server

    collect_as_usual()
    bound = bridge.bind_address(settings)
    setup = bridge.setup_of(settings, bound.sock.fileno(), token="")
    bound.sock.detach()
    say(f"serving HTTP on {bound.address}", err=True)
    return server.run(server.setup(setup))


http_command = click.Command(
    "http",
    callback=_http,
    params=[
        click.Argument(["address"], type=KindType(HttpAddress()), required=False, metavar="[ADDRESS]"),
        *flags_of(_NAMES | _ALSO),
    ],
    help=_http.__doc__,
)
