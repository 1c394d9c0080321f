"""Parses the body of OpenAI's responses API. Nothing is stored, so references to earlier responses are
refused.

Items with text or tool calls are never dropped. Definitions of tools that this server cannot run are dropped.
If a tool belongs to a namespace, the model sees one name that combines the namespace and the tool's name. The
client gets the namespace and the tool's name back as two fields.
"""

from __future__ import annotations

from typing import Any

from inferd.http.api import chat, media, options
from inferd.http.api.canonical import Block, Turns, text_block
from inferd.http.api.fields import Fields
from inferd.http.api.request import Generation
from inferd.http.api.response_answer import Response, Tools

_TEXT_PARTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")
_ROLES = ("system", "developer", "user", "assistant")
_CUSTOM_SCHEMA = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
    "additionalProperties": False,
}


def read(body: Any) -> Response:
    """Parses the body of a request. Raises BadField."""
    fields = Fields(body)
    for name in ("previous_response_id", "conversation"):
        if fields.raw(name) is not None:
            raise fields.bad(name, "is not supported; send the whole input", "unsupported_parameter")
    if fields.flag("background"):
        raise fields.bad("background", "is not supported", "unsupported_parameter")
    generation = Generation(
        model=fields.required_text("model"),
        turns=[],
        options=options.sampling(fields),
        max_tokens=fields.count("max_output_tokens"),
        stream=bool(fields.flag("stream")),
        one_call=fields.flag("parallel_tool_calls") is False,
    )
    tools = Tools()
    _read_tools(fields, generation, tools)
    generation.turns = _turns(fields, tools)
    options.session(generation.options, fields.text("prompt_cache_key"))
    if (reasoning := fields.object("reasoning")) is not None:
        thinking = options.thinking_of_effort(reasoning, "effort")
        if thinking is not None:
            generation.options["thinking"] = thinking
    if (text := fields.object("text")) is not None:
        chat.add_format(generation.options, text.object("format"))
    count = options.top_logprobs(fields)
    if count or "message.output_text.logprobs" in (fields.texts("include") or ()):
        options.want_logprobs(generation, fields, "top_logprobs" if count else "include", count)
    return Response(generation, tools, dict(body), _wants_encrypted(fields))


def _wants_encrypted(fields: Fields) -> bool:
    return "reasoning.encrypted_content" in (fields.texts("include") or ())


# The conversation.


def _turns(fields: Fields, tools: Tools) -> list[dict[str, Any]]:
    turns = Turns()
    turns.system(fields.text("instructions") or "")
    given = fields.raw("input")
    if isinstance(given, str):
        turns.user([text_block(given)])
    elif not isinstance(given, list):
        raise fields.bad("input", "is required and must be a string or an array of items")
    else:
        for item in fields.objects("input"):
            _item(turns, item, tools)
    return turns.finish()


def _item(turns: Turns, item: Fields, tools: Tools) -> None:
    kind = item.text("type") or "message"
    if kind == "message":
        _message(turns, item)
    elif kind == "function_call":
        name = tools.model_name(item.required_text("name"), item.text("namespace"))
        arguments = item.text("arguments") or "{}"
        turns.call(item.required_text("call_id"), name, arguments, item.path("arguments"))
    elif kind == "custom_tool_call":
        arguments = options.json_text({"input": item.text("input") or ""})
        name = item.required_text("name")
        turns.call(item.required_text("call_id"), name, arguments, item.path("input"))
    elif kind in ("function_call_output", "custom_tool_call_output"):
        call_id = item.required_text("call_id")
        turns.result(call_id, None, _parts(item, "output"), item.path("call_id"))
    elif kind == "reasoning":
        turns.assistant([{"type": "thinking", "text": _thinking(item)}])
    elif kind == "item_reference":
        raise item.bad("type", "item_reference is not supported; send the item itself", "unsupported_value")
    else:
        _other(turns, item, kind)


