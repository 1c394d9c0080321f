"""``inferd pull`` and ``inferd list``: the model store and the catalogue."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import click

from inferd.cli.output import print_table
from inferd.cli.progress import Progress
from inferd.config import sources
from inferd.config.entries import ModelSpec


@click.command("pull")
@click.argument("name")
def pull_command(name: str) -> None:
    """Fetch and verify the model NAME. It is looked up in the catalogue."""
    from inferd.store.fetch import OpenModel, ensure_model
    from inferd.store.models import ModelStore

    settings, _ = sources.load({})
    cancelled = threading.Event()

    def fetch(show: Callable[[str, dict[str, object]], None]) -> OpenModel:
        return ensure_model(
            ModelStore(settings.models_home),
            ModelSpec(name=name),
            auto_pull=True,
            verify="always",
            progress=show,
            cancelled=cancelled,
        )

    # In a thread, which an interruption cannot tear apart: it is asked to end, and cleans up behind itself.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with Progress() as progress, ThreadPoolExecutor(1) as thread:
        try:
            model = thread.submit(fetch, progress.phase).result()
        except KeyboardInterrupt:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)  # the end is near, and a second one would cut it short
            cancelled.set()
            raise
    with model:
        click.echo(f"{model.name} is in the store and verified: {model.path}")


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_command(as_json: bool) -> None:
    """List the stored models and the catalogue."""
    from inferd.store.catalogue import CATALOGUE
    from inferd.store.models import ModelStore

    settings, _ = sources.load({})
    store = ModelStore(settings.models_home)
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
        size = "?" if row["size_bytes"] is None else f"{row['size_bytes'] / 1e6:.1f} MB"
        cells = (row["name"], "yes" if row["stored"] else "no", size, row["license"], row["description"])
        table.add_row(*(Text(cell) for cell in cells))
    print_table(table)
