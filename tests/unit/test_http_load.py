"""What a stream reports while its model is loaded, as the unmodified SDKs read it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from starlette.types import Message

from inferd.client.messages import Event, MessageDone, Text
from inferd.http import answer
from inferd.http.api import chat, messages, responses
from inferd.http.api import ollama as ollama_api
from inferd.http.api.request import Dialect
from inferd.http.exchange import Exchange, api_of
from inferd.http.models import Models
from tests.cases import cases
from tests.lazy import Lazy

anthropic, ollama, openai = Lazy("anthropic"), Lazy("ollama"), Lazy("openai")

HI = [{"role": "user", "content": "hi"}]
DONE = MessageDone(
    content=({"type": "text", "text": "hello"},), stop_reason="end_turn", input_tokens=1, output_tokens=1
)
STEP = "loading the model: reading the file, 42 %"


class Loading:
    """A reply that waits for the load of its model until the client has been ``told``."""

    def __init__(self, made: answer.Answer, told: asyncio.Event) -> None:
        self._events = self._made(made, told)

    async def _made(self, made: answer.Answer, told: asyncio.Event) -> AsyncIterator[Event | MessageDone]:
        made.show_load("mmap", {"progress": 0.42})
        await told.wait()
        made.show_load("loaded", {})
        yield Text("hello")
        yield DONE

    def __aiter__(self) -> AsyncIterator[Event | MessageDone]:
        return self._events

    async def aclose(self) -> None:
        pass


def streamed(dialect: Dialect, path: str, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The whole body of a stream that reports the load of its model twice."""
    monkeypatch.setattr(answer, "LOAD_SECS", 0.0)
    sent: list[bytes] = []

    async def run() -> None:
        told = asyncio.Event()

        async def send(message: Message) -> None:
            sent.append(message.get("body", b""))
            if b"".join(sent).count(b"loading the model") >= 2:
                told.set()

        async def receive() -> Message:
            await asyncio.Event().wait()
            return {}

        made = answer.Answer(dialect, Exchange("POST", path, api_of(path)), send)
        reply: Any = Loading(made, told)
        await made.serve(reply, receive)

    asyncio.run(run())
    return b"".join(sent)


@contextmanager
def serving(body: bytes, media_type: str) -> Iterator[str]:
    """The address of a server that answers every request with ``body``."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-type", media_type)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def with_chat(base: str) -> str:
    with openai.OpenAI(base_url=f"{base}/v1", api_key="any") as sdk:
        parts = sdk.chat.completions.create(model="m", messages=HI, stream=True)
        return "".join(part.choices[0].delta.content or "" for part in parts)


def with_responses(base: str) -> str:
    with (
        openai.OpenAI(base_url=f"{base}/v1", api_key="any") as sdk,
        sdk.responses.stream(model="m", input="hi") as events,
    ):
        return events.get_final_response().output_text


def with_messages(base: str) -> str:
    with (
        anthropic.Anthropic(base_url=base, api_key="any") as sdk,
        sdk.messages.stream(model="m", messages=HI, max_tokens=9) as events,
    ):
        return "".join(events.text_stream)


def with_ollama(base: str) -> str:
    client = ollama.Client(base)
    parts = [*client.chat("m", HI, stream=True)]
    client._client.close()
    return "".join(part.message.content or "" for part in parts)


@cases(
    "path, read, more, ask",
    [
        ("/v1/chat/completions", chat.read, {"messages": HI}, with_chat),
        ("/v1/responses", responses.read, {"input": "hi"}, with_responses),
        ("/v1/messages", messages.read, {"messages": HI, "max_tokens": 9}, with_messages),
        ("/api/chat", ollama_api.read_chat, {"messages": HI}, with_ollama),
    ],
)
def test_a_stream_tells_the_load_and_every_sdk_reads_the_answer(
    path: str,
    read: Callable[[Any], Dialect],
    more: dict[str, object],
    ask: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dialect = read({"model": "m", "stream": True, **more})
    body = streamed(dialect, path, monkeypatch)
    assert body.count(STEP.encode()) >= 2
    with serving(body, dialect.media_type) as base:
        assert ask(base) == "hello"


def test_a_silent_response_sends_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """Codex gives up after a time without an event; comments do not count."""
    dialect = responses.read({"model": "m", "stream": True, "input": "hi"})
    body = streamed(dialect, "/v1/responses", monkeypatch).decode()
    events = [json.loads(line[6:]) for line in body.splitlines() if line.startswith("data: ")]
    assert [event["sequence_number"] for event in events] == [*range(len(events))]
    kinds = [event["type"] for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds.count("response.in_progress") > 1
    assert kinds[-1] == "response.completed"


def test_the_state_of_a_load_is_that_of_the_daemons_events() -> None:
    models = Models({})
    models.update_stored([{"name": "cold", "resident": False}])

    def state() -> tuple[str, float | None]:
        (model,) = models.all()
        return model.state, model.load

    assert state() == ("stored", None)
    models.tell("cold", "loading", {"estimate_bytes": 1})
    assert state() == ("loading", 0.0)
    models.tell("cold", "loading", {"phase": "mmap", "progress": 0.5})
    assert state() == ("loading", 0.5)
    models.tell("cold", "failed", {"message": "no"})
    assert state() == ("stored", None)
