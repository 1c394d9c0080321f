"""The parts of a Serve application that need no Ray: its arguments, and a replica."""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from inferd.client.framed import FramedIncoming, FramedMessagesRequest
from inferd.errors import BootFailed, ConfigError, ConnectionLost, UsageError
from inferd.ray import build_app
from inferd.ray.config import config_of, settings_of
from inferd.ray.replica import Replica
from tests.cases import cases
from tests.tiny_llama import random_llama

ENTRY = {"kind": "llamacpp", "name": "one", "model_path": "/m.gguf"}
REMOTE = {"kind": "openai-compat", "name": "two", "base_url": "http://127.0.0.1:1", "model": "m"}


@cases(
    "arguments, error, reason",
    [
        ({}, UsageError, "config"),
        ({"config": {}, "replicas": 3}, UsageError, "replicas"),
        ({"config": {}, "max_replicas": "many"}, UsageError, "max_replicas"),
        ({"config": "/nowhere.json"}, ConfigError, "/nowhere.json: cannot be read"),
        ({"config": {"backends": [ENTRY]}}, ConfigError, "Ray Serve is reachable from the network"),
        (
            {"config": {"backends": [ENTRY, REMOTE]}, "open": True},
            ConfigError,
            "'two'.*only deploy",
        ),
        ({"config": {"backends": [{"kind": "llamacpp"}]}, "open": True}, ConfigError, "name"),
    ],
)
def test_an_argument_that_cannot_be_used_is_named(
    arguments: dict[str, Any], error: type[Exception], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("INFERD_API_KEY", raising=False)
    with pytest.raises(error, match=reason):
        build_app(arguments)


def test_a_replica_gets_its_own_entry_and_not_the_http_settings() -> None:
    content = {
        "backends": [ENTRY, {**ENTRY, "name": "other"}],
        "http": {"hosts": ["h"]},
        "engine": {"threads": 1},
    }
    assert config_of(content, "one") == {"backends": [ENTRY], "engine": {"threads": 1}}
    assert settings_of(content).http_hosts == ("h",)


async def frames(replica: Replica, most: int, **options: Any) -> list[dict[str, Any]]:
    request = FramedMessagesRequest(
        "r", [{"role": "user", "content": "Tell."}], {"temperature": 0, **options}
    )
    incoming, found = FramedIncoming("replica", tcp=False), []
    answer = replica.call("v2", b"".join(request.pieces))
    async for piece in answer:
        incoming.feed(piece)
        while (line := incoming.line()) is not None:
            found.append(json.loads(line))
        if len(found) >= most:
            break
    await answer.aclose()
    return found


class Dead(Exception):
    """Stands for Ray's error of a dead replica."""


class Handle:
    """A deployment whose calls answer with ``scripts``, one after another; an exception ends an answer."""

    def __init__(self, *scripts: list[dict[str, Any] | Exception]) -> None:
        self._scripts = list(scripts)
        self.call = SimpleNamespace(remote=self._remote)

    def _remote(self, surface: str, data: bytes) -> AsyncIterator[bytes]:
        assert (surface, data) == ("v1", b"request")
        return self._answer(self._scripts.pop(0))

    async def _answer(self, script: list[dict[str, Any] | Exception]) -> AsyncIterator[bytes]:
        for each in script:
            if isinstance(each, Exception):
                raise each
            yield json.dumps(each).encode() + b"\n"


FAILED = {"type": "error", "id": "q", "code": "backend_unavailable", "message": "it crashed"}
LATE = {**FAILED, "reason": "deadline_exceeded"}
WAITS = {"type": "progress", "id": "q", "model": "", "phase": "queued", "position": 1}
WORD = {"type": "token", "id": "q", "content": "a"}
DONE = {"type": "done", "id": "q"}


@pytest.mark.parametrize(
    ("scripts", "seen"),
    [
        ([[WORD, DONE]], ["token", "done"]),
        ([[Dead()], [WAITS, Dead()], [WORD, DONE]], ["progress", "token", "done"]),
        ([[WAITS, FAILED], [WORD, DONE]], ["progress", "token", "done"]),
        ([[FAILED], [FAILED]], ["error"]),
        ([[LATE]], ["error"]),
        ([[WORD, FAILED]], ["token", "error"]),
        ([[WORD, Dead()]], ["token", "lost"]),
        ([[Dead()]] * 9, ["lost"]),
        ([*[[Dead()]] * 7, [FAILED], *[[Dead()]] * 3], ["lost"]),
    ],
)
async def test_a_request_is_repeated_before_its_first_token_only(
    scripts: list[list[dict[str, Any] | Exception]], seen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {"RayError": Dead, "DeploymentHandle": object, "DeploymentResponseGenerator": object}
    for name in ("ray", "ray.exceptions", "ray.serve", "ray.serve.handle"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**parts))
    monkeypatch.delitem(sys.modules, "inferd.ray.ingress", raising=False)
    ingress = importlib.import_module("inferd.ray.ingress")
    monkeypatch.delitem(sys.modules, "inferd.ray.ingress")
    monkeypatch.setattr(ingress, "_PAUSE_SECS", 0)
    connection = ingress.RayConnection(Handle(*scripts), "v1", b"request")
    found: list[str] = []
    while not {"done", "error", "lost"} & set(found):
        try:
            found.append(json.loads(await connection.line())["type"])
        except ConnectionLost:
            found.append("lost")
    assert found == seen


async def test_a_replica_answers_cancels_and_fails_with_its_daemon() -> None:
    config = {
        "backends": [{"kind": "llamacpp", "name": "one", "model_path": str(random_llama()), "n_ctx": 512}],
        "engine": {"threads": 1, "active_permits": 1},
    }
    replica = Replica.__new__(Replica)
    await replica.__init__(config)  # type: ignore[misc] # Ray awaits it, too
    try:
        assert [frame["model"] for frame in await replica.capabilities()] == ["random"]
        whole = await frames(replica, 10_000, max_tokens=4)
        assert whole[-1]["type"] in ("done", "message_done")
        # With one permit, the second answer needs the first one to be cancelled.
        assert await frames(replica, 2, max_tokens=400, grammar="root ::= [a-z]{400}")
        assert len(await asyncio.wait_for(frames(replica, 10_000, max_tokens=2), 100)) >= 2
        replica.check_health()
        replica._process.kill()
        replica._process.wait()
        with pytest.raises(BootFailed):
            replica.check_health()
    finally:
        replica.__del__()
    assert not await asyncio.to_thread(replica._dir.exists)
