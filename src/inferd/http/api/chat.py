"""OpenAI's chat completions: the body, the answer, and the chunks of a stream."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from inferd.client.messages import Event, MessageDone, Text, Thinking
from inferd.http import stream
from inferd.http.api import media, options
from inferd.http.api.canonical import Block, Turns, text_block
from inferd.http.api.fields import Fields
from inferd.http.api.request import Dialect, Generation, calls_of, reasoning_tokens, text_of
from inferd.http.failures import Failure

FINISH = {"max_tokens": "length", "tool_use": "tool_calls"}
"""Finish reasons other than ``stop``."""

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")


def read(body: Any) -> Chat:
    """Parses the body of a request. Raises BadField."""
    fields = Fields(body)
    generation = Generation(
        model=fields.required_text("model"),
        turns=_turns(fields),
        options=options.sampling(fields),
        max_tokens=_first(fields.count("max_completion_tokens"), fields.count("max_tokens")),
        stream=bool(fields.flag("stream")),
        one_call=fields.flag("parallel_tool_calls") is False,
    )
    options.add_stops(generation.options, options.stops(fields, "stop"))
    options.session(generation.options, fields.text("prompt_cache_key"))
    if (thinking := options.thinking_of_effort(fields, "reasoning_effort")) is not None:
        generation.options["thinking"] = thinking
    _read_tools(fields, generation)
    add_format(generation.options, fields.object("response_format"))
    options.add_form(generation.options, fields)
    _refuse(fields)
    if fields.flag("logprobs"):
        options.want_logprobs(generation, fields, "logprobs", options.top_logprobs(fields))
    elif options.top_logprobs(fields):
        raise fields.bad("top_logprobs", "needs logprobs to be true")
    wants_usage = fields.object("stream_options")
    return Chat(generation, with_usage=wants_usage is not None and bool(wants_usage.flag("include_usage")))


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)


def _refuse(fields: Fields) -> None:
    """Raises BadField for a feature of the API that this server does not support, instead of ignoring it."""
    if (n := fields.integer("n")) is not None and n != 1:
        raise fields.unsupported("n", "must be 1; send the request again for another answer")
    if fields.raw("logit_bias"):
        raise fields.unsupported("logit_bias", "is not supported")
    modalities = fields.texts("modalities") or ["text"]
    if modalities != ["text"] or "audio" in fields:
        raise fields.unsupported("modalities", "must be text; this server makes no sound")


# The conversation.


def _turns(fields: Fields) -> list[dict[str, Any]]:
    if not fields.items("messages"):
        raise fields.bad("messages", "must be an array of at least one message")
    turns = Turns()
    for message in fields.objects("messages"):
        role = message.required_text("role")
        if role not in _ROLES:
            raise message.bad("role", f"must be one of {', '.join(_ROLES)}")
        if role in ("system", "developer"):
            turns.system(joined_text(message))
        elif role == "user":
            turns.user(parts(message))
        elif role == "assistant":
            _assistant(turns, message)
        else:
            call_id = message.text("tool_call_id")
            turns.result(call_id, message.text("name"), parts(message), message.path("tool_call_id"))
    return turns.finish()


def _assistant(turns: Turns, message: Fields) -> None:
    thinking = message.text("reasoning_content") or message.text("reasoning")
    turns.assistant([{"type": "thinking", "text": thinking}] if thinking else [])
    turns.assistant(parts(message))
    for call in message.objects("tool_calls"):
        function = call.object("function")
        if function is None:
            raise call.bad("function", "is required")
        name, arguments = function.required_text("name"), function.text("arguments") or "{}"
        turns.call(call.text("id") or "", name, arguments, function.path("arguments"))
    if (old := message.object("function_call")) is not None:
        turns.call("", old.required_text("name"), old.text("arguments") or "{}", old.path("arguments"))


def joined_text(message: Fields) -> str:
    """Returns the content of a message as one text. Raises BadField if the message contains anything but
    text."""
    blocks = parts(message)
    if any(not isinstance(block, dict) for block in blocks):
        raise message.bad("content", "of this role must be text")
    return "\n".join(block["text"] for block in blocks if isinstance(block, dict))


def parts(message: Fields) -> list[Block]:
    """Converts the content of a message, which is a string, ``null`` or a list of parts, to blocks."""
    content = message.raw("content")
    if content is None or isinstance(content, str):
        return [text_block(content or "")]
    return [_part(part) for part in message.objects("content")]


def _part(part: Fields) -> Block:
    kind = part.required_text("type")
    if kind in ("text", "input_text", "output_text"):
        return text_block(part.required_text("text"))
    if kind == "refusal":
        return text_block(part.required_text("refusal"))
    if kind == "image_url":
        url = part.raw("image_url")
        if isinstance(url, str):
            return media.image_of_url(url, part.path("image_url"))
        inner = Fields(url, part.path("image_url"))
        return media.image_of_url(inner.required_text("url"), inner.path("url"))
    if kind == "input_audio":
        inner = Fields(part.raw("input_audio"), part.path("input_audio"))
        return media.audio(inner.required_text("data"), inner.text("format") or "", inner.path("data"))
    raise part.unsupported("type", f"must be text, image_url, input_audio or refusal, not {kind!r}")


# Tools and forms.


def _read_tools(fields: Fields, generation: Generation) -> None:
    tools = [
        options.tool(function.required_text("name"), function.text("description"), function.raw("parameters"))
        for each in fields.objects("tools")
        if each.required_text("type") == "function" and (function := _function(each))
    ]
    choice, allowed = fields.raw("tool_choice"), None
    if isinstance(choice, dict):
        chosen = Fields(choice, "tool_choice")
        if chosen.text("type") == "allowed_tools":
            inner = chosen.object("allowed_tools") or chosen
            allowed = {_function(each).required_text("name") for each in inner.objects("tools")}
            choice = inner.text("mode") or "auto"
        else:
            choice = {"name": _function(chosen).required_text("name")}
    elif choice not in (None, "auto", "none", "required"):
        raise fields.bad("tool_choice", "must be auto, none, required or an object")
    options.choose_tools(generation, fields, tools, choice, allowed)


def _function(fields: Fields) -> Fields:
    function = fields.object("function")
    if function is None:
        raise fields.bad("function", "is required")
    return function


def add_format(options: dict[str, Any], fields: Fields | None) -> None:
    """Adds the ``response_format`` of v2, unless the format is plain text.

    A ``json_object`` may have a ``schema``, as in llama-server's API. With ``strict: false``, the schema may
    have keywords that can be checked only in the finished answer.
    """
    kind = None if fields is None else fields.required_text("type")
    if fields is None or kind == "text":
        return
    if kind == "json_object" and "schema" not in fields:
        options["response_format"] = {"type": "json_object"}
        return
    if kind not in ("json_object", "json_schema"):
        raise fields.bad("type", "must be text, json_object or json_schema")
    inner = fields.object("json_schema") or fields
    schema = inner.raw("schema")
    if not isinstance(schema, dict):
        raise inner.bad("schema", "is required and must be a JSON Schema object")
    options["response_format"] = {"type": "json_schema", "schema": schema}
    if inner.flag("strict") is False:
        options["schema_lenient"] = True


# The answer.


class Chat(Dialect):
    """One chat completion."""

    api = "openai"
    media_type = stream.EVENT_STREAM
    silence = stream.COMMENT

    def __init__(self, generation: Generation, *, with_usage: bool = False) -> None:
        self.generation = generation
        self._with_usage = with_usage
        self._calls = 0
        self._head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": generation.model,
            "system_fingerprint": "inferd",
        }

    def _chunk(
        self, delta: dict[str, Any], finish: str | None = None, tokens: Sequence[Mapping[str, Any]] = ()
    ) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": _logprobs(tokens), "finish_reason": finish}
        return stream.sse({**self._head, "object": "chat.completion.chunk", "choices": [choice]})

    def start(self) -> bytes:
        return self._chunk({"role": "assistant", "content": ""})

    def event(self, event: Event) -> bytes:
        if isinstance(event, Text):
            return self._chunk({"content": event.text}, None, event.logprobs)
        if isinstance(event, Thinking):
            return self._chunk({"reasoning_content": event.text})
        index, self._calls = self._calls, self._calls + 1
        begin = {
            "index": index,
            "id": event.tool_call_id,
            "type": "function",
            "function": {"name": event.name, "arguments": ""},
        }
        rest = {"index": index, "function": {"arguments": orjson.dumps(event.input).decode()}}
        return self._chunk({"tool_calls": [begin]}) + self._chunk({"tool_calls": [rest]})

    def end(self, done: MessageDone) -> bytes:
        last = self._chunk({}, FINISH.get(done.stop_reason, "stop"))
        if self._with_usage:
            head = {**self._head, "object": "chat.completion.chunk"}
            last += stream.sse({**head, "choices": [], "usage": usage(done)})
        return last + stream.DONE

    def failed(self, failure: Failure) -> bytes:
        return stream.sse({"error": failure.openai()})

    def whole(self, done: MessageDone) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": text_of(done, "text"), "refusal": None}
        if thinking := text_of(done, "thinking"):
            message["reasoning_content"] = thinking
        if calls := calls_of(done):
            message["content"] = message["content"] or None
            message["tool_calls"] = [
                {
                    "id": call["tool_call_id"],
                    "type": "function",
                    "function": {"name": call["name"], "arguments": orjson.dumps(call["input"]).decode()},
                }
                for call in calls
            ]
        finish = FINISH.get(done.stop_reason, "stop")
        told = _logprobs(done.logprobs)
        choice = {"index": 0, "message": message, "logprobs": told, "finish_reason": finish}
        return {**self._head, "choices": [choice], "usage": usage(done)}


def _logprobs(tokens: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    return {"content": tokens, "refusal": None} if tokens else None


def usage(done: MessageDone) -> dict[str, Any]:
    """Returns the ``usage`` object of a completion in OpenAI's form."""
    return {
        "prompt_tokens": done.input_tokens,
        "completion_tokens": done.output_tokens,
        "total_tokens": done.input_tokens + done.output_tokens,
        "prompt_tokens_details": {"cached_tokens": done.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": reasoning_tokens(done)},
    }
