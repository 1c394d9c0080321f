"""Models by name over HTTP: stored models are listed, and loaded by the first request that names them."""

from __future__ import annotations

from pathlib import Path

from inferd.store.models import ModelStore
from tests.daemon_process import until
from tests.http_bridge import BridgeProcess, web
from tests.lazy import Lazy
from tests.tiny_llama import write_llama
from tests.tiny_model import stock

ollama = Lazy("ollama")


def test_a_model_of_the_store_is_listed_and_loaded_by_its_name(tmp_path: Path) -> None:
    content = write_llama(tmp_path / "talker.gguf", keys={"general.file_type": 3}).read_bytes()
    store = ModelStore(tmp_path / "models")
    stock(store, "talker", content)
    with (
        BridgeProcess(mock={}, MODELS_HOME=store.home, threads=1) as process,
        ollama.Client(process.base) as host,
    ):
        until(lambda: len(host.list().models) == 2)
        mock, cold = host.list().models
        assert (mock.model, cold.model) == ("mock", "talker")
        assert cold.size == len(content)
        assert cold.digest
        assert cold.details is not None
        assert (cold.details.family, cold.details.parameter_size) == ("llama", "0.53M")
        assert cold.details.quantization_level == "Q4_1"
        assert [model.model for model in host.ps().models] == ["mock"]
        assert state(process) == "stored"

        body = {"model": "talker", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
        answer = web.post(f"{process.base}/v1/chat/completions", json=body)
        assert answer.json()["usage"]["completion_tokens"] == 2
        until(lambda: state(process) == "loaded")
        assert [model.model for model in host.ps().models] == ["mock", "talker"]
        # The first of the configuration still is the default.
        answer = web.post(f"{process.base}/v1/chat/completions", json={**body, "model": "default"})
        assert answer.json()["choices"][0]["message"]["content"] == "mock-response"
        told = host.show("talker").modelinfo
        assert told is not None
        assert (told["llama.context_length"], told["llama.embedding_length"]) == (8192, 32)


def state(process: BridgeProcess) -> object:
    """The state of the model as the bridge reports it."""
    return web.get(f"{process.base}/v1/models/talker").json()["state"]
