"""The v1 surface: requests and answers are text."""

from __future__ import annotations

from collections.abc import Hashable

from inferd.engine.backend import Backend
from inferd.engine.events import Done, Text, Thinking, ToolUse
from inferd.engine.requests import FrameTemplate, GenerateRequest, Message
from inferd.fastpath import token_frame
from inferd.serve import router
from inferd.serve.surfaces.generation import Generation, generate_request, head_of
from inferd.serve.surfaces.v2 import FramedSurface
from inferd.wire import v1


class _Writer:
    def __init__(self, request: v1.Request) -> None:
        wants_tokens = request.stream is not False
        self.template = FrameTemplate(v1.token_prefix(request.id), v1.TOKEN_SUFFIX) if wants_tokens else None
        self._id = request.id
        self._texts: list[str] = []

    def event(self, event: Text | Thinking | ToolUse) -> bytes:
        if not isinstance(event, Text):
            return b""
        self._texts.append(event.text)
        if self.template is None:
            return b""
        return token_frame(self.template.prefix, event.text, self.template.suffix)

    def end(self, done: Done, backend: Backend, timings: dict[str, float] | None) -> bytes:
        return v1.encode_done(
            self._id,
            "".join(self._texts) if done.content is None else done.content,
            prompt_tokens=done.usage.prompt_tokens,
            completion_tokens=done.usage.completion_tokens,
            cached_tokens=done.usage.cached_tokens,
            stop_reason="end" if done.stop_reason in ("stop", "tool_use") else done.stop_reason,
            backend=backend.kind,
            model=backend.model,
            timings=timings,
            unenforced=done.unenforced,
        )


class TextSurface(Generation[v1.Request]):
    name = v1.name
    parse = staticmethod(v1.parse)
    validate = staticmethod(v1.validate)
    writer = _Writer

    @property
    def frames(self) -> FramedSurface:
        return FramedSurface()

    def needs(self, request: v1.Request) -> frozenset[str]:
        return router.TEXT if not request.lora else router.TEXT | {router.adapter(request.lora)}

    def head(self, request: v1.Request) -> Hashable:
        return head_of(request.session, (message.content for message in request.messages))

    def engine_request(
        self, request: v1.Request, template: FrameTemplate | None, scope: str = ""
    ) -> GenerateRequest:
        messages = [Message(message.role, message.content) for message in request.messages]
        return generate_request(
            request,
            messages,
            template,
            scope,
            json_schema=bytes(request.json_schema).decode(),
            model_defaults=bool(request.model_defaults),
        )
