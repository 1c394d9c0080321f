"""The endpoints of Ollama's API, below /api."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import PurePath
from typing import Any

from inferd import __version__
from inferd.client.admin import Frame
from inferd.client.vectors import Embeddings
from inferd.errors import InferdError, RequestFailed
from inferd.http import failures, stream
from inferd.http.answer import STREAM_HEADERS
from inferd.http.api import ollama
from inferd.http.api.fields import Fields
from inferd.http.api.request import Generation
from inferd.http.app import Call, Handler
from inferd.http.failures import HttpFailure, UnknownModel
from inferd.http.models import Model

MODIFIED_AT = "1970-01-01T00:00:00Z"
"""The daemon does not know the date of a model, but the clients require a date."""

_PULLED: dict[str, object] = {"status": "success"}

_CUTS = 8
"""How often a text is shortened at most. Each time, the characters per token show how much text fits."""


async def _hello(call: Call) -> None:
    await call.json({})


async def _version(call: Call) -> None:
    await call.json({"version": call.bridge.ollama_version, "inferd": __version__})


async def _chat(call: Call) -> None:
    await _answer(call, ollama.read_chat)


async def _generate(call: Call) -> None:
    await _answer(call, ollama.read_generate)


async def _answer(call: Call, read: Any) -> None:
    dialect = await call.body(read)
    if dialect.load is not None:
        await _load_or_unload(call, dialect.generation, dialect.load)
        await call.json(dialect.loaded())
    else:
        await call.answer(dialect)


async def _load_or_unload(call: Call, generation: Generation, wish: str) -> None:
    """Serves a request without messages or prompt. Loads the model, or unloads the model once no request uses
    it."""
    model = await call.model(generation.model, "v2")
    if wish == "unload":
        await call.bridge.upstream.refresh_models()
        model = await call.model(generation.model, "v2")
    if model.wire_name and (wish == "load" or model.loaded):
        generation.turns = [{"role": "user", "content": [{"type": "text", "text": wish}]}]
        await call.count(generation)


# Models.


def _details(model: Model) -> dict[str, Any]:
    return {
        "format": "gguf",
        "family": model.family,
        "families": [model.family] if model.family else [],
        "parameter_size": _parameter_size(model.parameters),
        "quantization_level": model.quantization,
    }


def _parameter_size(count: int) -> str:
    """Formats the number of parameters of a model as Ollama does, such as 134.52M or 7.62B."""
    if not count:
        return ""
    unit, name = (1e9, "B") if count >= 1e9 else (1e6, "M")
    return f"{count / unit:.2f}{name}"


def _entry(model: Model) -> dict[str, Any]:
    return {
        "name": model.name,
        "model": model.name,
        "modified_at": MODIFIED_AT,
        "size": model.size,
        "digest": model.digest,
        "details": _details(model),
    }


async def _tags(call: Call) -> None:
    await call.bridge.upstream.refresh_models()
    await call.json({"models": [_entry(model) for model in call.bridge.models.all()]})


async def _ps(call: Call) -> None:
    await call.bridge.upstream.refresh_models()
    loaded = [model for model in call.bridge.models.all() if model.loaded]
    models = [{**_entry(model), "context_length": model.n_ctx} for model in loaded]
    await call.json({"models": models})


def _named(body: Any) -> str:
    return ollama.model_of(Fields(body))


async def _show(call: Call) -> None:
    name = await call.body(_named)
    await call.bridge.upstream.refresh_models()  # the chat template may have been analysed since
    model = await call.model(name)
    # If the architecture is unknown, any prefix will do: clients search for a key with this suffix.
    family = model.family or "unknown"
    info: dict[str, Any] = {"general.architecture": family, f"{family}.context_length": model.n_ctx}
    if model.width:
        info[f"{family}.embedding_length"] = model.width
    if model.parameters:
        info["general.parameter_count"] = model.parameters
    await call.json(
        {"details": _details(model), "model_info": info, "capabilities": model.capabilities, "parameters": ""}
    )


async def _pull(call: Call) -> None:
    fields = await call.body(Fields)
    name = ollama.model_of(fields)
    streams = fields.flag("stream") is not False
    try:
        await call.model(name)
    except UnknownModel:
        key = call.exchange.key
        if key is not None and "admin" not in key.scopes:
            raise HttpFailure(
                "forbidden", f"the key {key.name} lacks the scope admin, which a download needs"
            ) from None
        call.exchange.model = name
        await call.unless_gone(_download(call, name, streams))
        return
    if streams:
        lines = stream.ndjson({"status": "pulling manifest"}) + stream.ndjson(_PULLED)
        await call.text(lines, stream.NDJSON)
    else:
        await call.json(_PULLED)


async def _download(call: Call, name: str, streams: bool) -> None:
    """Downloads a model, and answers with the steps of the download.

    If the download fails before its first step, the answer has the HTTP status of the error. After the first
    step, the last line of the answer describes the error.
    """
    exchange, digest = call.exchange, ""
    try:
        async for frame in call.bridge.upstream.pull(name):
            digest = _digest_of(frame) or digest
            if streams:
                await _write_line(call, _step(frame, digest), last=frame["status"] == "pulled")
    except InferdError as error:
        if not exchange.status:
            raise
        failure = failures.of(error)
        exchange.error = failure.kind
        await _write_line(call, {"error": failure.ollama()}, last=True)
        return
    if not streams:
        await call.json(_PULLED)


async def _write_line(call: Call, line: Mapping[str, object], *, last: bool) -> None:
    if not call.exchange.status:
        headers = [(b"content-type", stream.NDJSON.encode()), *STREAM_HEADERS]
        await call.send({"type": "http.response.start", "status": 200, "headers": headers})
    await call.send({"type": "http.response.body", "body": stream.ndjson(line), "more_body": not last})


def _digest_of(frame: Frame) -> str:
    """Returns the SHA-256 digest of the model file in ``frame``, or an empty string. In the store, the
    directory of a file has the name of the file's digest."""
    return PurePath(str(frame["path"])).parent.name if frame.get("phase") == "checking_local" else ""


