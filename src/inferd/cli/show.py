"""``inferd show``: shows the metadata of a model's file."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
from msgspec.structs import asdict, replace

from inferd.cli.columns import aligned, megabytes
from inferd.cli.say import say, say_json
from inferd.config import sources
from inferd.config.entries import LlamaCppEntry, ModelSpec
from inferd.config.settings import Settings
from inferd.controls import one_line
from inferd.errors import InferdError, StoreError

if TYPE_CHECKING:
    from inferd.daemon.templates import Source
    from inferd.store.gguf import ModelCard
    from inferd.store.models import ModelStore


@click.command("show")
@click.argument("name", metavar="NAME|FILE")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show_command(name: str, as_json: bool) -> None:
    """Show the metadata of a model, and the memory that the model needs."""
    from inferd.daemon.memory import context_sizes
    from inferd.daemon.templates import Source
    from inferd.store.fetch import resolve
    from inferd.store.gguf import card_of_files, part_names
    from inferd.store.models import ModelStore

    settings, _ = sources.load({}, serving=False)
    path, digest = Path(name), None
    store = ModelStore(settings.models_home)
    if not path.is_file():
        model = resolve(store, ModelSpec(name=name))
        name, path, digest = model.name, store.blob_path(model.sha256), model.sha256
        paths = [store.blob_path(part.sha256) for part in (model, *model.parts)]
    else:
        paths = [path.with_name(each) for each in part_names(path.name)] or [path]
    try:
        card = card_of_files(paths)
    except OSError as error:
        raise StoreError(
            f"cannot open the model {error.filename}: {error.strerror}; run `inferd pull` with its name"
        ) from None
    card = _with_analysis(card, Source(name, path, digest), store)
    adapters = [adapter.name for entry in _entries(settings, name) for adapter in entry.lora]
    n_ctx, needed = context_sizes(card, settings.n_ctx, settings.active_permits)[0]
    if as_json:
        told = {"n_ctx": n_ctx, "memory_bytes": needed, "lora": adapters}
        say_json({"name": name, "path": str(path), **asdict(card), **told})
        return
    makes = "vectors" if card.pooling else "scores" if card.ranks else "text"
    has = [what for what, there in (("tools", card.tools), ("thinking", card.thinking)) if there]
    template = f"yes, with {' and '.join(has)}" if has else "yes" if card.chat_template else "none"
    rows = [
        ("name", name),
        ("file", path),
        ("size", megabytes(card.file_bytes)),
        ("architecture", card.architecture or "-"),
        ("title", card.name or "-"),
        ("parameters", f"{card.parameters / 1e6:,.0f} million"),
        ("quantisation", card.quantisation or "-"),
        ("trained context", f"{card.context:,} tokens"),
        ("makes", makes),
        ("chat template", template),
        ("adapters", ", ".join(adapters) or "none"),
        ("memory", f"about {megabytes(needed)} for {settings.active_permits} requests of {n_ctx:,} tokens"),
    ]
    for line in aligned([(key, one_line(value)) for key, value in rows]):
        say(line)


def _with_analysis(card: ModelCard, source: Source, store: ModelStore) -> ModelCard:
    """Returns a copy of the card to which llama.cpp's analysis of the chat template is added: whether the
    template supports tools and thinking. If the analysis fails, the card stays as it is."""
    from inferd.daemon.templates import analyse, findings

    if card.pooling or card.ranks:
        return card
    with contextlib.suppress(InferdError, OSError):
        template = asyncio.run(analyse(source, store, findings()))
        if template is not None:
            return replace(card, tools=template.tools, thinking=template.thinking)
    return card


def _entries(settings: Settings, name: str) -> Iterator[LlamaCppEntry]:
    """Yields the entries of the configuration whose stored model or model path is ``name``."""
    for entry in settings.backends:
        if isinstance(entry, LlamaCppEntry):
            of_store = entry.model is not None and entry.model.name == name
            if of_store or (entry.model_path is not None and entry.model_path == Path(name)):
                yield entry
