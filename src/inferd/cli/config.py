"""``inferd config``: shows and checks the effective configuration, and writes the config file.

``show`` and ``check`` read flags, environment and config file as ``inferd serve`` does. So they report the
configuration that a daemon would have if it started now. Secrets are never printed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from inferd.cli.helpful import HelpfulGroup
from inferd.cli.kind_type import KindType
from inferd.cli.say import say, say_json
from inferd.config import sources
from inferd.config.entries import Adapter, BackendEntry, LlamaCppEntry, ModelSpec, kind_of
from inferd.config.kinds import FilePath, Name, Secret
from inferd.config.settings import DEFAULT_MODEL, OPTIONS
from inferd.config.sources import LoadedConfig
from inferd.errors import ConfigError
from inferd.private import make_private_dirs

HIDDEN = "(set)"
"""Shown instead of a secret."""

_file = click.option(
    "--config",
    "path",
    type=KindType(FilePath()),
    metavar="PATH",
    help=(
        "The config file. The default is the file that INFERD_CONFIG names, else ~/.inferd/config.json, if "
        "it exists."
    ),
)


@click.group("config", cls=HelpfulGroup, context_settings={"help_option_names": ["-h", "--help"]})
def config_command() -> None:
    """Show, check and write the configuration."""


@config_command.command("show")
@_file
@click.option("--origin", is_flag=True, help="Print the source of each value.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(path: Path | None, origin: bool, as_json: bool) -> None:
    """Print the value of every option, and the backends."""
    given = sources.read({"config": path})
    _tell(given)
    if given.problem is not None:
        raise given.problem
    values = {option.name: _shown(getattr(given.settings, option.name)) for option in OPTIONS}
    origins = {name: given.origins.get(name, "default") for name in values}
    backends = [_backend(entry) for entry in given.settings.backends]
    if as_json:
        options = {name: {"value": value, "origin": origins[name]} for name, value in values.items()}
        report = {"config_file": str(given.path), "options": options, "backends": backends}
        say_json(report)
        return
    say(f"config file {given.path}{'' if given.path.exists() else ' (does not exist)'}\n")
    texts = {name: _text(value) for name, value in values.items()}
    widths = max(map(len, texts)), max(map(len, texts.values()))
    for name, text in texts.items():
        line = f"{name:{widths[0]}}  {text:{widths[1]}}"
        say(f"{line}  {origins[name]}" if origin else line.rstrip())
    for position, backend in enumerate(backends):
        say(f"\nbackends[{position}]")
        for name, value in backend.items():
            say(f"  {name}  {_text(value)}")


@config_command.command("check")
@click.argument("file", type=KindType(FilePath()), required=False)
def check(file: Path | None) -> None:
    """Read FILE, or the config file in use, as the daemon would.

    Exit 1 if the daemon would not start with this file.
    """
    given = sources.read({"config": file})
    _tell(given)
    if given.problem is not None:
        raise given.problem
    _check_files(given)
    _check_addresses(given)
    if given.path.exists():
        say(f"{given.path} is sound")
    else:
        say(f"there is no config file at {given.path}; `inferd config init` makes one")


def _check_addresses(given: LoadedConfig) -> None:
    """Raises an error if an address needs an API key, if the group of the sockets does not exist, or if the
    HTTP bridge cannot use one of its files."""
    from inferd.daemon import addresses
    from inferd.daemon.bridge import has_keys
    from inferd.http import files
    from inferd.serve import bind

    settings = given.settings
    addresses.check(settings, {})
    if settings.http is not None:
        bind.check_key(settings.http, has_key=has_keys(settings))
        files.check(settings.http_key_file, settings.http_cert, settings.http_key)


def _check_files(given: LoadedConfig) -> None:
    """Raises an error if a configured model is neither in the store nor in the catalogue, or if a file is
    missing."""
    from inferd.store.fetch import resolve
    from inferd.store.models import ModelStore

    store = ModelStore(given.settings.models_home)
    for entry in given.settings.backends:
        if isinstance(entry, LlamaCppEntry):
            adapters = (adapter.path for adapter in entry.lora)
            files = (entry.model, entry.model_path, entry.mmproj, entry.draft, entry.chat_template_file)
            for source in (*files, *adapters):
                if isinstance(source, ModelSpec):
                    resolve(store, source)
                elif source is not None and not Path(source).is_file():
                    raise ConfigError(f"backend {entry.name!r}: there is no file {source}")


@config_command.command("schema")
def schema() -> None:
    """Print the JSON Schema of the config file."""
    from inferd.config import docs

    say(docs.schema().removesuffix("\n"))


@config_command.command("init")
@_file
@click.option("--model", type=KindType(Name()), default=DEFAULT_MODEL, show_default=True, metavar="NAME")
@click.option(
    "--model-path",
    type=KindType(FilePath()),
    metavar="PATH",
    help=("A GGUF file to serve instead of a named model."),
)
@click.option("--force", is_flag=True, help="Replace an existing file.")
def init(path: Path | None, model: str, model_path: Path | None, force: bool) -> None:
    """Write a config file with one backend, for you to edit."""
    target = sources.config_path({"config": path}, os.environ)[0]
    which = {"model": {"name": model}} if model_path is None else {"model_path": str(model_path.absolute())}
    content = {"backends": [{"kind": "llamacpp", "name": "chat", **which}]}
    _write(target, json.dumps(content, indent=2, ensure_ascii=False) + "\n", force)
    say(f"{target} is made; `inferd config check` reads it, `inferd config schema` names every key")


def _write(path: Path, text: str, force: bool) -> None:
    """Writes a file atomically, with permissions that let only its owner read it. Replaces an existing file
    only with ``force``."""
    temporary = path.parent / f".{path.name}.{os.getpid()}"
    try:
        make_private_dirs(path.parent)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            _place(temporary, path, force)
        finally:
            temporary.unlink(missing_ok=True)
    except UnicodeEncodeError:
        raise ConfigError("--model-path is not text in the encoding of your locale") from None
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        raise ConfigError(f"config file {path} cannot be made: {error.strerror}{where}") from None


def _place(made: Path, path: Path, force: bool) -> None:
    if force:
        made.replace(path)
        return
    try:
        os.link(made, path)
    except FileExistsError:
        raise ConfigError(f"config file {path} exists already; --force replaces it") from None


def _tell(given: LoadedConfig) -> None:
    for note in given.notes:
        say(f"inferd: {note}", err=True)


def _backend(entry: BackendEntry) -> dict[str, Any]:
    fields = {name: _shown(value) for name, value in entry._asdict().items()}
    return {"kind": kind_of(entry), **{name: value for name, value in fields.items() if value is not None}}


def _shown(value: Any) -> Any:
    if isinstance(value, Secret):
        return HIDDEN
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, ModelSpec | Adapter):
        return {key: _shown(given) for key, given in value._asdict().items() if given not in (None, "")}
    return [_shown(item) for item in value] if isinstance(value, tuple) else value


def _text(value: Any) -> str:
    """Formats the value as users write it."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(given)}" for key, given in value.items())
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value)
