"""The health of a server with OpenAI's API, by the status codes of its responses."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from inferd.engine.remote.http import Upstream
from inferd.engine.remote.look import look
from inferd.errors import Unavailable
from tests.cases import cases
from tests.remote_server import Exchange, RemoteServer, Script

Start = Callable[..., RemoteServer]
LOAD = b"llamacpp:requests_processing 3\n"


def says(health: int, models: int) -> Script:
    """Answers with these statuses, and reports its load."""
    statuses = {"/health": health, "/v1/models": models, "/metrics": 200}

    def script(exchange: Exchange) -> None:
        path = exchange.request.path
        exchange.whole(statuses[path], LOAD if path == "/metrics" else b"", location="/elsewhere")

    return script


async def ask(server: RemoteServer) -> int | None:
    upstream = Upstream(server.url, 30.0)
    try:
        return await look(upstream, server.url, {})
    finally:
        await upstream.close()


@cases("status", [301, 400, 404, 429, 501])
async def test_a_server_that_refuses_only_the_path_counts_as_up(remote: Start, status: int) -> None:
    server = remote(says(status, 200))
    assert await ask(server) == 3
    assert [request.path for request in server.requests] == ["/health", "/v1/models", "/metrics"]
    server.script = says(status, status)
    assert await ask(server) == 3


@pytest.mark.parametrize(("health", "models"), [(503, 200), (404, 502)])
async def test_a_server_that_reports_failure_counts_as_down(remote: Start, health: int, models: int) -> None:
    with pytest.raises(Unavailable, match=f"does not serve: status {max(health, models)}"):
        await ask(remote(says(health, models)))
