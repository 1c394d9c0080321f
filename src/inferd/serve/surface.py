"""What makes a session speak one surface and not another: a codec and the way to and from the engine.

The session knows the stages of a request and nothing of its fields, so one session serves every surface.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from inferd.engine.backend import Backend, Done, FrameTemplate, GenerateRequest
from inferd.serve import router
from inferd.wire import v1


class Request(Protocol):
    """What every surface's request has."""

    @property
    def id(self) -> str: ...

    @property
    def priority(self) -> str | None: ...

    @property
    def deadline_ms(self) -> int | None: ...


R = TypeVar("R", bound=Request)


@dataclass(frozen=True, slots=True)
class Surface(Generic[R]):
    """``parse`` raises DecodeError, ``validate`` InvalidRequest; ``encode_done`` makes the last frame from
    the request, the backend, the end of the stream, the whole answer and its times in milliseconds."""

    name: str
    parse: Callable[[bytes], R]
    validate: Callable[[R], None]
    engine_request: Callable[[R], GenerateRequest]
    encode_done: Callable[[R, Backend, Done, str | bytes, dict[str, float] | None], bytes]
    encode_error: Callable[[str, str, str], bytes]


def _v1_engine_request(request: v1.Request) -> GenerateRequest:
    wants_tokens = request.stream is not False
    frame = FrameTemplate(v1.token_prefix(request.id), v1.TOKEN_SUFFIX) if wants_tokens else None
    return router.generate_request(request, frame)


def _v1_encode_done(
    request: v1.Request, backend: Backend, done: Done, content: str | bytes, timings: dict[str, float] | None
) -> bytes:
    return v1.encode_done(
        request.id,
        content,
        prompt_tokens=done.usage.prompt_tokens,
        completion_tokens=done.usage.completion_tokens,
        cached_tokens=done.usage.cached_tokens,
        stop_reason="end" if done.stop_reason == "stop" else done.stop_reason,
        backend=backend.kind,
        model=backend.model,
        timings=timings,
    )


V1 = Surface(
    name=v1.name,
    parse=v1.parse,
    validate=v1.validate,
    engine_request=_v1_engine_request,
    encode_done=_v1_encode_done,
    encode_error=v1.encode_error,
)
