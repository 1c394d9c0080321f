"""Parses the body of Anthropic's messages API, for every version of the API.

Unknown fields and betas are ignored. ``temperature``, ``top_p`` and ``top_k`` are applied for every version.
"""

from __future__ import annotations

from typing import Any

from inferd.client.messages import Attachment
from inferd.http.api import media, options
from inferd.http.api.canonical import Block, Turns, text_block
from inferd.http.api.fields import Fields
from inferd.http.api.message_answer import MessageAnswer
from inferd.http.api.request import Generation

_DROPPED = frozenset(
    {
        "redacted_thinking",
        "server_tool_use",
        "web_search_tool_result",
        "web_fetch_tool_result",
        "code_execution_tool_result",
        "container_upload",
    }
)
"""The types of the blocks of the hosted API's own tools, which mean nothing to other models."""


def read(body: Any) -> MessageAnswer:
    """Parses the body of a request. Raises BadField."""
    fields = Fields(body)
    if fields.count("max_tokens") is None:
        raise fields.bad("max_tokens", "is required")
    return _read(fields)


def read_for_count(body: Any) -> Generation:
    """Parses a request for a token count. The body has the same fields as a message request, but
    ``max_tokens`` may be missing."""
    generation = _read(Fields(body)).generation
    generation.max_tokens, generation.stream = 0, False
    return generation


def _read(fields: Fields) -> MessageAnswer:
    turns = _turns(fields)
    generation = Generation(
        model=fields.required_text("model"),
        turns=turns.finish(),
        options=options.sampling(fields),
        max_tokens=fields.count("max_tokens"),
        stream=bool(fields.flag("stream")),
        ignored=turns.ignored,
    )
    stops = options.stops(fields, "stop_sequences")
    options.add_stops(generation.options, stops)
    if (metadata := fields.object("metadata")) is not None:
        options.session(generation.options, metadata.text("user_id"))
    if (thinking := _thinking(fields)) is not None:
        generation.options["thinking"] = thinking
    _read_tools(fields, generation)
    if (form := _format(fields)) is not None:
        generation.options["response_format"] = form
    if generation.turns[-1]["role"] == "assistant":
        _prefill(fields, generation)
    return MessageAnswer(generation, stops)


def _prefill(fields: Fields, generation: Generation) -> None:
    """Uses the last message, which is from the assistant, as the beginning of the answer. Raises BadField."""
    begun = generation.turns[-1]["content"]
    if any(isinstance(block, Attachment) or block["type"] != "text" for block in begun):
        raise fields.unsupported("messages", "may end with the assistant only if that message is text")
    if len(generation.turns) == 1:
        raise fields.bad("messages", "must have a message before that of the assistant")
    own = generation.options
    for name, there in (
        ("tools", own.get("tools") and own.get("tool_choice") != "none"),
        ("thinking", own.get("thinking")),
        ("output_config", "response_format" in own),
    ):
        if there:
            raise fields.unsupported(name, "cannot be combined with a last message of the assistant")
    own["begun"] = True


def _thinking(fields: Fields) -> bool | None:
    config = fields.object("thinking")
    if config is not None:
        kind = config.required_text("type")
        if kind not in ("enabled", "disabled", "adaptive"):
            raise config.bad("type", "must be enabled, disabled or adaptive")
        return kind != "disabled"
    return None


def _format(fields: Fields) -> dict[str, Any] | None:
    """Returns the format of the answer from ``output_config``, or from its older form ``output_format``."""
    config = fields.object("output_config")
    form = (config.object("format") if config is not None else None) or fields.object("output_format")
    if form is None:
        return None
    if form.required_text("type") != "json_schema":
        raise form.bad("type", "must be json_schema")
    schema = form.raw("schema")
    if not isinstance(schema, dict):
        raise form.bad("schema", "is required and must be a JSON Schema object")
    return {"type": "json_schema", "schema": schema}


# The conversation.


