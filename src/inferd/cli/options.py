"""Options that several commands share, and what they mean together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from inferd.cli import inputs
from inferd.client import Client
from inferd.client.address import Surface
from inferd.config import sources
from inferd.config.settings import Settings
from inferd.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Target:
    """A surface of the daemon to talk to; a daemon at an address that was named is never started."""

    settings: Settings
    address: str
    startable: bool
    surface: Surface = "v1"
    v2_address: str | None = None
    """Where text goes that is too long for a line of v1."""

    @property
    def api_key(self) -> str | None:
        key = self.settings.api_key
        return key.reveal() if key is not None else None

    def client(self) -> Client:
        """A client of this surface."""
        keyword = "address" if self.surface == "v1" else self.surface
        at: dict[str, Any] = {"v2": self.v2_address, keyword: self.address}
        return Client(api_key=self.api_key, **at)


def target(address: str | None, api_key_file: Path | None, surface: Surface = "v1") -> Target:
    """The daemon that ``--address`` names, else the one of the configuration."""
    settings, _ = sources.load({"api_key_file": api_key_file}, serving=False)
    if address is not None:
        return Target(settings, address, startable=False, surface=surface)
    places: dict[Surface, tuple[str | None, Path | None]] = {
        "v1": (settings.tcp, settings.uds),
        "v2": (settings.v2_tcp, settings.v2_addr),
        "embed": (settings.embed_tcp, settings.embed_addr),
        "rerank": (settings.rerank_tcp, settings.rerank_addr),
    }
    own = {name: f"tcp://{tcp}" if tcp is not None else str(path) for name, (tcp, path) in places.items()}
    return Target(settings, own[surface], startable=True, surface=surface, v2_address=own["v2"])


def connection_options(command: F) -> F:
    """``--address`` and ``--api-key-file``."""
    for option in (
        click.option(
            "--api-key-file",
            type=click.Path(path_type=Path, dir_okay=False),
            help="File with the key for a TCP address; else INFERD_API_KEY is used.",
        ),
        click.option(
            "--address",
            metavar="PATH|tcp://IP:PORT",
            help="Talk to the daemon at this address, and start none.",
        ),
    ):
        command = option(command)
    return command


def sampling_options(command: F) -> F:
    """The options of a generation; the daemon checks their bounds, and has their defaults."""
    for option in reversed(
        (
            click.option("--system", metavar="TEXT", help="A system message ahead of the conversation."),
            click.option("--max-tokens", type=int, metavar="N", help="Most tokens of an answer."),
            click.option(
                "--temperature",
                type=float,
                metavar="X",
                # The wire's default of 1 suits large models; a person's first answer comes from a small one.
                default=0.3,
                show_default=True,
                help="0 always takes the likeliest token.",
            ),
            click.option(
                "--top-p", type=float, metavar="X", help="Sample from the likeliest X of the probability."
            ),
            click.option(
                "--top-k", type=int, metavar="N", help="Sample from the N likeliest tokens; 0 is off."
            ),
            click.option("--seed", type=int, metavar="N", help="The same seed gives the same answer."),
            click.option(
                "--stop", multiple=True, metavar="TEXT", help="End before this text; may be repeated."
            ),
            click.option(
                "--grammar",
                type=click.Path(path_type=Path, dir_okay=False),
                metavar="FILE",
                help="GBNF grammar that the answer must follow.",
            ),
            click.option(
                "--json-schema",
                type=click.Path(path_type=Path, dir_okay=False),
                metavar="FILE",
                help="JSON Schema that the answer must follow.",
            ),
        )
    ):
        command = option(command)
    return command


def sampling(
    *,
    max_tokens: int | None,
    temperature: float,
    top_p: float | None,
    top_k: int | None,
    seed: int | None,
    stop: tuple[str, ...],
    grammar: Path | None,
    json_schema: Path | None,
) -> dict[str, Any]:
    """The keyword arguments of ``Client.generate`` for the sampling options."""
    if grammar is not None and json_schema is not None:
        raise UsageError("--grammar and --json-schema exclude each other; give one of them")
    return {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "seed": seed,
        "stop": stop or None,
        "grammar": None if grammar is None else inputs.text(grammar),
        "json_schema": None if json_schema is None else inputs.json_object(json_schema),
    }
