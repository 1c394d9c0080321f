"""The Prometheus metrics of the HTTP bridge. The labels are the path, the client family, the status, whether
the answer was streamed, and the kind of tokens. Text from a client is never a label."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder

if TYPE_CHECKING:
    from inferd.http.exchange import Exchange

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)

# A client chooses the text of its user agent, so only known families become labels.
_FAMILIES = (
    ("openai-python", r"openai/python|asyncopenai"),
    ("openai-node", r"openai/js"),
    ("anthropic-python", r"anthropic/python|asyncanthropic"),
    ("anthropic-node", r"anthropic/js"),
    ("claude-code", r"claude-cli|claude-code"),
    ("codex", r"codex"),
    ("opencode", r"opencode"),
    ("qwen-code", r"qwencode|qwen-code"),
    ("litellm", r"litellm"),
    ("ollama-python", r"ollama-python"),
    ("ollama-js", r"ollama-js"),
    ("pydantic-ai", r"pydantic-ai"),
    ("curl", r"curl/"),
    ("httpx", r"python-httpx"),
    ("browser", r"mozilla/"),
)
_PATTERNS = tuple((name, re.compile(pattern, re.IGNORECASE)) for name, pattern in _FAMILIES)


@lru_cache(maxsize=256)
def family_of(agent: str) -> str:
    """Returns the client family, such as ``openai-python``, for a User-Agent header."""
    for name, pattern in _PATTERNS:
        if pattern.search(agent):
            return name
    # The user agents of OpenAI's and Anthropic's SDKs begin with the name of their client class.
    first = agent.partition("/")[0].lower()
    return {"openai": "openai-python", "anthropic": "anthropic-python"}.get(first, "other")


class Metrics:
    """The counters of one bridge."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        labels = ("path", "client", "status", "stream")
        self._requests = Counter(
            "inferd_http_requests", "HTTP requests answered", labels, registry=self._registry
        )
        self._seconds = Histogram(
            "inferd_http_request_seconds",
            "Time from the request's head to the end of its response",
            ("path",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._ttft = Histogram(
            "inferd_http_first_token_seconds",
            "Time from the request's head to the first event of its answer",
            ("path",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._tokens = Counter(
            "inferd_http_tokens", "Tokens of answered requests", ("path", "kind"), registry=self._registry
        )
        self._cancelled = Counter(
            "inferd_http_cancelled", "Requests whose client left", ("path",), registry=self._registry
        )
        self._open = Gauge("inferd_http_requests_open", "HTTP requests in progress", registry=self._registry)

    def begin(self) -> None:
        self._open.inc()

    def observe(self, exchange: Exchange, seconds: float) -> None:
        """Counts a finished request and its duration."""
        path = exchange.path if exchange.routed else "other"
        status, stream = str(exchange.status or "none"), str(exchange.stream).lower()
        self._requests.labels(path, exchange.agent, status, stream).inc()
        self._seconds.labels(path).observe(seconds)
        if exchange.ttft_secs is not None:
            self._ttft.labels(path).observe(exchange.ttft_secs)
        for kind, count in (
            ("input", exchange.input_tokens),
            ("output", exchange.output_tokens),
            ("cached", exchange.cached_tokens),
        ):
            if count:
                self._tokens.labels(path, kind).inc(count)
        if exchange.gone:
            self._cancelled.labels(path).inc()
        self._open.dec()

    def render(self) -> tuple[bytes, str]:
        """Returns the metrics as text, and their content type."""
        encode, content_type = choose_encoder("")
        return encode(self._registry), content_type
