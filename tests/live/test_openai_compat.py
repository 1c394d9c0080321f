"""A daemon with an openai-compat backend, seen by its client."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.daemon_process import DaemonProcess, Wire, until
from tests.remote_server import Exchange, RemoteServer, data, delta, finish, usage

Start = Callable[..., DaemonProcess]
Serve = Callable[..., RemoteServer]

PROMPT, ANSWER, KEY = "the-prompt-itself", "the-answer-itself", "a-key-of-no-known-form"


@pytest.fixture
def over(daemon: Start) -> Start:
    """Starts a daemon whose backend is a server."""

    def start(server: RemoteServer, **options: object) -> DaemonProcess:
        server.keep = False  # a daemon without clients must have no open connection
        return daemon(
            backend="openai-compat",
            openai_base_url=f"{server.url}/v1",
            openai_model="m",
            log="trace",
            **options,
        ).wait_ready()

    return start


def v1(request_id: str = "q", **more: Any) -> dict[str, Any]:
    return {"id": request_id, "messages": [{"role": "user", "content": PROMPT}], **more}


def v2(*blocks: dict[str, Any], **more: Any) -> dict[str, Any]:
    content = [{"type": "text", "text": PROMPT}, *blocks]
    return {"id": "q", "messages": [{"role": "user", "content": content}], **more}


def asked(connection: Wire, request: dict[str, Any]) -> list[dict[str, Any]]:
    connection.send(request)
    return list(connection.frames())


def talks(exchange: Exchange) -> None:
    """Thinks, answers in text, and calls a tool if there is one."""
    events = [delta(role="assistant", content=None), delta(reasoning_content="hm"), delta(content=ANSWER)]
    if exchange.request.json.get("tools"):
        calls = [{"index": 0, "id": "c1", "function": {"name": "look", "arguments": '{"at":'}}]
        events += [
            delta(tool_calls=calls),
            delta(tool_calls=[{"index": 0, "function": {"arguments": '"it"}'}}]),
        ]
    exchange.stream(*events, finish("stop"), usage(7, 3, cached=2))


def test_text_and_blocks(over: Start, remote: Serve) -> None:
    server = remote(talks)
    process = over(server, openai_api_key=KEY)
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    pixel = {
        "kind": "image",
        "id": "i",
        "width": 1,
        "height": 1,
        "bytes": base64.b64encode(b"\xff\0\0").decode(),
    }
    tool = {"name": "look", "description": "Looks.", "input_schema": {"type": "object"}}
    with process.connect() as text, process.connect("v2") as blocks:
        token, done = asked(text, v1(temperature=0.5))
        *frames, end = asked(
            blocks,
            v2(
                {"type": "image", "attachment_id": "i"},
                attachments=[pixel],
                tools=[tool],
                tool_choice="required",
                thinking=True,
            ),
        )
        asked(blocks, v2(response_format={"type": "json_schema", "schema": schema}, stream=False))
    assert token == {"type": "token", "id": "q", "content": ANSWER}
    timings = done.pop("timings")
    assert set(timings) == {"queue_ms", "prefill_ms", "decode_ms", "ttft_ms", "tokens_per_second"}
    assert done == {
        "type": "done",
        "id": "q",
        "content": ANSWER,
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "cached_tokens": 2},
        "stop_reason": "end",
        "backend": "openai-compat",
        "model": "m",
    }
    assert [frame["block"] for frame in frames] == [
        {"type": "thinking", "delta": "hm"},
        {"type": "text", "delta": ANSWER},
        {"type": "tool_use", "tool_call_id": "c1", "name": "look", "input": {"at": "it"}},
    ]
    assert (end["stop_reason"], end["backend"]) == ("tool_use", "openai-compat")
    assert "tool_choice_unsatisfied" not in end
    first, second, third = (request.json for request in server.requests)
    assert first["messages"] == [{"role": "user", "content": PROMPT}]
    assert (first["temperature"], first["max_tokens"]) == (0.5, 1000)
    assert second["tool_choice"] == "required"
    assert [part["type"] for part in second["messages"][0]["content"]] == ["text", "image_url"]
    assert second["chat_template_kwargs"] == {"enable_thinking": True}
    assert third["response_format"]["json_schema"]["schema"] == schema
    assert {request.headers["authorization"] for request in server.requests} == {f"Bearer {KEY}"}
    process.wait_event("request_done", 3)
    seen = process.log_file.read_text() + process.stderr
    assert [secret for secret in (PROMPT, ANSWER, KEY) if secret in seen] == []


def test_vectors_and_scores(over: Start, remote: Serve) -> None:
    def script(exchange: Exchange) -> None:
        counts = {"prompt_tokens": 4}
        if exchange.request.path == "/v1/embeddings":
            items: list[dict[str, Any]] = [{"index": 0, "embedding": [3, 4]}]
            exchange.whole(200, orjson.dumps({"data": items, "usage": counts}))
        else:
            items = [{"index": 1, "relevance_score": 2}, {"index": 0, "relevance_score": 0.5}]
            exchange.whole(200, orjson.dumps({"results": items, "usage": counts}))

    process = over(remote(script), embed=1, rerank=1)
    with process.connect("embed") as embed, process.connect("rerank") as rerank:
        (vectors,) = asked_once(embed, {"id": "e", "input": ["a"]})
        (scores,) = asked_once(rerank, {"id": "r", "query": "q", "documents": ["a", "b"]})
    assert vectors["embeddings"] == [[0.6, 0.8]]
    assert (vectors["usage"], vectors["backend"]) == ({"input_tokens": 4}, "openai-compat")
    assert scores["results"] == [{"index": 1, "score": 2.0}, {"index": 0, "score": 0.5}]


def asked_once(connection: Wire, request: dict[str, Any]) -> list[dict[str, Any]]:
    connection.send(request)
    return [connection.frame()]


def test_each_entry_has_its_own_settings(daemon: Start, remote: Serve, short_dir: Path) -> None:
    """One entry declares that it only embeds; the other, which comes first, declares nothing."""

    def embeds(exchange: Exchange) -> None:
        exchange.whole(200, b'{"data":[{"index":0,"embedding":[2]}]}', connection="close")

    text, vectors = remote(talks), remote(embeds)
    text.keep = False
    entries = [
        {"kind": "openai-compat", "name": "text", "base_url": text.url, "model": "t"},
        {"kind": "openai-compat", "name": "vectors", "base_url": vectors.url, "model": "e", "embed": True},
    ]
    (short_dir / "config.json").write_text(json.dumps({"backends": entries}))
    process = daemon(backend="openai-compat", config=short_dir / "config.json", embed=1).wait_ready()
    with process.connect() as v1_client, process.connect("embed") as embed:
        assert asked(v1_client, v1())[-1]["model"] == "t"
        assert asked_once(embed, {"id": "e", "input": ["a"]})[0]["model"] == "e"
    assert (len(text.requests), len(vectors.requests)) == (1, 1)
    process.wait_event("request_done", 2)


def stalls(exchange: Exchange) -> None:
    exchange.head()
    exchange.chunk(data(delta(content=ANSWER)))
    exchange.wait_until_left()


@pytest.mark.parametrize("script", [stalls, Exchange.wait_until_left], ids=["mid-stream", "before"])
def test_a_client_that_leaves_ends_the_request_of_the_server(
    over: Start,
    remote: Serve,
    script: Callable[[Exchange], None],
) -> None:
    server = remote(script)
    process = over(server)
    with process.connect() as connection:
        connection.send(v1())
        until(lambda: bool(server.requests))
        if script is stalls:
            connection.frame()
    until(server.left.is_set)
    (event,) = process.wait_event("request_cancelled")
    assert event["reason"] == "hang-up"


def test_a_deadline_ends_a_request_that_the_server_has_not_answered(over: Start, remote: Serve) -> None:
    server = remote(Exchange.wait_until_left)
    with over(server).connect() as connection:
        # On a busy machine a deadline may pass before the request has reached the server.
        for deadline_ms in (100, 1000, 10_000):
            (done,) = asked(connection, v1(deadline_ms=deadline_ms))
            if server.requests:
                break
    assert (done["type"], done["stop_reason"], done["content"]) == ("done", "cancelled", "")
    until(server.left.is_set)


def test_only_server_faults_count_and_logs_hide_prompts(over: Start, remote: Serve) -> None:
    """The client's own faults do not open the breaker; the server's do. The server quotes the prompt."""
    statuses = iter([400, 404, 422, 413, 500, 429])

    def script(exchange: Exchange) -> None:
        status = next(statuses, None)
        if status is None:
            exchange.head()
            exchange.chunk(data(delta(content=ANSWER)))
            exchange.cut()
        else:
            exchange.whole(status, json.dumps({"error": {"message": f"no: {PROMPT}"}}).encode())

    process = over(remote(script))
    with process.connect() as connection:
        ends = [asked(connection, v1())[-1] for _ in range(8)]
    (opened,) = process.wait_event("breaker_opened")
    assert opened["backend"] == "openai-compat"
    assert [end["code"] for end in ends] == ["invalid_request"] * 4 + ["backend_unavailable"] * 4
    assert all(PROMPT in end["message"] for end in ends[:4])
    assert ends[7]["message"] == "no backend available"
    process.wait_event("request_error", 7)
    (cut,) = process.wait_event("request_error_mid_stream")
    assert "broke off the connection" in cut["message"]
    seen = process.log_file.read_text() + process.stderr
    assert [secret for secret in (PROMPT, ANSWER) if secret in seen] == []


def test_a_stop_waits_for_the_answer(over: Start, remote: Serve) -> None:
    """After the drain time-out, a running answer ends as cancelled, and so does its upstream request."""
    server = remote(stalls)
    process = over(server, drain_timeout_secs=0.2)
    with process.connect() as connection:
        connection.send(v1())
        connection.frame()
        process.signal(15)
        done = connection.frame()
    assert (done["type"], done["stop_reason"], done["content"]) == ("done", "cancelled", ANSWER)
    assert process.wait() == 0
    until(server.left.is_set)


def test_the_boot_logs_the_server_and_model(over: Start, remote: Serve) -> None:
    server = remote(talks)
    process = over(server)
    seen = process.wait_for("ready")
    assert server.accepted == 0
    (capabilities,) = [frame for frame in seen if frame["status"] == "capabilities"]
    assert (capabilities["backend"], capabilities["accelerator"]) == ("openai-compat", "remote")
    assert (capabilities["v2"], capabilities["vision"], capabilities["embed"]) == (True, True, False)
