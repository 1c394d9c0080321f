"""The model store of the commands, and the completion of its names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from inferd.config import sources

if TYPE_CHECKING:
    from inferd.store.models import ModelStore


def open_store() -> ModelStore:
    """The store that the settings name."""
    from inferd.store.models import ModelStore

    settings, _ = sources.load({}, serving=False)
    return ModelStore(settings.models_home)


def stored_models(context: click.Context, parameter: click.Parameter, incomplete: str) -> Sequence[str]:
    """The names of models in the store, for completion."""
    return [each.name for each in open_store().list() if each.name.startswith(incomplete)]