def _turns(fields: Fields) -> Turns:
    if not fields.items("messages"):
        raise fields.bad("messages", "must be an array of at least one message")
    turns = Turns()
    for text in _system_texts(fields, "system"):
        turns.system(text)
    for message in fields.objects("messages"):
        role = message.required_text("role")
        if role == "system":
            turns.system("\n\n".join(_system_texts(message, "content")))
        elif role == "user":
            _user(turns, message)
        elif role == "assistant":
            _assistant(turns, message)
        else:
            raise message.bad("role", "must be user, assistant or system")
    return turns


def _system_texts(fields: Fields, name: str) -> list[str]:
    content = fields.raw(name)
    if content is None or isinstance(content, str):
        return [content or ""]
    return [block.required_text("text") for block in fields.objects(name) if block.text("type") == "text"]


def _blocks(message: Fields) -> list[Fields]:
    content = message.raw("content")
    if content is None or isinstance(content, str):
        return [Fields({"type": "text", "text": content or ""}, message.path("content"))]
    return list(message.objects("content"))


def _user(turns: Turns, message: Fields) -> None:
    own: list[Block] = []
    for block in _blocks(message):
        kind = block.required_text("type")
        if kind == "tool_result":
            content = [part for inner in _blocks(block) for part in _content(turns, inner)]
            if block.flag("is_error"):
                content.insert(0, text_block("Error:"))
            turns.result(block.required_text("tool_use_id"), None, content, block.path("tool_use_id"))
        else:
            own += _content(turns, block)
    turns.user(own)


def _assistant(turns: Turns, message: Fields) -> None:
    turns.assistant([])
    for block in _blocks(message):
        kind = block.required_text("type")
        if kind == "tool_use":
            arguments = block.raw("input")
            if not isinstance(arguments, dict):
                raise block.bad("input", "must be an object")
            text = options.json_text(arguments)
            turns.call(block.required_text("id"), block.required_text("name"), text, block.path("input"))
        elif kind == "thinking":
            turns.assistant([{"type": "thinking", "text": block.text("thinking") or ""}])
        else:
            turns.assistant(_content(turns, block))


def _content(turns: Turns, block: Fields) -> list[Block]:
    """Returns the texts or the image of a block. Returns an empty list for a block that this server
    ignores."""
    kind = block.required_text("type")
    if kind == "text":
        return [text_block(block.required_text("text"))]
    if kind == "image":
        source = Fields(block.raw("source"), block.path("source"))
        if source.text("type") != "base64":
            raise source.unsupported("type", "must be base64; this server fetches no pictures")
        return [media.image(source.required_text("data"), source.path("data"))]
    if kind == "document":
        return [text_block(_document(block))]
    if kind == "search_result":
        return [text_block(inner.required_text("text")) for inner in block.objects("content")]
    if kind in _DROPPED:
        turns.ignored.add(kind)
        return []
    raise block.unsupported("type", f"must be text, image, document or tool_result, not {kind!r}")


def _document(block: Fields) -> str:
    source = Fields(block.raw("source"), block.path("source"))
    if source.text("type") == "text":
        return source.required_text("data")
    if source.text("type") == "content":
        return "\n".join(inner.required_text("text") for inner in _blocks(source))
    raise source.unsupported("type", "must be text; this server reads no PDF and fetches no files")


# Tools.


def _read_tools(fields: Fields, generation: Generation) -> None:
    tools = [
        options.tool(each.required_text("name"), each.text("description"), each.raw("input_schema"))
        for each in fields.objects("tools")
        if each.text("type") in (None, "custom")
    ]
    choice: Any = None
    if (chosen := fields.object("tool_choice")) is not None:
        kind = chosen.required_text("type")
        if kind not in ("auto", "any", "tool", "none"):
            raise chosen.bad("type", "must be auto, any, tool or none")
        named = {"name": chosen.required_text("name")} if kind == "tool" else None
        choice = named or {"any": "required"}.get(kind, kind)
        generation.one_call = chosen.flag("disable_parallel_tool_use") is True
    options.choose_tools(generation, fields, tools, choice, None)
