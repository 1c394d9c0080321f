"""Reads the options that the APIs share, and converts them to options of the v2 protocol."""

from __future__ import annotations

from typing import Any

import orjson

from inferd.http.api.fields import Fields
from inferd.http.api.request import Generation
from inferd.wire.v2 import MAX_LOGPROBS

MAX_STOPS = 16
# The least value that v2 accepts. Like 0, it leaves only the most likely token.
_LEAST_TOP_P = 1e-6
_NUMBERS = ("temperature", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty")
_SESSION_BYTES = 128

EFFORTS_OFF = ("none",)
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max", "ultra")


def sampling(fields: Fields) -> dict[str, Any]:
    """Returns the sampling options that the request sets. The daemon's defaults apply to all other
    options."""
    options: dict[str, Any] = {}
    for name in _NUMBERS:
        if (value := fields.number(name)) is not None:
            options[name] = value
    if (top_k := fields.count("top_k")) is not None:
        options["top_k"] = top_k
    if (top_p := fields.number("top_p")) is not None:
        options["top_p"] = max(top_p, _LEAST_TOP_P)
    if (seed := fields.integer("seed")) is not None:
        options["seed"] = seed & 0xFFFFFFFF
    return options


def stops(fields: Fields, name: str) -> list[str]:
    """Returns the stop strings that are not empty. Raises BadField for more than 16 of these."""
    found = [text for text in fields.texts(name) or () if text]
    if len(found) > MAX_STOPS:
        raise fields.bad(name, f"must hold at most {MAX_STOPS} strings")
    return found


def add_stops(options: dict[str, Any], found: list[str]) -> None:
    if found:
        options["stop"] = found


def add_form(options: dict[str, Any], fields: Fields) -> None:
    """Adds ``grammar`` and ``json_schema``, the fields of llama-server's API that give the form of the
    answer."""
    if grammar := fields.text("grammar"):
        options["grammar"] = grammar
    if (schema := fields.raw("json_schema")) is not None:
        if not isinstance(schema, dict):
            raise fields.bad("json_schema", "must be a JSON Schema object")
        options["json_schema"] = schema


def session(options: dict[str, Any], name: str | None) -> None:
    """Sets the session name, by which the daemon finds the cached prefix of a conversation."""
    if name:
        options["session"] = name.encode()[:_SESSION_BYTES].decode(errors="ignore")


def thinking_of_effort(fields: Fields, name: str) -> bool | None:
    """Returns whether the model thinks at the requested reasoning effort, or ``None`` if the request names no
    effort."""
    effort = fields.text(name)
    if effort is None:
        return None
    if effort not in EFFORTS:
        raise fields.bad(name, f"must be one of {', '.join(EFFORTS)}")
    return effort not in EFFORTS_OFF


def tool(name: str, description: str | None, schema: Any) -> dict[str, Any]:
    """Returns a tool in the form of the v2 protocol. Without ``schema``, the tool declares no parameters."""
    return {
        "name": name,
        "description": description or "",
        "input_schema": schema or {"type": "object", "properties": {}},
    }


def choose_tools(
    generation: Generation, fields: Fields, tools: list[dict[str, Any]], choice: Any, allowed: set[str] | None
) -> None:
    """Adds the tools and the tool choice to the request.

    ``choice`` is ``auto``, ``none``, ``required``, ``{"name": NAME}`` or ``None``. With ``allowed``, only the
    tools with these names are added. Raises BadField.
    """
    if allowed is not None:
        tools = [each for each in tools if each["name"] in allowed]
    names = {each["name"] for each in tools}
    if isinstance(choice, dict) and choice["name"] not in names:
        raise fields.bad("tool_choice", f"names the tool {choice['name']!r}, which is not among the tools")
    if choice == "required" and not tools:
        raise fields.bad("tool_choice", "is required, but there are no tools")
    if tools:
        generation.options["tools"] = tools
        if choice is not None:
            generation.options["tool_choice"] = choice


def want_logprobs(generation: Generation, fields: Fields, name: str, count: int) -> None:
    """Requests log probabilities with ``count`` alternatives for each token. If the request also asks for
    thinking, raises BadField, with ``name`` as the field at fault."""
    if generation.options.get("thinking"):
        raise fields.unsupported(name, "cannot be combined with thinking; leave one out")
    generation.options["logprobs"] = count


def top_logprobs(fields: Fields) -> int:
    """Returns the number of alternatives for each token, or 0 if the field is absent."""
    count = fields.count("top_logprobs") or 0
    if count > MAX_LOGPROBS:
        raise fields.bad("top_logprobs", f"must be at most {MAX_LOGPROBS}")
    return count


def json_text(value: Any) -> str:
    """Returns a JSON value as text. The order of its keys is kept."""
    return orjson.dumps(value).decode()
