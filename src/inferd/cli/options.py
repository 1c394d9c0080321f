"""The options that several commands share, and the functions that evaluate them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from inferd.cli import inputs
from inferd.cli.numbers import Number, WholeNumber
from inferd.client import Attachment, Client
from inferd.client.address import Addresses, Surface
from inferd.config import paths, sources
from inferd.config.settings import Settings
from inferd.errors import InvalidRequest, UsageError
from inferd.wire.bounds import MAX_SAMPLING_NUMBER, MAX_TOKENS, PRIORITIES

F = TypeVar("F", bound=Callable[..., Any])

TOOL_CHOICES = ("auto", "none", "required")
COUNT = WholeNumber(0, 2**32 - 1)


@dataclass(frozen=True, slots=True)
class Target:
    """The daemon and the surface (v1, v2, embed or rerank) to connect to. ``startable`` is false if the user
    named the address; then the command does not start a daemon."""

    settings: Settings
    address: str
    startable: bool
    surface: Surface = "v1"
    v2_address: str | None = None
    """The address for requests whose text is too long for a line of v1."""

    @property
    def api_key(self) -> str | None:
        key = self.settings.api_key
        return key.reveal() if key is not None else None

    def client(self) -> Client:
        """Returns a client for this surface."""
        if self.surface == "v2" and self.v2_address is None:
            at: dict[str, Any] = {"address": self.address}
        else:
            keyword = "address" if self.surface == "v1" else self.surface
            at = {"v2": self.v2_address, keyword: self.address}
        # The pid keeps the requests of several commands apart in status, top and the log.
        return Client(api_key=self.api_key, id_prefix=f"{_command_name()}-{os.getpid()}-", **at)


def _command_name() -> str:
    context = click.get_current_context(silent=True)
    return "cli" if context is None or context.info_name is None else context.info_name


def target(address: str | None, api_key_file: Path | None, surface: Surface = "v1") -> Target:
    """Returns the daemon at ``--address``, or else the daemon of the configuration."""
    settings, _ = sources.load({"api_key_file": api_key_file}, serving=False)
    if address is not None:
        beside = Addresses({"v1": address, surface: None} if surface != "v1" else {"v1": address})
        place = str(beside.find(surface) or address)
        named_v2 = Path(address).name == paths.socket_path("v2").name
        v2 = address if named_v2 else beside.find("v2")
        return Target(
            settings, place, startable=False, surface=surface, v2_address=None if v2 is None else str(v2)
        )
    places: dict[Surface, tuple[str | None, Path | None]] = {
        "v1": (settings.tcp, settings.uds),
        "v2": (settings.v2_tcp, settings.v2_addr),
        "embed": (settings.embed_tcp, settings.embed_addr),
        "rerank": (settings.rerank_tcp, settings.rerank_addr),
    }
    own = {name: f"tcp://{tcp}" if tcp is not None else str(path) for name, (tcp, path) in places.items()}
    return Target(settings, own[surface], startable=True, surface=surface, v2_address=own["v2"])


def connection_options(command: F) -> F:
    """Adds ``--address`` and ``--api-key-file``."""
    for option in (
        click.option(
            "--api-key-file",
            type=click.Path(path_type=Path, dir_okay=False),
            help="The file with the API key for a TCP address. The default is the key in INFERD_API_KEY.",
        ),
        click.option(
            "--address",
            metavar="PATH|tcp://IP:PORT",
            envvar="INFERD_ADDRESS",
            help="Use the daemon at this address, and do not start one. The default is INFERD_ADDRESS.",
        ),
    ):
        command = option(command)
    return command


def attachment_options(command: F) -> F:
    """Adds ``--image``, ``--audio`` and ``--file``."""
    path = click.Path(path_type=Path, dir_okay=False)
    for option in reversed(
        (
            click.option(
                "--image",
                type=path,
                multiple=True,
                metavar="FILE",
                help="A picture for the model. May be given several times.",
            ),
            click.option(
                "--audio",
                type=path,
                multiple=True,
                metavar="FILE",
                help="A sound for the model. May be given several times.",
            ),
            click.option(
                "--file",
                type=path,
                multiple=True,
                metavar="FILE",
                help="A text file for the model, or `-` for stdin. May be given several times.",
            ),
        )
    ):
        command = option(command)
    return command


def attachments(image: Sequence[Path], audio: Sequence[Path], file: Sequence[Path]) -> list[Attachment]:
    """Returns the attachments that the options ``--image``, ``--audio`` and ``--file`` name. Raises
    UsageError for a file that cannot be read, is too large or has no known format, and if stdin is named
    twice."""
    if list(file).count(inputs.STDIN) > 1:
        raise UsageError("`--file -` is given twice, but stdin can be read once")
    return [
        *(inputs.media("image", path) for path in image),
        *(inputs.media("audio", path) for path in audio),
        *(inputs.text_file(path) for path in file),
    ]


def tool_options(command: F) -> F:
    """Adds ``--tools``, ``--tool-choice`` and ``--thinking``."""
    for option in reversed(
        (
            click.option(
                "--tools",
                metavar="FILE|JSON",
                help=(
                    "A JSON array of the tools that the model may call. Each tool has name, description "
                    "and input_schema, or the form of OpenAI or of an MCP server's tools/list."
                ),
            ),
            click.option(
                "--tool-choice",
                metavar="auto|none|required|NAME",
                help="Whether the model must call a tool, and which one.",
            ),
            click.option(
                "--thinking/--no-thinking",
                default=None,
                help=("Whether the model thinks before it answers, if the model can think."),
            ),
        )
    ):
        command = option(command)
    return command


def tool_choices(tools: str | None, tool_choice: str | None, thinking: bool | None) -> dict[str, Any]:
    """Returns the keyword arguments of ``Client.messages`` for the tool options that were given."""
    choices: dict[str, Any] = {}
    if tools is not None:
        choices["tools"] = inputs.tools(tools)
    if tool_choice is not None:
        if tools is None:
            raise UsageError("--tool-choice needs the tools of --tools FILE")
        if tool_choice not in (*TOOL_CHOICES, *(tool["name"] for tool in choices["tools"])):
            raise UsageError(
                f"--tool-choice {tool_choice} is none of the tools, and not auto, none or required"
            )
        choices["tool_choice"] = tool_choice if tool_choice in TOOL_CHOICES else {"name": tool_choice}
    if thinking is not None:
        choices["thinking"] = thinking
    return choices


def sampling_options(command: F) -> F:
    """Adds the options of a generation, such as ``--temperature``. The daemon sets the defaults of these
    options."""
    for option in reversed(
        (
            click.option(
                "--model",
                metavar="NAME",
                help=(
                    "A model of the store, which is loaded if necessary. The default is the daemon's first "
                    "model."
                ),
            ),
            click.option("--system", metavar="TEXT", help="A system message before the conversation."),
            click.option(
                "--max-tokens",
                type=COUNT,
                metavar="N",
                help=(
                    "The maximum number of tokens of an answer. For a local model, the default is"
                    f" {MAX_TOKENS}."
                ),
            ),
            click.option(
                "--lora",
                metavar="NAME",
                help=("A LoRA adapter that the model's entry lists. The default is none."),
            ),
            click.option(
                "--temperature",
                type=Number(0.0, MAX_SAMPLING_NUMBER),
                metavar="X",
                help=(
                    "The sampling temperature; 0 always takes the likeliest token. The default is the value"
                    " in the model's file, else 0.6."
                ),
            ),
            click.option(
                "--top-p",
                type=Number(0.0, 1.0, min_open=True),
                metavar="X",
                help="Sample from the likeliest tokens whose probabilities add up to X.",
            ),
            click.option(
                "--top-k", type=COUNT, metavar="N", help="Sample from the N likeliest tokens. 0 is off."
            ),
            click.option(
                "--min-p",
                type=Number(0.0, 1.0),
                metavar="X",
                help=(
                    "Exclude tokens whose probability is below X times that of the likeliest token. 0 is off."
                ),
            ),
            click.option(
                "--repeat-penalty",
                type=Number(0.0, MAX_SAMPLING_NUMBER, min_open=True),
                metavar="X",
                help="Above 1, make tokens that have occurred less likely. 1 is off.",
            ),
            click.option(
                "--presence-penalty",
                type=Number(-MAX_SAMPLING_NUMBER, MAX_SAMPLING_NUMBER),
                metavar="X",
                help="Subtract X from the logit of each token that has occurred.",
            ),
            click.option(
                "--frequency-penalty",
                type=Number(-MAX_SAMPLING_NUMBER, MAX_SAMPLING_NUMBER),
                metavar="X",
                help="Subtract X from the logit of a token for each time it has occurred.",
            ),
            click.option(
                "--seed",
                type=WholeNumber(-1, 2**32 - 1),
                metavar="N",
                help="The seed of sampling. The same seed gives the same answer. -1 chooses a random seed.",
            ),
            click.option(
                "--stop",
                multiple=True,
                metavar="TEXT",
                help=("End the answer before this text. May be given several times."),
            ),
            click.option(
                "--grammar",
                type=click.Path(path_type=Path, dir_okay=False),
                metavar="FILE",
                help="A GBNF grammar that the answer must follow.",
            ),
            click.option(
                "--json-schema",
                metavar="FILE|JSON",
                help="A JSON Schema that the answer must follow.",
            ),
            click.option(
                "--schema-lenient",
                is_flag=True,
                default=None,
                help=(
                    "Accept keywords of the schema that cannot be enforced during generation. The finished "
                    "answer is checked for them."
                ),
            ),
            click.option(
                "--deadline",
                type=Number(0.001, 4_000_000.0),
                metavar="SECONDS",
                help="Cancel the request if its answer has not ended after this time.",
            ),
            click.option(
                "--session",
                metavar="NAME",
                help=(
                    "The name of the conversation: a hint to the daemon to keep the conversation's KV cache."
                ),
            ),
            click.option(
                "--priority",
                type=click.Choice(PRIORITIES),
                help="A batch request waits behind all interactive requests.",
            ),
        )
    ):
        command = option(command)
    return command


def _check(choices: Mapping[str, Any]) -> None:
    """Raises UsageError for a value that the daemon would refuse."""
    # Imported here, since both import msgspec, which a request without options does not need.
    from inferd.sampling import NAMES
    from inferd.wire.sampling import Sampling, check

    bounded = {
        name: choices[name] for name in ("grammar", "session", *NAMES) if choices.get(name) is not None
    }
    try:
        check(Sampling(stop=[*(choices["stop"] or ())], **bounded))
    except InvalidRequest as error:
        raise UsageError(str(error).removeprefix("invalid request: ")) from None


def sampling(
    *,
    stop: tuple[str, ...],
    grammar: Path | None,
    json_schema: str | None,
    deadline: float | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Returns the keyword arguments of ``Client.generate`` for the sampling options. Most have the same
    names."""
    if grammar is not None and json_schema is not None:
        raise UsageError("--grammar and --json-schema exclude each other; give one of them")
    for name, given in (*options.items(), *(("stop", text) for text in stop)):
        if isinstance(given, str) and any(0xD800 <= ord(char) <= 0xDFFF for char in given):
            raise UsageError(f"--{name} is not text in the encoding of your locale")
    choices = {
        **options,
        "model_defaults": True,
        "deadline_ms": None if deadline is None else round(deadline * 1000),
        "stop": stop or None,
        "grammar": None if grammar is None else inputs.text(grammar),
    }
    if any(value is not None for name, value in choices.items() if name != "model_defaults"):
        _check(choices)
    return {**choices, "json_schema": None if json_schema is None else inputs.json_object(json_schema)}
