"""A chat model, an embedding model and a ranking model in one daemon, over its sockets."""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from tests import minilm
from tests.daemon_process import DaemonProcess
from tests.demo_model import demo_model
from tests.tiny_bert import write_bert

TEXTS = ["Cats are small mammals that purr.", "The stock market fell by three percent on Monday."]


@pytest.fixture(scope="module")
def process() -> Iterator[DaemonProcess]:
    with tempfile.TemporaryDirectory(prefix="i", dir="/tmp") as name:
        directory = Path(name)
        ranker = write_bert(directory / "ranker", pooling=gguf.PoolingType.RANK)
        config = directory / "config.json"
        backends = [
            {"kind": "llamacpp", "name": "chat", "model_path": str(demo_model()), "n_ctx": 256},
            {"kind": "llamacpp", "name": "vectors", "model_path": str(minilm.minilm()), "embed": True},
            {
                "kind": "llamacpp",
                "name": "ranker",
                "model_path": str(ranker),
                "embed": True,
                "embed_pooling": "rank",
            },
        ]
        config.write_text(json.dumps({"backends": backends}))
        started = DaemonProcess(directory / "0", {"backend": "", "config": config, "threads": 1}, {})
        started.wait_for("ready")
        yield started
        assert started.end() == []


def ask(process: DaemonProcess, surface: str, **request: Any) -> dict[str, Any]:
    with process.connect(surface) as wire:
        wire.send({"id": "q", **request})
        return wire.frame()


def test_vectors_are_those_of_the_published_model(process: DaemonProcess) -> None:
    frame = ask(process, "embed", input=TEXTS)
    assert frame["usage"] == {"input_tokens": sum(len(minilm.tokens(text)) for text in TEXTS)}
    for text, vector in zip(TEXTS, frame["embeddings"], strict=True):
        assert np.array(vector, np.float32) @ minilm.embed(text) >= 0.999
    coded = ask(process, "embed", input=TEXTS, encoding="base64")
    for vector, row in zip(frame["embeddings"], coded["embeddings"], strict=True):
        assert np.array_equal(np.frombuffer(base64.b64decode(row), "<f4"), np.array(vector, np.float32))
    assert [len(vector) for vector in ask(process, "embed", input=TEXTS, dimensions=3)["embeddings"]] == [
        3,
        3,
    ]


def test_a_text_too_long_is_refused_and_the_daemon_lives(process: DaemonProcess) -> None:
    with process.connect("embed") as wire:
        wire.send({"id": "long", "input": ["a", "cat " * 600]})
        refused = wire.frame()
        assert (refused["type"], refused["code"]) == ("error", "invalid_request")
        assert "input[1] is 602 tokens long and the embedding context is 512" in refused["message"]
        wire.send({"id": "wide", "input": ["a"], "dimensions": 385})
        assert "385" in wire.frame()["message"]
        wire.send({"id": "next", "input": ["a"]})
        assert wire.frame()["type"] == "embeddings"


def test_documents_are_ranked(process: DaemonProcess) -> None:
    frame = ask(process, "rerank", query="a b", documents=["c", "d e", "c", "f"])
    scores = [result["score"] for result in frame["results"]]
    assert scores == sorted(scores, reverse=True)
    order = [result["index"] for result in frame["results"]]
    assert sorted(order) == [0, 1, 2, 3]
    assert abs(order.index(0) - order.index(2)) == 1  # the same document, so next to each other
    best = ask(process, "rerank", query="a b", documents=["c", "d e"], top_n=1)["results"]
    assert [result["index"] for result in best] == [index for index in order if index < 2][:1]


def test_text_comes_from_the_model_that_can_write(process: DaemonProcess) -> None:
    with process.connect() as wire:
        wire.send({"id": "q", "messages": [{"role": "user", "content": "Say hi."}], "max_tokens": 2})
        frame = [*wire.frames()][-1]
    assert (frame["type"], frame["usage"]["completion_tokens"]) == ("done", 2)
