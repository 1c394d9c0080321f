"""The built-in catalogue is valid: every name, digest and source is well formed."""

from __future__ import annotations

from pathlib import Path

import pytest

from inferd.config.settings import DEFAULT_MODEL
from inferd.errors import StoreError
from inferd.store import hub, sources
from inferd.store.catalogue import CATALOGUE, HUB_MODELS, CatalogueModel, lookup
from inferd.store.fetch import ModelSpec, resolve
from inferd.store.models import Manifest, ModelStore, Provenance, check_name, check_sha256

DIGEST = "ab" * 32


@pytest.mark.parametrize("model", CATALOGUE.values(), ids=CATALOGUE.keys())
class TestEntries:
    def test_it_is_pinned_and_can_be_stored(self, model: CatalogueModel) -> None:
        assert check_name(model.name) == model.name
        assert check_sha256(model.sha256) == model.sha256
        assert model.size_bytes is not None
        assert model.size_bytes > 0
        assert model.license
        assert model.description

    def test_it_has_sources_and_each_parses(self, model: CatalogueModel) -> None:
        assert model.sources
        for text in model.sources:
            assert text.startswith(sources.parse(text).url)

    def test_it_is_found_by_its_name_and_aliases(self, model: CatalogueModel) -> None:
        for name in (model.name, *model.aliases):
            assert lookup(name) is model


def test_every_name_on_the_hub_can_be_stored_and_means_a_repository() -> None:
    for name, model in HUB_MODELS.items():
        assert check_name(model.name) == name
        assert hub.is_repository(model.source)
        assert model.license
        assert model.description
        assert model.size_bytes is None or model.size_bytes > 0


def test_names_and_aliases_are_all_different() -> None:
    names = [name for model in CATALOGUE.values() for name in (model.name, *model.aliases)]
    names += [model.name for model in HUB_MODELS.values()]
    assert len(names) == len(set(names))


def test_the_default_model_is_in_it() -> None:
    assert DEFAULT_MODEL in CATALOGUE


class TestResolve:
    """The resolution of a model's name in the settings."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> ModelStore:
        return ModelStore(tmp_path)

    def test_a_catalogue_name_or_alias(self, store: ModelStore) -> None:
        assert resolve(store, ModelSpec(name="smollm2")) is CATALOGUE[DEFAULT_MODEL]

    def test_a_name_in_the_store(self, store: ModelStore) -> None:
        store.write_manifest(Manifest(name="mine", blob=f"sha256:{DIGEST}", size_bytes=7, license="MIT"))
        model = resolve(store, ModelSpec(name="mine"))
        assert model == CatalogueModel(name="mine", sha256=DIGEST, size_bytes=7, license="MIT", sources=())

    @pytest.mark.parametrize(
        ("origin", "known"),
        [
            (Provenance(registry="https", repo="host:1", filename="d/m"), ("https://host:1/d/m",)),
            (Provenance(registry="hf", repo="o/r", revision="v", filename="d/m"), ("hf:o/r/d/m@v",)),
            (Provenance(registry="pypi", repo="p", revision="1", filename="d/m"), ("pypi:p==1/d/m",)),
            (Provenance(registry="another tool's", repo="x"), ()),
            # A user who may write to a shared store must not make another user's process read a private file.
            (Provenance(registry="file", filename="/etc/shadow"), ()),
        ],
    )
    def test_a_name_in_the_store_can_be_fetched_again(
        self, store: ModelStore, origin: Provenance, known: tuple[str, ...]
    ) -> None:
        manifest = Manifest(name="mine", blob=f"sha256:{DIGEST}", size_bytes=7, source=origin)
        store.write_manifest(manifest)
        assert resolve(store, ModelSpec(name="mine")).sources == known

    def test_a_pinned_model_of_a_config_file(self, store: ModelStore) -> None:
        spec = ModelSpec(
            name="m", sha256=DIGEST.upper(), source_url="https://host/m", size_bytes=5, license="L"
        )
        model = resolve(store, spec)
        assert (model.sha256, model.size_bytes, model.license) == (DIGEST, 5, "L")
        assert model.sources == ("https://host/m",)

    def test_a_pinned_model_without_a_source_is_the_catalogues_if_it_is_the_same(
        self, store: ModelStore
    ) -> None:
        default = CATALOGUE[DEFAULT_MODEL]
        assert resolve(store, ModelSpec(name=default.name, sha256=default.sha256)) is default
        assert resolve(store, ModelSpec(name=default.name, sha256=DIGEST)).sources == ()

    def test_an_unknown_name_suggests_a_near_one(self, store: ModelStore) -> None:
        with pytest.raises(StoreError, match=f"did you mean '{DEFAULT_MODEL}'"):
            resolve(store, ModelSpec(name="smollm2-135m-instrct"))

    def test_a_name_on_the_hub_is_pulled_first(self, store: ModelStore) -> None:
        with pytest.raises(StoreError, match="run `inferd pull qwen3-4b`"):
            resolve(store, ModelSpec(name="qwen3-4b"))
        store.write_manifest(Manifest(name="qwen3-4b", blob=f"sha256:{DIGEST}", size_bytes=7))
        assert resolve(store, ModelSpec(name="qwen3-4b")).sha256 == DIGEST

    def test_an_unknown_name_with_nothing_near_lists_all(self, store: ModelStore) -> None:
        store.write_manifest(Manifest(name="mine", blob=f"sha256:{DIGEST}", size_bytes=7))
        with pytest.raises(StoreError, match=f"no model 'zzz' in the .*; known: .*mine, .*{DEFAULT_MODEL}"):
            resolve(store, ModelSpec(name="zzz"))

    @pytest.mark.parametrize("name", ["../x", "a/b"])
    def test_a_name_that_is_a_path_is_refused(self, store: ModelStore, name: str) -> None:
        for digest in (None, DIGEST):
            with pytest.raises(StoreError, match="cannot be a model's name"):
                resolve(store, ModelSpec(name=name, sha256=digest))
