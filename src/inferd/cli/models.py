"""``inferd pull``, ``import``, ``list``, ``rm``, ``verify`` and ``gc``: the model store and the catalogue."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from inferd.cli.output import print_table
from inferd.cli.progress import Progress
from inferd.config import sources
from inferd.config.entries import ModelSpec
from inferd.config.settings import Settings

if TYPE_CHECKING:
    from inferd.store.verify import OpenModel
from inferd.errors import StoreError

if TYPE_CHECKING:
    from inferd.store.catalogue import CatalogueModel
    from inferd.store.models import ModelStore
    from inferd.store.verify import OpenModel

Show = Callable[[str, dict[str, object]], None]
T = TypeVar("T")

_NAME = click.option("--name", metavar="NAME", help="What to call it; without this, as its file is called.")
_LICENSE = click.option(
    "--license", "licence", default="", metavar="TEXT", help="Its licence, kept beside it."
)


def _store() -> ModelStore:
    from inferd.store.models import ModelStore

    settings, _ = sources.load({})
    return ModelStore(settings.models_home)


def _interruptible(work: Callable[[Show, threading.Event], T]) -> T:
    """The result of ``work``, whose progress is shown. Ctrl-C asks it to end, and it cleans up behind itself."""
    cancelled = threading.Event()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # In a thread, which an interruption cannot tear apart.
    with Progress() as progress, ThreadPoolExecutor(1) as thread:
        try:
            return thread.submit(work, progress.phase, cancelled).result()
        except KeyboardInterrupt:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)  # the end is near, and a second one would cut it short
            cancelled.set()
            raise


def _bring(
    store: ModelStore, find: Callable[[Show, threading.Event], CatalogueModel | ModelSpec], again: bool = True
) -> None:
    """Have the model in the store that ``find`` finds, and say so."""
    from inferd.store.fetch import ensure_model

    def work(show: Show, cancelled: threading.Event) -> OpenModel:
        return ensure_model(
            store,
            find(show, cancelled),
            auto_pull=True,
            verify="always" if again else "auto",
            progress=show,
            cancelled=cancelled,
        )

    with _interruptible(work) as model:
        click.echo(f"{model.name} is in the store and verified: {model.path}")


@click.command("pull")
@click.argument("name")
def pull_command(name: str) -> None:
    """Fetch and verify the model NAME. It is looked up in the catalogue."""
    settings, _ = sources.load({})
    with fetch_shown(settings, ModelSpec(name=name)) as model:
        click.echo(f"{model.name} is in the store and verified: {model.path}")


def fetch_shown(settings: Settings, spec: ModelSpec) -> OpenModel:
    """The verified model, fetched when it is missing, with a bar on a terminal; Ctrl-C and SIGTERM end it."""
    from inferd.store.fetch import ensure_model
    from inferd.store.models import ModelStore

    cancelled = threading.Event()

    def fetch(show: Callable[[str, Mapping[str, object]], None]) -> OpenModel:
        return ensure_model(
            ModelStore(settings.models_home),
            spec,
            auto_pull=True,
            verify="always",
            progress=show,
            cancelled=cancelled,
        )

    # In a thread, which an interruption cannot tear apart: it is asked to end, and cleans up behind itself.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with Progress() as progress, ThreadPoolExecutor(1) as thread:
        try:
            return thread.submit(fetch, progress.phase).result()
        except KeyboardInterrupt:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)  # the end is near, and a second one would cut it short
            cancelled.set()
            raise


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_command(as_json: bool) -> None:
    """List the stored models and the catalogue."""
    from inferd.store.catalogue import CATALOGUE
    from inferd.store.partial import largest_file

    store = _store()
    rows: dict[str, dict[str, Any]] = {
        model.name: {
            "name": model.name,
            "stored": False,
            "size_bytes": model.size_bytes,
            "sha256": model.sha256,
            "license": model.license,
            "description": model.description,
        }
        for model in CATALOGUE.values()
    }
    for manifest in store.list():
        row = rows.setdefault(manifest.name, {"name": manifest.name, "description": ""})
        row["stored"] = store.blob_size(manifest.sha256) == manifest.size_bytes
        row.update(size_bytes=manifest.size_bytes, sha256=manifest.sha256, license=manifest.license or "")
        if not row["description"] and manifest.source is not None:
            row["description"] = manifest.source.text
    for row in rows.values():
        row["downloaded_bytes"] = 0 if row["stored"] else largest_file(store.partial_dir(row["sha256"]))
    if as_json:
        click.echo(json.dumps({"models_home": str(store.home), "models": list(rows.values())}))
    else:
        _show(list(rows.values()))


def _show(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for title in ("name", "stored", "size", "licence", "description"):
        table.add_column(title)
    for row in rows:
        part = f"{_size(row['downloaded_bytes'])} of it" if row["downloaded_bytes"] else "no"
        size = "?" if row["size_bytes"] is None else _size(row["size_bytes"])
        stored = "yes" if row["stored"] else part
        cells = (row["name"], stored, size, row["license"], row["description"])
        table.add_row(*(Text(cell) for cell in cells))
    print_table(table)


def _size(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
