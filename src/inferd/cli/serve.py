"""``inferd serve``, whose flags come from the option table."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import click

from inferd import __version__
from inferd.cli.kind_type import KindType
from inferd.config import sources
from inferd.config.addresses import HttpAddress
from inferd.config.kinds import Boolean, FilePath
from inferd.config.option import Option
from inferd.config.settings import OPTIONS
from inferd.config.sources import LoadedConfig


def _flag(option: Option) -> click.Option:
    notes = [note for note in (option.env, _default(option)) if note]
    described = f"{option.doc} [{'; '.join(notes)}]" if notes else option.doc
    flag = str(option.flag)
    if isinstance(option.kind, Boolean):
        names = f"{flag}/{flag.replace('--', '--no-', 1)}"
        return click.Option([names], default=None, help=described)
    # Only for this kind: with these arguments, even as None, click makes the value of an option optional and
    # reads `-5` as a flag.
    bare: dict[str, Any] = {}
    if isinstance(option.kind, HttpAddress):
        bare = {"is_flag": False, "flag_value": option.kind.bare}
    return click.Option(
        [flag],
        type=KindType(option.kind),
        metavar=option.kind.metavar,
        default=None,
        help=described,
        **bare,
    )


def _default(option: Option) -> str | None:
    """Returns a description of the option's default, or ``None`` if the default is obvious."""
    if option.default_doc:
        return f"default {option.default_doc.replace('`', '')}"
    if option.default is None or isinstance(option.kind, Boolean):
        return None
    return f"default {option.default}"


_CONFIG = click.Option(
    ["--config"],
    type=KindType(FilePath()),
    metavar="PATH",
    help="The config file. The default is ~/.inferd/config.json, if it exists. [INFERD_CONFIG]",
)


def _serve(**flags: Any) -> int:
    """Run the daemon in the foreground."""
    return _run(lambda: sources.read(flags))


def _serve_as_0_2(**flags: Any) -> int:
    """Run the daemon in the foreground, as inferd 0.2.1 did."""
    return _run(lambda: sources.read(flags, as_0_2=True))


def _run(read: Callable[[], LoadedConfig]) -> int:
    from inferd.daemon import start

    return start.run(read)


def flags_of(names: Collection[str]) -> list[click.Option]:
    """Returns the flags of the named options, and ``--config``."""
    return [
        _CONFIG,
        *(_flag(option) for option in OPTIONS if option.flag is not None and option.name in names),
    ]


_HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}
_FLAGS: list[click.Parameter] = [_CONFIG, *(_flag(option) for option in OPTIONS if option.flag is not None)]

serve_command = click.Command(
    "serve", callback=_serve, params=_FLAGS, help=_serve.__doc__, context_settings=_HELP_OPTIONS
)


def daemon_command() -> click.Command:
    """Returns the command ``inferd-daemon``, which reads the configuration as inferd 0.2.1 did."""
    command = click.Command(
        "inferd-daemon",
        callback=_serve_as_0_2,
        params=[*_FLAGS],
        help=_serve_as_0_2.__doc__,
        context_settings=_HELP_OPTIONS,
    )
    version = click.version_option(
        __version__, "-V", "--version", prog_name="inferd-daemon", message="%(prog)s %(version)s"
    )
    return version(command)
