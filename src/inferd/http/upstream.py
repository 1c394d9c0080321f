"""The HTTP bridge as a client of the daemon. This module sends requests over shared connections, and follows
the state of the models.

A bridge that the daemon started has a token from the daemon. With this token, each request names the HTTP
client for which the bridge sends the request (``on_behalf_of``), and the daemon believes the name. Without
the token, the daemon counts every request as a request of the user that runs the bridge.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inferd import log
from inferd.client import vectors
from inferd.client.address import Addresses, Surface, endpoint
from inferd.client.admin import Frame, Status
from inferd.client.async_admin import AsyncAdminClient
from inferd.client.async_channel import AsyncChannel, AsyncReply, Channel
from inferd.client.core import Backoff
from inferd.client.framed import FramedIncoming, FramedMessagesRequest
from inferd.client.messages import Event, MessageDone
from inferd.client.protocol import Incoming, OnProgress
from inferd.client.vectors import Embeddings, Ranking
from inferd.config import paths
from inferd.errors import ConnectionLost, DaemonUnreachable, InferdError
from inferd.http.api.request import Generation
from inferd.http.lasting import LastingConnection
from inferd.http.models import LOADING, NO_DAEMON, STOPPING, Model, Models

Reply = AsyncReply[Event, MessageDone]

_SURFACES: tuple[paths.Surface, ...] = ("v1", "v2", "embed", "rerank", "admin")

LISTING_SECS = 5.0
"""How long the daemon may take to list its store."""

_log = log.get("http")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """The sender of an HTTP request, and the options that the request has in its headers. ``caller`` is
    ``uid:N`` or ``key:NAME``."""

    caller: str
    priority: str | None = None
    deadline_ms: int | None = None
    lora: str | None = None

    @property
    def is_own_user(self) -> bool:
        """Whether the caller is root or the user that runs the bridge."""
        return self.caller in (f"uid:{os.getuid()}", "uid:0")


class Upstream:
    """The HTTP bridge's client of the daemon. ``addresses`` maps the names of the daemon's surfaces to their
    socket addresses. ``token`` is empty unless the daemon started the bridge."""

    def __init__(
        self,
        addresses: Mapping[str, str],
        models: Models,
        token: str = "",
        api_key: str | None = None,
    ) -> None:
        given: dict[paths.Surface, str | None] = {name: addresses.get(name) for name in _SURFACES}
        self._addresses = Addresses(given)
        self.models = models
        self._token = token
        self._api_key = api_key
        self._channels: dict[Surface, AsyncChannel] = {}
        self._numbers = itertools.count(1)
        self._watch: asyncio.Task[None] | None = None

    # Requests.

    def generate(
        self, generation: Generation, model: Model, asker: Asker, on_load: OnProgress | None = None
    ) -> Reply:
        """Returns the reply to a request for generated text. The request is sent when the caller enters the
        reply as a context manager, or reads its first event.

        While the request is queued or its model is being loaded, ``on_load`` is called with each step.
        """
        options = {**generation.options, **self._common(asker, model, generation.keep_alive)}
        # Without a limit in the request, the answer may use the whole context.
        most = generation.max_tokens if generation.max_tokens is not None else model.n_ctx or None
        if most is not None:
            options["max_tokens"] = most
        if asker.lora is not None:
            options["lora"] = asker.lora
        if not generation.stream:
            options["stream"] = False  # the engine then makes no frame for each token
        if on_load is not None:
            options["progress"] = True
        request = FramedMessagesRequest(self._next_id(), generation.turns, options)
        request.on_progress = on_load
        return AsyncReply(self._channel("v2", model, generation), request)

    async def embed(
        self,
        texts: Sequence[str],
        dimensions: int | None,
        asker: Asker,
        model: Model,
        keep_alive: float | None = None,
    ) -> Embeddings:
        """Computes the embeddings of texts. Raises RequestFailed."""
        options = self._common(asker, model, keep_alive)
        if dimensions is not None:
            options["dimensions"] = dimensions
        return await self._channel("embed", model).follow(vectors.embed(self._next_id, texts, options))

    async def rerank(
        self, query: str, documents: Sequence[str], top_n: int | None, asker: Asker, model: Model
    ) -> Ranking:
        """Ranks documents. Raises RequestFailed."""
        plan = vectors.rerank(self._next_id, query, documents, top_n, self._common(asker, model))
        return await self._channel("rerank", model).follow(plan)

    def _common(self, asker: Asker, model: Model, keep_alive: float | None = None) -> dict[str, Any]:
        options: dict[str, Any] = {}
        if model.wire_name:
            options["model"] = model.wire_name
        # Without a token, every HTTP client could unload and pin models with the rights of the bridge's user.
        if keep_alive is not None and (self._token or asker.is_own_user):
            options["keep_alive"] = keep_alive
        if asker.priority is not None:
            options["priority"] = asker.priority
        if asker.deadline_ms is not None:
            options["deadline_ms"] = asker.deadline_ms
        if self._token:
            options["on_behalf_of"] = {"caller": asker.caller, "token": self._token}
        return options

    def _next_id(self) -> str:
        return f"http-{next(self._numbers)}"

    def _channel(self, surface: Surface, model: Model, generation: Generation | None = None) -> Channel:
        """Returns the shared connections to the surface ``surface``."""
        channel = self._channels.get(surface)
        if channel is None:
            where = endpoint(self._addresses.of(surface), surface)
            incoming = FramedIncoming if surface == "v2" else Incoming
            channel = self._channels[surface] = AsyncChannel(
                where, self._api_key, None, incoming, LastingConnection
            )
        return channel

    # The daemon's state.

    async def start(self) -> None:
        """Starts to follow the daemon's state."""
        self._watch = asyncio.get_running_loop().create_task(self._follow())

    async def refresh_models(self) -> None:
        """Updates the list of stored models.

        If the daemon does not answer in time, or answers with an error, the list stays unchanged.
        """
        with contextlib.suppress(InferdError):
            async with AsyncAdminClient(self._addresses.of("admin"), timeout=LISTING_SECS) as admin:
                self.models.update_stored(await admin.models())

    async def unload(self, model: Model) -> int:
        """Asks the daemon to unload a model once no request uses it.

        Returns the number of requests that still use the model. Raises RequestFailed.
        """
        async with AsyncAdminClient(self._addresses.of("admin"), timeout=LISTING_SECS) as admin:
            return await admin.unload(model.wire_name)

    async def pull(self, name: str) -> AsyncIterator[Frame]:
        """Downloads a model to the daemon's store. See :meth:`AsyncAdminClient.pull`."""
        async with AsyncAdminClient(self._addresses.of("admin")) as admin:
            async for frame in admin.pull(name):
                yield frame
        await self.refresh_models()

    async def status(self) -> Status:
        """Returns the daemon's state and updates the models. Raises DaemonUnreachable and ConnectionLost."""
        async with AsyncAdminClient(self._addresses.of("admin"), timeout=LISTING_SECS) as admin:
            state = await admin.status()
            self.models.update_stored(await admin.models())
            return state

    async def aclose(self) -> None:
        """Stops following the daemon's state, and closes the idle connections. Running requests continue."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait([self._watch])
        for channel in self._channels.values():
            channel.close()

    async def _follow(self) -> None:
        backoff = Backoff(float("inf"))
        while True:
            try:
                async with AsyncAdminClient(self._addresses.of("admin")) as admin:
                    backoff = Backoff(float("inf"))
                    await self._take_events(admin)
            except (DaemonUnreachable, ConnectionLost):
                self.models.why_not = NO_DAEMON
            except InferdError as error:
                _log.warn("daemon_state_unreadable", error=str(error))
            self.models.ready = False
            await asyncio.sleep(backoff.pause())

    async def _take_events(self, admin: AsyncAdminClient) -> None:
        told: list[Mapping[str, Any]] = []
        async for frame in admin.events():
            status = frame["status"]
            self.models.why_not = LOADING
            if status == "capabilities":
                told.append(frame)
            elif status == "model":
                self.models.tell(str(frame["model"]), str(frame["state"]), frame)
            elif status == "restarting":
                told = []  # the capabilities of the new configuration follow
            elif status == "ready":
                if told:
                    self.models.update(told)
                    told = []
                self.models.ready = True
            elif status in ("draining", "failed"):
                self.models.why_not = STOPPING
                self.models.ready = False
