"""Each failure as the unmodified SDKs raise it, and whether they repeat the request."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from inferd.http.exchange import api_of
from inferd.http.failures import ROWS, Failure
from tests.lazy import Lazy

anthropic, ollama, openai = Lazy("anthropic"), Lazy("ollama"), Lazy("openai")

HI = [{"role": "user", "content": "hi"}]
WAIT_SECS = 7
RAISED = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    405: "APIStatusError",
    408: "APIStatusError",
    413: "APIStatusError",
    422: "UnprocessableEntityError",
    429: "RateLimitError",
    500: "InternalServerError",
    501: "InternalServerError",
    503: "InternalServerError",
}
ANTHROPIC = {
    408: "RequestTimeoutError",
    413: "ContentTooLargeError",
    501: "HTTPNotImplementedError",
    503: "ServiceUnavailableError",
}

asked: Counter[str] = Counter()


class Failing(BaseHTTPRequestHandler):
    """Fails each request in the way that its model names."""

    def do_POST(self) -> None:
        kind = json.loads(self.rfile.read(int(self.headers["content-length"])))["model"]
        asked[kind] += 1
        api = api_of(self.path)
        failure = Failure(kind=kind, message=f"the fault {kind}", retry_after=WAIT_SECS)
        body = json.dumps(failure.body(api, "req_1")).encode()
        self.send_response(failure.status(api))
        headers = [*failure.headers(), ("content-type", "application/json"), ("content-length", len(body))]
        for name, value in headers:
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def base() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Failing)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_every_failure_is_raised_by_its_class_and_repeated_only_if_that_helps(
    base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)

    def raised(sdk: Lazy, ask: Callable[[str], object], kind: str) -> tuple[str, int, list[float]]:
        """The class, the number of requests, and the waits before the later ones."""
        asked.clear()
        slept.clear()
        with pytest.raises(sdk.APIStatusError, match=f"the fault {kind}") as caught:
            ask(kind)
        return type(caught.value).__name__, asked[kind], slept.copy()

    with (
        openai.OpenAI(base_url=f"{base}/v1", api_key="any", max_retries=1) as new,
        anthropic.Anthropic(base_url=base, api_key="any", max_retries=1) as other,
    ):
        for kind, row in ROWS.items():
            repeated = (2, [WAIT_SECS]) if row.retry else (1, [])
            found = raised(openai, lambda kind: new.chat.completions.create(model=kind, messages=HI), kind)
            assert found == (RAISED[row.status], *repeated), kind
            found = raised(
                anthropic, lambda kind: other.messages.create(model=kind, messages=HI, max_tokens=1), kind
            )
            assert found == ({**RAISED, **ANTHROPIC}[row.status], *repeated), kind
    third = ollama.Client(base)
    for kind, row in ROWS.items():
        with pytest.raises(ollama.ResponseError, match=f"the fault {kind}") as caught:
            third.chat(kind, HI)
        assert caught.value.status_code == (row.ollama or row.status), kind
    third._client.close()
