"""Ollama's library, unmodified, against a small random model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from inferd.store.models import ModelStore
from tests.daemon_process import until
from tests.http_bridge import BridgeProcess, web
from tests.lazy import Lazy
from tests.tiny_bert import write_bert
from tests.tiny_llama import random_llama
from tests.tiny_model import stock

ollama = Lazy("ollama")

MODEL = "random"
OPTIONS = {"temperature": 0, "num_predict": 6, "top_k": None, "num_ctx": 99999}


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BridgeProcess]:
    store = tmp_path_factory.mktemp("models")
    with BridgeProcess(model_path=random_llama(), MODELS_HOME=store, n_ctx=1024) as process:
        yield process


@pytest.fixture
def client(bridge: BridgeProcess) -> Iterator[ollama.Client]:
    client = ollama.Client(bridge.base)
    yield client
    client._client.close()


def test_line_separators_of_unicode_do_not_end_a_line_of_the_stream() -> None:
    text = "next\x85line\u2028para\u2029é."
    with BridgeProcess({"tape": [text]}) as process:
        client = ollama.Client(process.wait_ready().base)
        parts = list(client.chat("mock", [{"role": "user", "content": "?"}], stream=True))
        client._client.close()
    assert "".join(part.message.content or "" for part in parts) == text


def test_chat_whole_and_streamed(client: ollama.Client, bridge: BridgeProcess) -> None:
    ask = [{"role": "user", "content": "Say hello."}]
    whole = client.chat(MODEL, ask, options=OPTIONS, keep_alive=-1)
    parts = list(client.chat(f"{MODEL}:latest", ask, options=OPTIONS, stream=True))
    assert "".join(part.message.content or "" for part in parts) == whole.message.content
    assert parts[-1].done
    assert parts[-1].done_reason == whole.done_reason
    assert parts[-1].eval_count == whole.eval_count
    assert whole.prompt_eval_count
    generated = client.generate(MODEL, "Say hello.", options=OPTIONS)
    assert generated.response == whole.message.content
    # The context is the model's own; the log says that another one was asked for.
    until(lambda: sum(event["ignored"] == "num_ctx" for event in bridge.events("http_request")) >= 3)


def test_logprobs_and_a_raw_prompt(client: ollama.Client) -> None:
    ask = [{"role": "user", "content": "Say hello."}]
    whole = client.chat(MODEL, ask, options=OPTIONS, logprobs=True, top_logprobs=2)
    parts = list(client.chat(MODEL, ask, options=OPTIONS, logprobs=True, top_logprobs=2, stream=True))
    tokens = list(whole.logprobs or [])
    assert "".join(token.token for token in tokens) == whole.message.content
    assert all(len(token.top_logprobs or []) == 2 for token in tokens)
    assert [token for part in parts for token in part.logprobs or []] == tokens
    raw, in_template = (
        client.generate(MODEL, "The capital", raw=each, options=OPTIONS) for each in (True, False)
    )
    assert raw.response != in_template.response
    assert raw.prompt_eval_count == 2
    with pytest.raises(ollama.ResponseError, match="no tokens for a text"):
        client.generate(MODEL, "a", suffix="b", options=OPTIONS)


def test_a_schema_and_a_tool(client: ollama.Client) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "green"]}},
        "required": ["colour"],
        "additionalProperties": False,
    }
    answer = client.chat(
        MODEL, [{"role": "user", "content": "Name a colour."}], format=schema, options={"num_predict": 40}
    )
    assert json.loads(answer.message.content or "")["colour"] in ("red", "green")
    history = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "tool_calls": [{"function": {"name": "w", "arguments": {"city": "Rome"}}}]},
        {"role": "tool", "tool_name": "w", "content": "snow"},
    ]
    assert client.chat(MODEL, history, options=OPTIONS).message.content is not None


def test_lists_shows_and_loads_models(client: ollama.Client) -> None:
    assert [model.model for model in client.list().models] == [MODEL]
    assert client.ps().models[0].model == MODEL
    shown = client.show(MODEL)
    assert "completion" in (shown.capabilities or [])
    assert [value for key, value in (shown.modelinfo or {}).items() if key.endswith(".context_length")] == [
        1024
    ]
    assert client.pull(MODEL).status == "success"
    assert client.chat(MODEL, []).done_reason == "load"
    assert client.generate(MODEL, "", keep_alive=0).done_reason == "unload"


def test_errors(client: ollama.Client, bridge: BridgeProcess) -> None:
    with pytest.raises(ollama.ResponseError) as caught:
        client.chat("none", [{"role": "user", "content": "hi"}])
    assert (caught.value.status_code, caught.value.error) == (404, "model 'none' not found")
    with pytest.raises(ollama.ResponseError) as caught:
        client.delete(MODEL)
    assert caught.value.status_code == 501
    with pytest.raises(ollama.ResponseError) as caught:
        client.embed(MODEL, "text")
    assert caught.value.status_code == 404
    assert web.get(bridge.base).text == "Ollama is running"
    assert web.head(f"{bridge.base}/api/hello").status_code == 200
    assert web.post(f"{bridge.base}/api/show", json={"name": MODEL}).status_code == 200


def test_models_of_the_store_are_loaded_and_unloaded_by_name(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "models")
    stock(store, "talker", random_llama().read_bytes())
    own = write_bert(tmp_path / "own")
    with BridgeProcess(MODELS_HOME=store.home, model_path=own, embed="true", threads=1, n_ctx=256) as process:
        client = ollama.Client(process.wait_ready().base)
        assert {model.model for model in client.list().models} == {"own", "talker"}
        assert [model.model for model in client.ps().models] == ["own"]
        answer = client.chat("talker", [{"role": "user", "content": "hi"}], options=OPTIONS, keep_alive="1h")
        assert answer.eval_count
        assert [model.model for model in client.ps().models] == ["own", "talker"]
        assert client.generate("talker", "", keep_alive=0).done_reason == "unload"
        until(lambda: [model.model for model in client.ps().models] == ["own"])
        client._client.close()