def _other(turns: Turns, item: Fields, kind: str) -> None:
    """Adds the text of an item of an unknown type. Raises BadField if the item has no text."""
    for name in ("content", "output", "text", "summary"):
        if isinstance(item.raw(name), str | list):
            blocks = _parts(item, name)
            return turns.assistant(blocks) if item.text("role") == "assistant" else turns.user(blocks)
    raise item.unsupported("type", f"is {kind!r}, which is not supported and holds no text")


def _message(turns: Turns, item: Fields) -> None:
    role = item.required_text("role")
    if role not in _ROLES:
        raise item.bad("role", f"must be one of {', '.join(_ROLES)}")
    blocks = _parts(item, "content")
    if role == "assistant":
        turns.assistant(blocks)
    elif role == "user":
        turns.user(blocks)
    else:
        texts = [block["text"] for block in blocks if isinstance(block, dict)]
        if len(texts) < len(blocks):
            raise item.bad("content", "of this role must be text")
        turns.system("\n".join(texts))


def _parts(item: Fields, name: str) -> list[Block]:
    content = item.raw(name)
    if content is None or isinstance(content, str):
        return [text_block(content or "")]
    return [_part(part) for part in item.objects(name)]


def _part(part: Fields) -> Block:
    kind = part.required_text("type")
    if kind in _TEXT_PARTS:
        return text_block(part.required_text("text"))
    if kind == "refusal":
        return text_block(part.required_text("refusal"))
    if kind == "input_image":
        return media.image_of_url(part.required_text("image_url"), part.path("image_url"))
    if kind == "input_audio":
        inner = Fields(part.raw("input_audio"), part.path("input_audio"))
        return media.audio(inner.required_text("data"), inner.text("format") or "", inner.path("data"))
    raise part.unsupported("type", f"must be text, an image, a sound or a refusal, not {kind!r}")


def _thinking(item: Fields) -> str:
    """Returns the text of a reasoning item: its ``encrypted_content``, else its ``content``, else its
    ``summary``."""
    if own := item.text("encrypted_content"):
        return own
    for name in ("content", "summary"):
        texts = [part.text("text") or "" for part in item.objects(name)]
        if any(texts):
            return "\n".join(texts)
    return ""


# Tools.


def _read_tools(fields: Fields, generation: Generation, tools: Tools) -> None:
    found: list[dict[str, Any]] = []
    for each in fields.objects("tools"):
        kind = each.required_text("type")
        if kind == "function":
            found.append(_function(each, each.required_text("name")))
        elif kind == "namespace":
            namespace = each.required_text("name")
            for inner in each.objects("tools"):
                if inner.text("type") in (None, "function"):
                    name = tools.add_namespaced(namespace, inner.required_text("name"))
                    found.append(_function(inner, name))
        elif kind == "custom":
            tools.custom.add(each.required_text("name"))
            found.append(options.tool(each.required_text("name"), each.text("description"), _CUSTOM_SCHEMA))
    choice, allowed = fields.raw("tool_choice"), None
    if isinstance(choice, dict):
        chosen = Fields(choice, "tool_choice")
        kind = chosen.required_text("type")
        if kind == "allowed_tools":
            allowed = {_model_name(each, tools) for each in chosen.objects("tools")}
            choice = chosen.text("mode") or "auto"
        elif kind in ("function", "custom"):
            choice = {"name": _model_name(chosen, tools)}
        else:
            choice = None  # the choice is a tool that this server cannot run
    elif choice not in (None, "auto", "none", "required"):
        raise fields.bad("tool_choice", "must be auto, none, required or an object")
    options.choose_tools(generation, fields, found, choice, allowed)


def _model_name(fields: Fields, tools: Tools) -> str:
    return tools.model_name(fields.text("name") or "", fields.text("namespace"))


def _function(fields: Fields, name: str) -> dict[str, Any]:
    return options.tool(name, fields.text("description"), fields.raw("parameters"))
