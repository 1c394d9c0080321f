"""Vectors and scores over HTTP, from a small embedding and a small ranking model, by the unmodified SDKs."""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest

from tests.http_bridge import BridgeProcess, web
from tests.lazy import Lazy
from tests.tiny_bert import CONTEXT, WIDTH, write_bert

ollama = Lazy("ollama")
openai = Lazy("openai")

TEXTS = ["a b c", "x y"]
LONG = "a " * (3 * CONTEXT)


@pytest.fixture(scope="module")
def bridge() -> Iterator[BridgeProcess]:
    with tempfile.TemporaryDirectory(prefix="i", dir="/tmp") as name:
        vectors = write_bert(Path(name) / "vectors.gguf")
        ranker = write_bert(Path(name) / "ranker.gguf", pooling=gguf.PoolingType.RANK)
        common = {"kind": "llamacpp", "embed": True}
        config = Path(name) / "config.json"
        backends = [
            {**common, "name": "vectors", "model_path": str(vectors)},
            {**common, "name": "ranker", "model_path": str(ranker), "embed_pooling": "rank"},
        ]
        config.write_text(json.dumps({"backends": backends}))
        with BridgeProcess(config=config) as process:
            yield process


def test_floats_and_base64_are_the_same_vectors(bridge: BridgeProcess) -> None:
    with openai.OpenAI(base_url=f"{bridge.base}/v1", api_key="any", max_retries=0) as client:
        usual = client.embeddings.create(model="default", input=TEXTS)  # the SDK asks for base64
        floats = client.embeddings.create(model="default", input=TEXTS, encoding_format="float")
        short = client.embeddings.create(model="default", input="a b c", dimensions=8)
        with pytest.raises(openai.BadRequestError) as caught:
            client.embeddings.create(model="default", input=LONG)
    assert caught.value.code == "context_length_exceeded"
    assert [item.index for item in usual.data] == [0, 1]
    for one, other in zip(usual.data, floats.data, strict=True):
        assert len(one.embedding) == WIDTH
        assert np.allclose(one.embedding, other.embedding, atol=1e-6)
        assert np.linalg.norm(one.embedding) == pytest.approx(1, abs=1e-5)
    assert len(short.data[0].embedding) == 8
    body = {"model": "default", "input": TEXTS, "encoding_format": "base64"}
    raw = web.post(f"{bridge.base}/v1/embeddings", json=body).json()["data"][0]["embedding"]
    assert np.allclose(np.frombuffer(base64.b64decode(raw), "<f4"), floats.data[0].embedding, atol=1e-6)


def test_ollama_truncates_only_on_request(bridge: BridgeProcess) -> None:
    client = ollama.Client(bridge.base)
    made = client.embed("default", TEXTS)
    assert [len(vector) for vector in made.embeddings] == [WIDTH, WIDTH]
    with pytest.raises(ollama.ResponseError):
        client.embed("default", LONG)
    cut = web.post(
        f"{bridge.base}/api/embed", json={"model": "default", "input": ["a b c", LONG], "truncate": True}
    ).json()
    assert cut["truncated"] == [1]
    assert np.allclose(cut["embeddings"][0], made.embeddings[0], atol=1e-6)
    assert len(client.embeddings("default", "a b c").embedding) == WIDTH
    client._client.close()


def test_rerank(bridge: BridgeProcess) -> None:
    body = {
        "model": "default",
        "query": "a b",
        "documents": ["x y z", {"text": "a b"}, "q"],
        "top_n": 2,
        "return_documents": True,
    }
    answer = web.post(f"{bridge.base}/v1/rerank", json=body).json()
    scores = [result["relevance_score"] for result in answer["results"]]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 2
    for result in answer["results"]:
        assert result["document"]["text"] == ["x y z", "a b", "q"][result["index"]]
