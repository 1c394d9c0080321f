"""Models by name over HTTP: stored models are listed, and loaded by the first request that names them."""

from __future__ import annotations

import time
from pathlib import Path

from inferd.store.models import ModelStore
from tests.demo_model import demo_model
from tests.http_bridge import PATIENCE_SECS, BridgeProcess, web
from tests.lazy import Lazy
from tests.tiny_model import stock

ollama = Lazy("ollama")


def test_a_model_of_the_store_is_listed_and_loaded_by_its_name(tmp_path: Path) -> None:
    stock(ModelStore(tmp_path), "talker", demo_model().read_bytes())
    with (
        BridgeProcess(mock={}, MODELS_HOME=tmp_path, threads=1) as process,
        ollama.Client(process.base) as host,
    ):
        deadline = time.monotonic() + PATIENCE_SECS
        while len(found := host.list().models) < 2:
            assert time.monotonic() < deadline, found
        mock, cold = found
        assert (mock.model, cold.model) == ("mock", "talker")
        assert cold.size == demo_model().stat().st_size
        assert cold.digest
        assert cold.details is not None
        assert (cold.details.family, cold.details.parameter_size) == ("llama", "134.52M")
        assert cold.details.quantization_level == "Q4_1"
        assert [model.model for model in host.ps().models] == ["mock"]
        assert state(process) == "stored"

        body = {"model": "talker", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
        answer = web.post(f"{process.base}/v1/chat/completions", json=body)
        assert answer.json()["usage"]["completion_tokens"] == 2
        while state(process) != "loaded":
            assert time.monotonic() < deadline
        assert [model.model for model in host.ps().models] == ["mock", "talker"]
        # The first of the configuration still is the default.
        answer = web.post(f"{process.base}/v1/chat/completions", json={**body, "model": "default"})
        assert answer.json()["choices"][0]["message"]["content"] == "mock-response"
        told = host.show("talker").modelinfo
        assert told is not None
        assert (told["llama.context_length"], told["llama.embedding_length"]) == (8192, 576)


def state(process: BridgeProcess) -> object:
    """The state that the bridge tells of the model."""
    return web.get(f"{process.base}/v1/models/talker").json()["state"]
