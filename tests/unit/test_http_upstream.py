"""The requests of the bridge to the daemon."""

from __future__ import annotations

import os
from collections.abc import Callable

import orjson

from inferd.http.models import Model, Models
from inferd.http.upstream import Asker, Upstream
from tests.scripted_peer import Peer, Script, frames

VECTORS: dict[str, object] = {
    "type": "embeddings",
    "embeddings": [[1.0]],
    "dimensions": 1,
    "usage": {"input_tokens": 1},
    "backend": "b",
    "model": "a",
}


async def test_a_key_says_how_long_a_model_stays_only_with_a_token(
    peer: Callable[[Script], Peer],
) -> None:
    server = peer(frames(VECTORS))
    model = Model(name="a", tasks=frozenset({"embed"}), wire_name="a")

    async def passes(caller: str, token: str = "") -> bool:
        upstream = Upstream({"embed": str(server.path)}, Models({}), token)
        await upstream.embed(["text"], None, Asker(caller=caller), model, keep_alive=-1.0)
        await upstream.aclose()
        request = orjson.loads(server.lines[-1])
        assert ("on_behalf_of" in request) is bool(token)
        return request.get("keep_alive") == -1.0

    assert not await passes("key:bob")
    assert not await passes("")
    assert not await passes("uid:4294967294")
    assert await passes(f"uid:{os.getuid()}")
    assert await passes("uid:0")
    assert await passes("key:bob", token="t" * 64)  # the daemon knows that this is a key
