"""A daemon with a bedrock-invoke backend, on a local endpoint that accepts only valid signatures."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from tests import bedrock_server
from tests.bedrock_server import BedrockServer, Exchange, Script, answer, end, exception
from tests.daemon_process import DaemonProcess, Wire

Start = Callable[..., DaemonProcess]

MODEL = "eu.anthropic.claude-sonnet-4-5-20250929-v1:0"
SECRETS = (
    bedrock_server.SECRET_ACCESS_KEY,
    bedrock_server.SESSION_TOKEN,
    bedrock_server.BEARER_TOKEN,
    "AWS4-HMAC-SHA256",
)
PIXELS = {
    "kind": "image",
    "id": "i",
    "width": 1,
    "height": 1,
    "bytes": base64.b64encode(b"\xff\0\0").decode(),
}
PROMPT, ANSWER = "the-prompt-itself", "the-answer-itself"


@pytest.fixture
def over(daemon: Start) -> Callable[..., DaemonProcess]:
    """Starts a daemon whose backend is ``server``, with the access key unless other variables are given."""

    def start(server: BedrockServer, **options: object) -> DaemonProcess:
        keys = {
            "AWS_ACCESS_KEY_ID": bedrock_server.ACCESS_KEY_ID,
            "AWS_SECRET_ACCESS_KEY": bedrock_server.SECRET_ACCESS_KEY,
            "AWS_SESSION_TOKEN": bedrock_server.SESSION_TOKEN,
        }
        return daemon(
            backend="bedrock-invoke",
            bedrock_region=bedrock_server.REGION,
            bedrock_model_id=MODEL,
            bedrock_endpoint=server.url,
            log="trace",
            **{**keys, **options},
        ).wait_ready()

    return start


def says(*texts: str) -> Script:
    def script(exchange: Exchange) -> None:
        exchange.events(*answer(*texts))
        exchange.finish()

    return script


def v1(request_id: str = "q", prompt: str = PROMPT) -> dict[str, Any]:
    return {"id": request_id, "messages": [{"role": "user", "content": prompt}]}


def v2(request_id: str = "q", **more: Any) -> dict[str, Any]:
    message = {"role": "user", "content": [{"type": "text", "text": PROMPT}]}
    return {"id": request_id, "messages": [message], **more}


def asked(connection: Wire, request: dict[str, Any]) -> list[dict[str, Any]]:
    connection.send(request)
    return list(connection.frames())


def test_text_and_blocks(over: Callable[..., DaemonProcess]) -> None:
    with BedrockServer(says("Hel", "lo"), keep_alive=False) as server:
        process = over(server)
        with process.connect() as text, process.connect("v2") as blocks:
            *tokens, done = asked(text, v1())
            question = v2(temperature=0.5, attachments=[PIXELS])
            question["messages"][0]["content"].append({"type": "image", "attachment_id": "i"})
            *frames, end_of_blocks = asked(blocks, question)
        assert [token["content"] for token in tokens] == ["Hel", "lo"]
        assert [frame["block"] for frame in frames] == [
            {"type": "text", "delta": "Hel"},
            {"type": "text", "delta": "lo"},
        ]
        timings = done.pop("timings")
        assert set(timings) == {"queue_ms", "prefill_ms", "decode_ms", "ttft_ms", "tokens_per_second"}
        assert done == {
            "type": "done", "id": "q", "content": "Hello", "stop_reason": "end",
            "usage": {"prompt_tokens": 9, "completion_tokens": 2}, "backend": "bedrock-invoke",
            "model": MODEL,
        }  # fmt: skip
        assert end_of_blocks["stop_reason"] == "end_turn"
        assert end_of_blocks["usage"] == {"input_tokens": 9, "output_tokens": 2}
        with process.subscribe() as admin:
            able = admin.frame()
        assert (able["status"], able["backend"], able["accelerator"]) == (
            "capabilities",
            "bedrock-invoke",
            "remote",
        )
        assert able["v2"] is able["vision"] is able["tools"] is able["thinking"] is True
    first, second = server.exchanges
    # Absent fields are not sent: newer models refuse the two together.
    assert not {"temperature", "top_p", "top_k"} & set(first.body)
    assert (first.body["max_tokens"], second.body["temperature"]) == (1024, 0.5)
    said, seen = second.body["messages"][0]["content"]
    assert said == {"type": "text", "text": PROMPT}
    with Image.open(io.BytesIO(base64.b64decode(seen["source"]["data"]))) as picture:
        assert (picture.format, picture.getpixel((0, 0))) == ("PNG", (255, 0, 0))


TOOL = {
    "name": "weather",
    "description": "The weather.",
    "input_schema": {"type": "object", "properties": {"at": {"type": "string"}}},
}
CALL: list[dict[str, Any]] = [
    {"type": "message_start", "message": {"usage": {"input_tokens": 31, "cache_read_input_tokens": 5}}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm"}},
    {"type": "content_block_stop", "index": 0},
    {
        "type": "content_block_start",
        "index": 1,
        "content_block": {"type": "tool_use", "id": "toolu_bdrk_1", "name": "weather", "input": {}},
    },
    *(
        {
            "type": "content_block_delta",
            "index": 1,
            "delta": {"type": "input_json_delta", "partial_json": piece},
        }
        for piece in ('{"at": "Pa', 'ris"}')
    ),
    {"type": "content_block_stop", "index": 1},
    *end("tool_use", 12),
]


def test_a_tool_is_called_and_answered(over: Callable[..., DaemonProcess]) -> None:
    def script(exchange: Exchange) -> None:
        results = [
            block for turn in exchange.body["messages"] for block in turn["content"] if "tool_use_id" in block
        ]
        exchange.events(*(answer("Sunny.") if results else CALL))
        exchange.finish()

    with BedrockServer(script, keep_alive=False) as server:
        process = over(server)
        with process.connect("v2") as connection:
            question = v2(tools=[TOOL], thinking=True, tool_choice="auto")
            thought, call, done = asked(connection, question)
            assert thought["block"] == {"type": "thinking", "delta": "hm"}
            assert call["block"] == {
                "type": "tool_use",
                "tool_call_id": "toolu_bdrk_1",
                "name": "weather",
                "input": {"at": "Paris"},
            }
            assert done["stop_reason"] == "tool_use"
            assert done["usage"] == {"input_tokens": 36, "output_tokens": 12, "cached_tokens": 5}
            result = {
                "type": "tool_result",
                "tool_call_id": "toolu_bdrk_1",
                "content": [{"type": "text", "text": "24 °C"}],
            }
            question["messages"] += [
                {"role": "assistant", "content": [call["block"]]},
                {"role": "user", "content": [result]},
            ]
            frame, done = asked(connection, question)
            assert frame["block"] == {"type": "text", "delta": "Sunny."}
    first, second = (exchange.body for exchange in server.exchanges)
    assert first["tools"] == [TOOL]
    assert first["thinking"]["type"] == "enabled"
    assert second["messages"][1:] == [
        {
            "role": "assistant",
            "content": [
                {"type": "tool_use", "id": "toolu_bdrk_1", "name": "weather", "input": {"at": "Paris"}}
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "toolu_bdrk_1",
                    "content": [{"type": "text", "text": "24 °C"}],
                }
            ],
        },
    ]


def test_a_client_that_leaves_ends_the_upstream_request(over: Callable[..., DaemonProcess]) -> None:
    left = threading.Event()

    def script(exchange: Exchange) -> None:
        exchange.events(*answer("a")[:4])
        exchange.until_left()
        left.set()

    with BedrockServer(script, keep_alive=False) as server:
        process = over(server)
        with process.connect() as connection:
            connection.send(v1())
            assert connection.frame()["content"] == "a"
        assert left.wait(bedrock_server.PATIENCE_SECS)
        (cancelled,) = process.wait_event("request_cancelled")
    assert cancelled["backend"] == "bedrock-invoke"


def test_only_server_faults_open_the_breaker(over: Callable[..., DaemonProcess]) -> None:
    """No number of client faults opens the breaker; three upstream faults do."""
    faults = [("validationException", 4), ("throttlingException", 3)]
    names = [name for name, times in faults for _ in range(times)]

    def script(exchange: Exchange) -> None:
        exchange.events(*answer("a")[:4])
        exchange.send(exception(names[len(server.exchanges) - 1], f"no: {PROMPT}"))
        exchange.finish()

    with BedrockServer(script, keep_alive=False) as server:
        process = over(server)
        with process.connect() as connection:
            ends = [asked(connection, v1())[-1] for _ in range(len(names) + 1)]
        (opened,) = process.wait_event("breaker_opened")
    assert [end["code"] for end in ends] == ["invalid_request"] * 4 + ["backend_unavailable"] * 4
    assert ends[0]["message"] == f"the model's server refused the request: no: {PROMPT}"
    assert ends[4]["message"] == "the model's server broke off the answer (throttlingException)"
    assert ends[7]["message"] == "no backend available"
    assert opened["backend"] == "bedrock-invoke"
    assert len(server.exchanges) == len(names)


@pytest.mark.parametrize("way", ["signed", "bearer", "refused"])
def test_no_credential_and_no_prompt_is_logged(over: Callable[..., DaemonProcess], way: str) -> None:
    options: dict[str, object] = {
        "signed": {},
        "bearer": {"AWS_BEARER_TOKEN_BEDROCK": bedrock_server.BEARER_TOKEN},
        "refused": {"AWS_ACCESS_KEY_ID": "AKIDOTHER0EXAMPLE"},
    }[way]  # type: ignore[assignment]
    with BedrockServer(says(ANSWER), keep_alive=False) as server:
        process = over(server, **options)
        with process.connect() as text, process.connect("v2") as blocks:
            ends = [asked(text, v1())[-1], asked(blocks, v2())[-1]]
        expected = "error" if way == "refused" else "done"
        assert [end["type"] for end in ends] == [expected] * 2
        process.wait_event("request_error" if way == "refused" else "request_done", 2)
        seen = process.log_file.read_text() + process.stderr + json.dumps(ends[: 2 * (way == "refused")])
    assert [secret for secret in (*SECRETS, PROMPT, ANSWER) if secret in seen] == []
    assert server.rejections == (["UnrecognizedClientException"] * 2 if way == "refused" else [])


def test_from_a_config_file(daemon: Start, short_dir: Any) -> None:
    with BedrockServer(says("Hello"), keep_alive=False) as server:
        config = short_dir / "config.json"
        entry = {
            "kind": "bedrock-invoke",
            "name": "cloud",
            "region": bedrock_server.REGION,
            "model_id": MODEL,
            "endpoint": server.url,
            "bearer_token_env": "CLOUD_KEY",
        }
        config.write_text(json.dumps({"backends": [entry]}))
        process = daemon(backend="", config=config, CLOUD_KEY=bedrock_server.BEARER_TOKEN).wait_ready()
        with process.connect() as connection:
            assert asked(connection, v1())[-1]["content"] == "Hello"
        with process.subscribe() as admin:
            assert admin.frame()["name"] == "cloud"
    assert server.exchanges[0].headers["authorization"] == f"Bearer {bedrock_server.BEARER_TOKEN}"