def _step(frame: Frame, digest: str) -> dict[str, object]:
    """Returns the line of Ollama's API for a step of a download."""
    if frame["status"] == "pulled":
        return _PULLED
    if frame["phase"] == "download":
        if "waiting_for_pid" in frame:
            return {"status": "another process downloads this file"}
        if "attempt" in frame:
            return {"status": f"try {frame['attempt']} follows: {frame.get('reason', '')}"}
        sizes = {"total": frame.get("total_bytes"), "completed": frame.get("downloaded_bytes")}
        told = {key: value for key, value in sizes.items() if value is not None}
        return {"status": f"pulling {digest[:12]}", "digest": f"sha256:{digest}", **told}
    words = {"checking_local": "pulling manifest", "verify": "verifying sha256 digest"}
    return {"status": words.get(frame["phase"], frame["phase"])}


async def _not_served(call: Call) -> None:
    raise HttpFailure("not_served", "this server does not change models; use the command inferd")


# Vectors.


def _read_embed(body: Any) -> tuple[Fields, list[str], int | None, bool]:
    fields = Fields(body)
    texts = fields.texts("input")
    if not texts or not all(texts):
        raise fields.bad("input", "must be a non-empty string or an array of them")
    return fields, texts, fields.count("dimensions"), fields.flag("truncate") is True


async def _embed(call: Call) -> None:
    fields, texts, dimensions, cut = await call.body(_read_embed)
    started = time.perf_counter_ns()
    made, shortened = await _embedded(call, fields, texts, dimensions, cut)
    answer: dict[str, Any] = {
        "model": ollama.model_of(fields),
        "embeddings": made.embeddings,
        "total_duration": time.perf_counter_ns() - started,
        "load_duration": 0,
        "prompt_eval_count": made.input_tokens,
    }
    if cut:
        answer["truncated"] = shortened
    await call.json(answer)


async def _embeddings(call: Call) -> None:
    fields = await call.body(Fields)
    made, _ = await _embedded(call, fields, [fields.required_text("prompt")], None, False)
    await call.json({"embedding": made.embeddings[0]})


async def _embedded(
    call: Call, fields: Fields, texts: list[str], dimensions: int | None, cut: bool
) -> tuple[Embeddings, list[int]]:
    """Embeds the texts. If ``cut`` is true, shortens each text that is too long. Returns the embeddings and
    the indices of the shortened texts."""
    model = await call.model(ollama.model_of(fields), "embed")
    call.exchange.model = model.name

    async def embed(some: list[str]) -> Embeddings:
        stay = ollama.keep_alive_of(fields)
        return await call.bridge.upstream.embed(some, dimensions, call.exchange.asker, model, stay)

    if not cut:
        made = await call.unless_gone(embed(texts))
        call.exchange.input_tokens = made.input_tokens
        return made, []
    parts: list[Embeddings] = []
    shortened: list[int] = []
    for place, text in enumerate(texts):
        part, was_cut = await call.unless_gone(_cut_to_fit(embed, text))
        parts.append(part)
        shortened += [place] if was_cut else []
    whole = Embeddings(
        embeddings=[part.embeddings[0] for part in parts],
        dimensions=parts[0].dimensions,
        model=parts[0].model,
        input_tokens=sum(part.input_tokens for part in parts),
        backend=parts[0].backend,
    )
    call.exchange.input_tokens = whole.input_tokens
    return whole, shortened


async def _cut_to_fit(
    embed: Callable[[list[str]], Awaitable[Embeddings]], text: str
) -> tuple[Embeddings, bool]:
    was_cut = False
    for _ in range(_CUTS):
        try:
            return await embed([text]), was_cut
        except RequestFailed as error:
            if error.details.get("reason") != "prompt_too_long":
                raise
            text = text[: len(text) * error.details["limit"] // (error.details["tokens"] + 1)]
            was_cut = True
    return await embed([text]), was_cut


ROUTES: dict[str, Mapping[str, Handler]] = {
    "/api/hello": {"GET": _hello},
    "/api/version": {"GET": _version},
    "/api/tags": {"GET": _tags},
    "/api/ps": {"GET": _ps},
    "/api/chat": {"POST": _chat},
    "/api/generate": {"POST": _generate},
    "/api/show": {"POST": _show},
    "/api/pull": {"POST": _pull},
    "/api/embed": {"POST": _embed},
    "/api/embeddings": {"POST": _embeddings},
    **{f"/api/{name}": {"POST": _not_served} for name in ("create", "copy", "push")},
    "/api/delete": {"DELETE": _not_served},
    "/api/blobs/{digest}": {"POST": _not_served},
}
