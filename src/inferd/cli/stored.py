"""Opens the model store for the commands, and completes the names of its models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from inferd.config import sources

if TYPE_CHECKING:
    from inferd.store.models import ModelStore


def open_store() -> ModelStore:
    """Returns the store that the settings name."""
    from inferd.store.models import ModelStore

    settings, _ = sources.load({}, serving=False)
    return ModelStore(settings.models_home)


def stored_models(context: click.Context, parameter: click.Parameter, incomplete: str) -> Sequence[str]:
    """Returns the names of models in the store, for the completion of a shell."""
    return [each.name for each in open_store().list() if each.name.startswith(incomplete)]
