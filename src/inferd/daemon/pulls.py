"""Downloads models for clients of the admin socket.

A client names a model of inferd's catalogue or of the model store. With the prefix ``hf:`` a client names a
repository or file of the Hugging Face hub. Other sources, such as URLs and local files, are refused, because
the daemon would read them with its own rights and not with the client's. ``inferd pull`` accepts them. With
``auto_pull`` off, the daemon downloads nothing.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping

from inferd import log
from inferd.config.entries import ModelSpec
from inferd.config.settings import Settings
from inferd.daemon.backends import Pace, Show
from inferd.daemon.threads import in_thread
from inferd.errors import InferdError, InvalidRequest, ModelNotFound
from inferd.progress import Progress
from inferd.store.catalogue import HUB_MODELS, lookup
from inferd.store.fetch import ensure_model
from inferd.store.models import ModelStore
from inferd.store.pinning import pin
from inferd.store.sources import is_source

MAX_PULLS = 4

_log = log.get("pulls")


class Pulls:
    """Downloads models, several at a time. ``settings()`` returns the current settings. All methods run on
    the event loop."""

    def __init__(self, settings: Callable[[], Settings]) -> None:
        self._settings = settings
        self._running = 0

    async def pull(self, text: str, show: Show) -> str:
        """Downloads a model unless the store has it, and returns the model's name. ``show`` is called with
        each phase of the download (see :mod:`inferd.store.fetch`). If the task is cancelled, the download
        stops, and the next call for the same model resumes it.

        Raises ModelNotFound and StoreError. Raises InvalidRequest if the download is not allowed, or if
        ``MAX_PULLS`` downloads are running.
        """
        settings = self._settings()
        if not settings.auto_pull:
            raise InvalidRequest("this daemon downloads no models (auto_pull is off); run `inferd pull`")
        if is_source(text) and not text.startswith("hf:"):
            raise InvalidRequest(
                "name a model of the catalogue, or hf:ORG/REPO; run `inferd pull` for another source"
            )
        if self._running >= MAX_PULLS:
            raise InvalidRequest(f"{MAX_PULLS} models are being downloaded; wait for one of them")
        loop = asyncio.get_running_loop()
        pace, cancelled = Pace(loop, show), threading.Event()

        def progress(phase: str, details: Mapping[str, object]) -> None:
            loop.call_soon_threadsafe(pace.show, phase, dict(details))

        self._running += 1
        outcome = "cancelled"
        try:
            name = await in_thread(
                lambda: _fetch(ModelStore(settings.models_home), text, progress, cancelled), cancelled
            )
            outcome = "stored"
        except InferdError as error:
            outcome = error.code
            raise
        finally:
            self._running -= 1
            _log.info("model_pulled", model=text, outcome=outcome)
        return name


def _fetch(store: ModelStore, text: str, progress: Progress, cancelled: threading.Event) -> str:
    if not is_source(text) and not (lookup(text) or text in HUB_MODELS or store.manifest(text)):
        raise ModelNotFound(text)
    spec = (
        pin(store, text, name=None, sha256=None, license="", progress=progress, cancelled=cancelled)
        if is_source(text)
        else ModelSpec(name=text)
    )
    with ensure_model(
        store, spec, auto_pull=True, verify="auto", progress=progress, cancelled=cancelled
    ) as model:
        return model.name
