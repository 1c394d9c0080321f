"""OpenAI's legacy completions. The prompt is used as it is, without the model's chat template."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from inferd.client.messages import Event, MessageDone, Text
from inferd.http import stream
from inferd.http.api import chat, options
from inferd.http.api.canonical import Turns, text_block
from inferd.http.api.fields import Fields
from inferd.http.api.request import Dialect, Generation, text_of
from inferd.http.failures import Failure
from inferd.wire.v2 import MAX_LOGPROBS


def read(body: Any) -> Completion:
    """Parses the body of a request. Raises BadField."""
    fields = Fields(body)
    model, prompts = fields.required_text("model"), fields.raw("prompt")
    if isinstance(prompts, list) and len(prompts) == 1:
        prompts = prompts[0]
    if not isinstance(prompts, str):
        raise fields.unsupported("prompt", "must be one string; send one request for each prompt")
    for name in ("n", "best_of"):
        if (count := fields.integer(name)) is not None and count != 1:
            raise fields.unsupported(name, "must be 1; send the request again for another answer")
    if fields.raw("logit_bias"):
        raise fields.unsupported("logit_bias", "is not supported")
    turns = Turns()
    turns.user([text_block(prompts)])
    generation = Generation(
        model=model,
        turns=turns.finish(),
        options={**options.sampling(fields), "raw": True},
        max_tokens=fields.count("max_tokens"),
        stream=bool(fields.flag("stream")),
    )
    options.add_stops(generation.options, options.stops(fields, "stop"))
    options.add_form(generation.options, fields)
    if suffix := fields.text("suffix"):
        generation.options["suffix"] = suffix
    if (count := fields.count("logprobs")) is not None:
        if count > MAX_LOGPROBS:
            raise fields.bad("logprobs", f"must be at most {MAX_LOGPROBS}")
        if fields.flag("echo"):
            raise fields.unsupported("echo", "cannot be combined with logprobs")
        options.want_logprobs(generation, fields, "logprobs", count)
    wants_usage = fields.object("stream_options")
    return Completion(
        generation,
        with_usage=wants_usage is not None and bool(wants_usage.flag("include_usage")),
        echo=prompts if fields.flag("echo") else "",
    )


class Completion(Dialect):
    """One text completion. ``echo`` is the text to put before the answer."""

    api = "openai"
    media_type = stream.EVENT_STREAM
    silence = stream.COMMENT

    def __init__(self, generation: Generation, *, with_usage: bool = False, echo: str = "") -> None:
        self.generation = generation
        self._with_usage = with_usage
        self._echo = echo
        self._told = len(echo)
        self._head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": generation.model,
            "system_fingerprint": "inferd",
        }

    def _chunk(
        self, text: str, finish: str | None = None, tokens: Sequence[Mapping[str, Any]] = ()
    ) -> dict[str, Any]:
        told = self._logprobs(tokens) if tokens else None
        choice = {"index": 0, "text": text, "logprobs": told, "finish_reason": finish}
        return {**self._head, "choices": [choice]}

    def start(self) -> bytes:
        return stream.sse(self._chunk(self._echo)) if self._echo else b""

    def event(self, event: Event) -> bytes:
        return stream.sse(self._chunk(event.text, None, event.logprobs)) if isinstance(event, Text) else b""

    def end(self, done: MessageDone) -> bytes:
        last = stream.sse(self._chunk("", chat.FINISH.get(done.stop_reason, "stop")))
        if self._with_usage:
            last += stream.sse({**self._head, "choices": [], "usage": chat.usage(done)})
        return last + stream.DONE

    def failed(self, failure: Failure) -> bytes:
        return stream.sse({"error": failure.openai()})

    def whole(self, done: MessageDone) -> dict[str, Any]:
        text = self._echo + text_of(done, "text")
        return {
            **self._chunk(text, chat.FINISH.get(done.stop_reason, "stop"), done.logprobs),
            "usage": chat.usage(done),
        }

    def _logprobs(self, tokens: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Returns the log probabilities in the legacy format, which has four lists."""
        offsets: list[int] = []
        for token in tokens:
            offsets.append(self._told)
            self._told += len(token["token"])
        best = [{other["token"]: other["logprob"] for other in token["top_logprobs"]} for token in tokens]
        return {
            "tokens": [token["token"] for token in tokens],
            "token_logprobs": [token["logprob"] for token in tokens],
            "top_logprobs": best if self.generation.options["logprobs"] else None,
            "text_offset": offsets,
        }
