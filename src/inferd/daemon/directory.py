"""The models that a request may name: all models of the configuration, and all models in the store.

When a request names the model of a config entry with ``"preload": false``, the model is loaded with the
options of the config entry. A stored model without a config entry is loaded with the default options. This
module only looks models up, and loads none. Methods that read the store block.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from inferd.config.entries import LlamaCppEntry, ModelSpec
from inferd.config.settings import Settings
from inferd.daemon.templates import Analyses, Lookup, Source, findings, read_template
from inferd.daemon.threads import in_thread
from inferd.engine.local.child.messages import Template
from inferd.errors import ConfigError, ModelError, ModelNotFound, StoreError
from inferd.serve.router import Router
from inferd.store.catalogue import CATALOGUE, HUB_MODELS, lookup
from inferd.store.gguf import ModelCard, card_of_files, part_names
from inferd.store.models import ModelStore

MAX_NAME_CHARS = 128


class Directory:
    """Looks names up in the router, in ``settings`` and in the store. The daemon may replace ``settings`` at
    any time. If the directory is ``closed``, its listings start no analyses, as after :meth:`close`."""

    def __init__(self, router: Router, settings: Settings, *, closed: bool = False) -> None:
        self.settings = settings
        self._router = router
        self._cards: dict[str, ModelCard] = {}
        self._analyses = Analyses(findings(), closed=closed)

    def resolve(self, name: str) -> str:
        """Returns the name under which a model is loaded and requests are dispatched. ``name`` may be the
        name of a model, an alias or the name of a config entry. Returns an unknown name unchanged. Raises
        ModelNotFound for a name that is too long."""
        if len(name) > MAX_NAME_CHARS:  # no stored model has it, and looking for similar names would be slow
            raise ModelNotFound(name[:MAX_NAME_CHARS] + "…")
        if self._router.serves(name):
            return name
        local = [entry for entry in self.settings.backends if isinstance(entry, LlamaCppEntry)]
        for entry in local:
            if name == entry.name or name in entry.aliases:
                return entry.name
        known = lookup(name)
        name = name if known is None else known.name
        if self._router.serves(name):
            return name
        for entry in local:
            if entry.model is not None and entry.model.name == name:
                return entry.name
        return name

    def entry(self, name: str) -> LlamaCppEntry:
        """Returns the config entry to load for a resolved name. If its ``n_ctx`` is ``None``, the caller
        chooses the context size."""
        for entry in self.settings.backends:
            if isinstance(entry, LlamaCppEntry) and entry.name == name and not entry.preload:
                return entry
        return LlamaCppEntry(name=name, model=ModelSpec(name=name))

    def card(self, name: str) -> ModelCard:
        """Returns the model card for a resolved name, from the headers of the model's files. Raises
        ModelError for an invalid file. Raises ModelNotFound, with a remedy in the message, for an unknown
        model or a missing file."""
        entry = self.entry(name)
        digest, files = self._files(name)
        if entry.model is not None:
            name = entry.model.name
        if digest is None:
            return self._read(name, files)
        if digest not in self._cards:
            self._cards[digest] = self._read(name, files)
        return self._cards[digest]

    def _files(self, name: str) -> tuple[str | None, list[Path]]:
        """Returns the SHA-256 of the first file of the model with a resolved name (``None`` for a model
        outside the store), and the paths of all files of the model. Raises ModelNotFound."""
        entry = self.entry(name)
        if entry.model is not None:
            digests = (entry.model.sha256,) if entry.model.sha256 else self._digests(entry.model.name)
            store = ModelStore(self.settings.models_home)
            return digests[0], [store.blob_path(each) for each in digests]
        path = entry.model_path
        if path is None:
            raise ModelNotFound(name)
        return None, [path.with_name(each) for each in part_names(path.name)] or [path]

    def card_with_draft(self, name: str) -> ModelCard:
        """Returns the model card for a resolved name. The card includes the draft model that the config entry
        names, if drafts are on and the draft model's file can be read."""
        card, entry = self.card(name), self.entry(name)
        if entry.draft is None or self.settings.drafts == "off":
            return card
        with suppress(ModelError, ModelNotFound, StoreError):
            path = entry.draft
            if isinstance(path, ModelSpec):
                path = ModelStore(self.settings.models_home).blob_path(self._digests(path.name)[0])
            return card.with_draft(self._read(name, [path]))
        return card

    def _read(self, name: str, paths: Sequence[Path]) -> ModelCard:
        try:
            return card_of_files(paths)
        except OSError:
            raise ModelNotFound(name, (), missing=True) from None

    def _digests(self, name: str) -> tuple[str, ...]:
        """Returns the SHA-256 digests of the files of a stored model. Raises ModelNotFound."""
        known = lookup(name)
        if known is not None:
            return (known.sha256,)
        store = ModelStore(self.settings.models_home)
        with suppress(StoreError):
            manifest = store.manifest(name)
            if manifest is not None:
                return manifest.digests
        if name in HUB_MODELS:
            raise ModelNotFound(name, missing=True)
        raise ModelNotFound(name, difflib.get_close_matches(name, sorted(self._names(store)), n=3))

    def _names(self, store: ModelStore) -> set[str]:
        names = {
            *CATALOGUE,
            *HUB_MODELS,
            *(manifest.name for manifest in store.list()),
            *self._router.names(),
        }
        for entry in self.settings.backends:
            if isinstance(entry, LlamaCppEntry):
                names |= {entry.name, *entry.aliases}
        return names

    async def listing(self, is_resident: Callable[[str], bool]) -> list[dict[str, object]]:
        """Returns one row for every model that is loaded on demand, with the metadata from the model's file.

        Leaves out a model of the store whose file is missing. If a model's chat template has not been
        analysed yet, the row shows what the text of the template suggests. An analysis then begins, for later
        listings.
        """
        rows, lookup = await in_thread(lambda: self._rows(is_resident))
        self._analyses.want(lookup)
        return rows

    async def close(self) -> None:
        """Ends a running analysis of a template. Further listings start none."""
        await self._analyses.close()

    def _rows(self, is_resident: Callable[[str], bool]) -> tuple[list[dict[str, object]], Lookup]:
        store = ModelStore(self.settings.models_home)
        lookup = Lookup(store, findings())
        rows: list[dict[str, object]] = []
        told: set[str] = set()
        for entry in self.settings.backends:
            if isinstance(entry, LlamaCppEntry) and not entry.preload:
                rows.append(self._row(entry.name, is_resident, lookup, **_of_entry(entry)))
                told |= {entry.name} if entry.model is None else {entry.name, entry.model.name}
        for manifest in store.list():
            there = all(store.blob_size(digest) is not None for digest in manifest.digests)
            if there and manifest.name not in told:
                rows.append(self._row(manifest.name, is_resident, lookup, sha256=manifest.sha256))
        return rows, lookup

    def _row(
        self, name: str, is_resident: Callable[[str], bool], lookup: Lookup, **more: object
    ) -> dict[str, object]:
        row: dict[str, object] = {
            "name": name,
            **more,
            "resident": is_resident(name) or self._router.serves(name),
        }
        with suppress(ModelError, ModelNotFound, StoreError):
            card = self.card(name)
            template = self._template(name, card, lookup)
            row |= {
                "architecture": card.architecture,
                "quantisation": card.quantisation,
                "parameters": card.parameters,
                "context": card.context,
                "width": card.width,
                "bytes": card.file_bytes,
                "embed": card.pooling,
                "rerank": card.ranks,
                "tools": template.tools,
                "thinking": template.thinking,
            }
        return row

    def _template(self, name: str, card: ModelCard, lookup: Lookup) -> Template:
        """Returns what a model's chat template supports, according to the analysis of the template or, if it
        is not analysed yet, to the text of the template."""
        entry, found = self.entry(name), None
        if with_context(entry, card, 0).embed:
            return Template(tools=False, thinking=False)
        with suppress(ConfigError, OSError):  # a load would fail, too
            template = read_template(entry.chat_template_file)
            digest, files = self._files(name)
            found = lookup.finding(Source(name, files[0], digest, template))
        return found or Template(tools=card.tools, thinking=card.thinking)


def _of_entry(entry: LlamaCppEntry) -> dict[str, object]:
    """Returns the fields of a row that come from the config entry: the aliases and the LoRA adapters."""
    adapters = [adapter.name for adapter in entry.lora]
    return {"aliases": list(entry.aliases), **({"lora": adapters} if adapters else {})}


def with_context(entry: LlamaCppEntry, card: ModelCard, n_ctx: int) -> LlamaCppEntry:
    """Returns the config entry ``entry`` with the context size ``n_ctx``. If ``embed`` is not set, takes its
    value from the model card."""
    embed = entry.embed if entry.embed is not None else (card.pooling or card.ranks or None)
    return entry._replace(n_ctx=n_ctx, embed=embed)
