"""The ASGI application: the routing of requests, and the operations that the endpoints share.

An endpoint reads the body with the module of its API, finds the model, and answers through :class:`Answer`.
An unknown path gets the status 404. A known path with an unknown method gets the status 405. Both errors have
the form of the path's API.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from inferd.http import body
from inferd.http.answer import Answer, send_json
from inferd.http.api.request import Dialect, Generation
from inferd.http.exchange import Exchange
from inferd.http.failures import HttpFailure, UnknownModel
from inferd.http.gate import Gate
from inferd.http.keys import Keys
from inferd.http.metrics import Metrics
from inferd.http.models import Model, Models, Task
from inferd.http.upstream import Upstream

R = TypeVar("R")
Handler = Callable[["Call"], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The settings of the bridge. ``addresses`` are the daemon's addresses by surface."""

    addresses: Mapping[str, str]
    keys: Keys
    ollama_version: str
    aliases: Mapping[str, str] = field(default_factory=dict)
    hosts: Iterable[str] = ()
    origins: Iterable[str] = ()
    token: str = ""
    api_key: str | None = None


@dataclass(slots=True)
class Call:
    """One request that has reached its endpoint."""

    bridge: Bridge
    scope: Scope
    receive: Receive
    send: Send

    @property
    def exchange(self) -> Exchange:
        exchange: Exchange = self.scope["exchange"]
        return exchange

    async def json(self, value: object, status: int = 200) -> None:
        """Answers with a JSON value."""
        await send_json(self.send, value, self.exchange, status)

    async def text(self, text: str | bytes, content_type: str = "text/plain; charset=utf-8") -> None:
        """Answers with text."""
        data = text.encode() if isinstance(text, str) else text
        headers = [(b"content-type", content_type.encode()), (b"content-length", str(len(data)).encode())]
        await self.send({"type": "http.response.start", "status": 200, "headers": headers})
        await self.send({"type": "http.response.body", "body": data})

    async def body(self, convert: Callable[[Any], R]) -> R:
        """Returns the body, converted by ``convert``. Raises the errors of :func:`inferd.http.body.read`."""
        return await body.read(self.scope, self.receive, convert)

    async def unless_gone(self, work: Coroutine[Any, Any, R]) -> R:
        """Awaits ``work``. If the client disconnects before ``work`` ends, cancels ``work`` and raises
        ClientGone."""
        loop = asyncio.get_running_loop()
        task, watch = loop.create_task(work), loop.create_task(body.until_gone(self.receive))
        try:
            await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise body.ClientGone
            return task.result()
        finally:
            for each in (task, watch):
                each.cancel()
            await asyncio.wait((task, watch))

    async def generate(self, read: Callable[[Any], Dialect]) -> None:
        """Reads a generation request and answers it."""
        await self.answer(await self.body(read))

    async def model(self, name: str, task: Task | None = None) -> Model:
        """Finds a model by name. Raises UnknownModel if there is no such model, and HttpFailure if the daemon
        is not ready."""
        models = self.bridge.models
        try:
            return models.find(name, task)
        except UnknownModel:
            await self.bridge.upstream.refresh_models()  # the store may have a new model
            return models.find(name, task)

    async def answer(self, dialect: Dialect) -> None:
        generation, exchange = dialect.generation, self.exchange
        model = await self.model(generation.model, "v2")
        exchange.model, exchange.stream = model.name, generation.stream
        if generation.num_ctx is not None and 0 < model.n_ctx < generation.num_ctx:
            generation.ignored.add("num_ctx")
        exchange.ignored = ", ".join(sorted(generation.ignored))
        answer = Answer(dialect, exchange, self.send)
        reply = self.bridge.upstream.generate(generation, model, exchange.asker, answer.show_load)
        await answer.serve(reply, self.receive)

    async def count(self, generation: Generation) -> int:
        """Counts the tokens of a request's prompt, which the model's own chat template renders."""
        model = await self.model(generation.model, "v2")
        self.exchange.model = model.name
        generation.max_tokens = 0
        reply = self.bridge.upstream.generate(generation, model, self.exchange.asker)
        return (await self.unless_gone(reply.result())).input_tokens


class Bridge:
    """The application and the state that its endpoints share."""

    def __init__(self, options: Options, connect: Callable[[Models], Upstream] | None = None) -> None:
        self.models = Models(options.aliases)
        self.metrics = Metrics()
        if connect is None:
            self.upstream = Upstream(options.addresses, self.models, options.token, options.api_key)
        else:
            self.upstream = connect(self.models)
        self.ollama_version = options.ollama_version
        self._options = options

    def app(self, routes: Mapping[str, Mapping[str, Handler]], scope_of: Callable[[str], str]) -> ASGIApp:
        """Returns the ASGI application for ``routes``, which maps each path to a handler for each method.
        ``scope_of`` returns the scope that a key needs for a path."""
        endpoints = {path: _Endpoint(self, path, methods) for path, methods in routes.items()}
        matched = [Route(path, endpoint) for path, endpoint in endpoints.items()]
        router = Router(matched, redirect_slashes=False, default=_not_found, lifespan=self._lifespan)
        # The router tries one pattern after the other, but most paths have no variable part.
        plain = {path: endpoint for path, endpoint in endpoints.items() if "{" not in path}

        async def routed(scope: Scope, receive: Receive, send: Send) -> None:
            endpoint = plain.get(scope["path"]) if scope["type"] == "http" else None
            await (endpoint or router)(scope, receive, send)

        return Gate(
            routed,
            keys=self._options.keys,
            metrics=self.metrics,
            hosts=self._options.hosts,
            origins=self._options.origins,
            scope_of=scope_of,
        )

    @asynccontextmanager
    async def _lifespan(self, app: Router) -> AsyncIterator[None]:
        await self.upstream.start()
        yield
        await self.upstream.aclose()


class _Endpoint:
    """The handlers of a path, by method. HEAD runs the handler of GET, and the server drops the body."""

    def __init__(self, bridge: Bridge, path: str, methods: Mapping[str, Handler]) -> None:
        self._bridge = bridge
        self._path = path
        self._methods = methods

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope["exchange"]
        exchange.path, exchange.routed = self._path, True
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        handler = self._methods.get(method)
        if handler is None:
            allowed = ", ".join(self._methods)
            raise HttpFailure("method_not_allowed", f"this endpoint takes {allowed}, not {scope['method']}")
        await handler(Call(self._bridge, scope, receive, send))


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        raise HttpFailure("not_found", "there is no such endpoint")
