"""The HTTP bridge as the ingress of a Serve application. The ingress sends requests through the deployment
handles of the models.

If a replica dies before the first part of the answer, the request is sent again, until it has been sent
``TRIES`` times in all. If the model of a replica fails before the first part of the answer, the request is
sent one more time. Otherwise the client gets an error.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
from ray.exceptions import RayError
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator
from starlette.types import ASGIApp, Receive, Scope, Send

from inferd import log
from inferd.client.address import Surface
from inferd.client.admin import Status
from inferd.client.async_channel import Channel
from inferd.client.framed import FramedIncoming
from inferd.client.protocol import D, E, Incoming, PendingRequest
from inferd.errors import ConnectionLost, Unavailable
from inferd.http import endpoints
from inferd.http.api.request import Generation
from inferd.http.app import Bridge, Options
from inferd.http.failures import HttpFailure
from inferd.http.keys import Keys
from inferd.http.models import Model, Models
from inferd.http.upstream import Upstream
from inferd.ray.config import settings_of

TRIES = 8
_PAUSE_SECS = 0.25

_log = log.get("ray")


class Ingress:
    """The ingress for the models of ``handles``. ``config`` is the whole configuration."""

    def __init__(self, config: Mapping[str, Any], is_open: bool, *handles: DeploymentHandle) -> None:
        settings = settings_of(config)
        single = None if settings.api_key is None else settings.api_key.reveal()
        file = None if settings.http_key_file is None else Path(settings.http_key_file)
        self._handles = handles
        self._is_open = is_open
        self._options = Options(
            addresses={},
            keys=Keys(file, None if file is not None else single),
            aliases=settings.http_aliases,
            ollama_version=settings.http_ollama_version,
            hosts=settings.http_hosts,
            origins=settings.http_origins,
        )

    def __serve_build_asgi_app__(self) -> ASGIApp:
        bridge = Bridge(self._options, lambda models: RayUpstream(models, self._handles))
        app = bridge.app(endpoints.ROUTES, endpoints.scope_of)

        async def known(scope: Scope, receive: Receive, send: Send) -> None:
            # Behind Ray's proxy the peer of a connection is the proxy. Only keys tell clients apart.
            if scope["type"] == "http":
                client = scope.get("client") or ("", 0)
                scope = {**scope, "client": client, "peer": _Peer(os.getuid() if self._is_open else None)}
            await app(scope, receive, send)

        return known


class _Peer:
    """Tells the HTTP bridge's gate that the user ``uid`` owns the connection. ``None`` is an unknown user."""

    def __init__(self, uid: int | None) -> None:
        self._uid = uid

    def uid(self, client: object, server: object) -> int | None:
        return self._uid


class RayUpstream(Upstream):
    """Sends the bridge's requests to the deployments of the models, instead of to a daemon."""

    def __init__(self, models: Models, handles: Sequence[DeploymentHandle]) -> None:
        super().__init__({}, models)
        self._deployments = list(handles)
        self._handle_of: dict[str, DeploymentHandle] = {}
        self._load: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._load = asyncio.get_running_loop().create_task(self._follow())

    async def aclose(self) -> None:
        if self._load is not None:
            self._load.cancel()
            await asyncio.wait([self._load])

    async def _follow(self) -> None:
        """Waits for a replica of each model, and registers the capabilities of the model."""
        told: list[Mapping[str, Any]] = []
        for handle in self._deployments:
            frames = await self._capabilities(handle)
            self._handle_of.update((str(frame.get("model") or frame["name"]), handle) for frame in frames)
            told += frames
        self.models.update(told)
        self.models.ready = True

    async def _capabilities(self, handle: DeploymentHandle) -> Sequence[Mapping[str, Any]]:
        while True:
            try:
                frames: Sequence[Mapping[str, Any]] = await handle.capabilities.remote()
            except RayError as error:
                _log.warn("replica_unreachable", error=type(error).__name__)
                await asyncio.sleep(_PAUSE_SECS)
            else:
                return frames

    def _channel(self, surface: Surface, model: Model, generation: Generation | None = None) -> Channel:
        handle = self._handle_of[model.name].options(stream=True)
        if generation is not None:
            # A daemon's pool of backends identifies a conversation in the same way.
            key = generation.options.get("session") or orjson.dumps(generation.turns[:2])
            handle = handle.options(session_id=hashlib.sha256(str(key).encode()).hexdigest())
        return RayChannel(handle, surface)

    async def refresh_models(self) -> None:
        """Does nothing, since the configuration alone determines the models."""

    async def unload(self, model: Model) -> int:
        raise HttpFailure("not_served", "Ray Serve decides how many replicas of a model are loaded")

    async def status(self) -> Status:
        raise HttpFailure("not_served", "this is Ray Serve; its dashboard and `serve status` show its state")


class RayChannel(Channel):
    """Sends requests to the surface ``surface`` of a deployment's replicas. ``handle`` has the option
    ``stream``, and for a request of a conversation also ``session_id``."""

    def __init__(self, handle: DeploymentHandle, surface: Surface) -> None:
        self._handle = handle
        self._surface = surface

    async def ask(self, request: PendingRequest[E, D], *, anew: bool = False) -> RayConnection:
        return RayConnection(self._handle, self._surface, b"".join(request.pieces))

    def give_back(self, connection: object) -> None:
        """Does nothing: a connection carries only one request, and cannot be used again."""


def _kind(line: bytes) -> str:
    """Returns the type of the frame ``line``, or an empty string if ``line`` is not a frame. Returns
    ``failure`` for an error frame after which a retry may succeed, such as the frame for a crash."""
    try:
        frame = orjson.loads(line)
        failed = frame["type"] == "error" and frame["code"] == Unavailable.code and "reason" not in frame
        return "failure" if failed else str(frame["type"])
    except (orjson.JSONDecodeError, LookupError, TypeError):
        return ""  # the code that reads the line reports the error


class RayConnection:
    """One request, and its answer from a replica."""

    lapsed = False

    def __init__(self, handle: DeploymentHandle, surface: Surface, data: bytes) -> None:
        self._handle = handle
        self._surface = surface
        self._data = data
        self._tries = 0
        self._failed = False
        self._answered = False
        self._call()

    def _call(self) -> None:
        self._tries += 1
        incoming = FramedIncoming if self._surface == "v2" else Incoming
        self._incoming = incoming("the replica", tcp=False)
        self._response: DeploymentResponseGenerator = self._handle.call.remote(self._surface, self._data)

    async def line(self) -> bytes:
        """Returns the next line of the answer. Raises ConnectionLost if the replica dies and the request is
        not sent again."""
        while True:
            if (line := self._incoming.line()) is None:
                await self._read()
                continue
            kind = "" if self._answered else _kind(line)
            if kind == "failure" and not self._failed:
                _log.warn("request_retried", code=Unavailable.code)
                self._failed = True
                await self._call_again()
                continue
            self._answered = kind != "progress"
            return line

    async def _read(self) -> None:
        try:
            self._incoming.feed(await self._response.__anext__())
        except StopAsyncIteration:
            self._incoming.feed(b"")
        except RayError as error:
            _log.warn("replica_lost", error=type(error).__name__, answered=self._answered)
            if self._answered or self._tries >= TRIES:
                raise ConnectionLost(
                    "the replica that worked on this request has ended; send the request again"
                ) from None
            await self._call_again()

    async def _call_again(self) -> None:
        await asyncio.sleep(_PAUSE_SECS)
        self._call()

    def close(self) -> None:
        """Cancels the call to the deployment, and so the request, unless the call has ended."""
        self._response.cancel()
