"""The served paths and their handlers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inferd import __version__
from inferd.http import ollama_endpoints, page_endpoints
from inferd.http.api import chat, completions, embeddings, messages, responses
from inferd.http.api.fields import Fields
from inferd.http.app import Call, Handler
from inferd.http.failures import BadField, HttpFailure
from inferd.http.models import Model

MODEL_CREATED = 0
"""The daemon does not know the date of a model, but the SDKs require a number and a date."""


async def _health(call: Call) -> None:
    ready = call.bridge.models.ready
    await call.json({"status": "ok" if ready else "loading", "version": __version__}, 200 if ready else 503)


async def _metrics(call: Call) -> None:
    text, content_type = call.bridge.metrics.render()
    await call.text(text, content_type)


async def _status(call: Call) -> None:
    key = call.exchange.key
    status = await call.unless_gone(call.bridge.upstream.status())
    state = page_endpoints.told(status, names=key is None or "admin" in key.scopes)
    await call.json({**state, "models": [_model(model) for model in call.bridge.models.all()]})


def _named(body: Any) -> str:
    return Fields(body).required_text("model")


async def _unload(call: Call) -> None:
    name = await call.body(_named)
    await call.bridge.upstream.refresh_models()
    model = call.bridge.models.find(name)
    if not model.on_demand:
        reason = "is of the configuration and stays" if model.loaded else "is not in memory"
        raise BadField("model", f"the model {model.name!r} {reason}")
    running = await call.bridge.upstream.unload(model)
    await call.json({"model": model.name, "running": running})


def _model(model: Model) -> dict[str, object]:
    """Describes a model in a form that the SDKs of both OpenAI and Anthropic read."""
    return {
        "id": model.name,
        "object": "model",
        "created": MODEL_CREATED,
        "owned_by": "inferd",
        "type": "model",
        "display_name": model.name,
        "created_at": "1970-01-01T00:00:00Z",
        "context_window": model.n_ctx,
        "capabilities": model.capabilities,
        "state": model.state,
        "load": model.load,
        "on_demand": model.on_demand,
        "size": model.size,
        "parameters": model.parameters,
        "quantization": model.quantization,
    }


async def _models(call: Call) -> None:
    await call.bridge.upstream.refresh_models()
    models = [_model(model) for model in call.bridge.models.all()]
    names = [str(model["id"]) for model in models]
    await call.json(
        {
            "object": "list",
            "data": models,
            "has_more": False,
            "first_id": names[0] if names else None,
            "last_id": names[-1] if names else None,
        }
    )


async def _one_model(call: Call) -> None:
    await call.bridge.upstream.refresh_models()  # the model's state may have changed
    await call.json(_model(call.bridge.models.find(call.scope["path_params"]["name"])))


async def _chat(call: Call) -> None:
    await call.generate(chat.read)


async def _completions(call: Call) -> None:
    await call.generate(completions.read)


async def _responses(call: Call) -> None:
    await call.generate(responses.read)


async def _no_websocket(call: Call) -> None:
    # Codex, if so configured, tries a WebSocket first, and reads a 404 as "not supported".
    raise HttpFailure("not_found", "responses are served by POST alone")


async def _input_tokens(call: Call) -> None:
    dialect = await call.body(responses.read)
    count = await call.count(dialect.generation)
    await call.json({"object": "response.input_tokens", "input_tokens": count})


async def _messages(call: Call) -> None:
    await call.generate(messages.read)


async def _count_tokens(call: Call) -> None:
    generation = await call.body(messages.read_for_count)
    await call.json({"input_tokens": await call.count(generation)})


async def _embeddings(call: Call) -> None:
    body = await call.body(embeddings.read)
    model = await call.model(body.model, "embed")
    call.exchange.model = model.name
    upstream, asker = call.bridge.upstream, call.exchange.asker
    made = await call.unless_gone(upstream.embed(body.texts, body.dimensions, asker, model))
    call.exchange.input_tokens = made.input_tokens
    await call.json(embeddings.answer(body, made))


async def _rerank(call: Call) -> None:
    body = await call.body(embeddings.read_rerank)
    model = await call.model(body.model, "rerank")
    call.exchange.model = model.name
    upstream, asker = call.bridge.upstream, call.exchange.asker
    made = await call.unless_gone(upstream.rerank(body.query, body.documents, body.top_n, asker, model))
    call.exchange.input_tokens = made.input_tokens
    await call.json(embeddings.rerank_answer(body, made))


_OPENAI: Mapping[str, Mapping[str, Handler]] = {
    "/chat/completions": {"POST": _chat},
    "/completions": {"POST": _completions},
    "/embeddings": {"POST": _embeddings},
    "/rerank": {"POST": _rerank},
    "/responses": {"POST": _responses, "GET": _no_websocket},
    "/responses/input_tokens": {"POST": _input_tokens},
    "/models": {"GET": _models},
    "/models/{name:path}": {"GET": _one_model},
}

ROUTES: dict[str, Mapping[str, Handler]] = {
    "/health": {"GET": _health},
    "/metrics": {"GET": _metrics},
    **{f"/v1{path}": methods for path, methods in _OPENAI.items()},
    **_OPENAI,
    "/v1/messages": {"POST": _messages},
    "/v1/messages/count_tokens": {"POST": _count_tokens},
    **ollama_endpoints.ROUTES,
    **page_endpoints.ROUTES,
    "/status": {"GET": _status},
    "/unload": {"POST": _unload},
}


_TELLING = ("/status", "/v1/models", "/models", "/api/tags", "/api/ps", "/api/show")
_OWN_CHECK = ("/api/pull",)
"""Paths whose endpoint checks the scope, because the scope depends on the request."""


def scope_of(path: str) -> str:
    """Returns the scope that a key needs for a path. The scope is empty for read-only paths, which any key
    may use, and for endpoints that check the scope themselves."""
    if path in ("/metrics", "/unload"):
        return "admin"
    if path in (*_TELLING, *_OWN_CHECK) or path.startswith(("/v1/models/", "/models/")):
        return ""
    return "embed" if path.endswith(("/embeddings", "/rerank", "/embed")) else "generate"
