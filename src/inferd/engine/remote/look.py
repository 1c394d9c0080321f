"""Checks the health and the load of a server with OpenAI's API.

Most servers report their health at ``/health``. If a server has no ``/health``, the status of ``/v1/models``
shows the server's health. vLLM, SGLang and llama-server report their load at ``/metrics``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from inferd.engine.remote.http import Upstream
from inferd.errors import Unavailable

_MAX_BYTES = 4 * 1024 * 1024
_REQUESTS = re.compile(
    rb"^(?:vllm:num_requests_(?:running|waiting)|sglang:num_(?:running|queue)_reqs"
    rb"|llamacpp:requests_(?:processing|deferred))(?:\{[^\n]*\})? +([0-9.e+]+)$",
    re.MULTILINE,
)


def _does_not_serve(status: int) -> bool:
    """Returns whether the status means that the server cannot serve any request: 500 and above, except 501
    for an unknown kind of request."""
    return status >= 500 and status != 501


async def look(upstream: Upstream, base_url: str, headers: Mapping[str, str]) -> int | None:
    """Returns the number of requests that the server is computing or has queued, or ``None`` if the server
    does not report the number.

    Raises Unavailable if the server cannot be reached or reports that it cannot serve, and BackendInternal if
    a response is too long.
    """
    for path in ("/health", "/v1/models"):
        status, _ = await upstream.get(base_url + path, headers, at_most=_MAX_BYTES)
        if status < 300:
            break
        if _does_not_serve(status):
            raise Unavailable(f"{upstream.host} says at {path} that it does not serve: status {status}")
    status, metrics = await upstream.get(f"{base_url}/metrics", headers, at_most=_MAX_BYTES)
    found = _REQUESTS.findall(metrics) if status == 200 else []
    try:
        return round(sum(map(float, found))) if found else None
    except (ValueError, OverflowError):
        return None
