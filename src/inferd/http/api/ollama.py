"""Parses the bodies of Ollama's chat and generate APIs.

Answers are streamed unless ``stream`` is false. Options that are ``null`` or unknown are ignored. ``num_ctx``
has no effect, since the context size is fixed when the model is loaded.
"""

from __future__ import annotations

import re
from typing import Any

from inferd.http.api import media, options
from inferd.http.api.canonical import Block, Turns, text_block
from inferd.http.api.fields import Fields
from inferd.http.api.ollama_answer import OllamaAnswer
from inferd.http.api.request import Generation
from inferd.http.failures import BadField

_LEVELS = ("low", "medium", "high", "max")


def model_of(fields: Fields) -> str:
    """Returns the model's name from the field ``model``, or from the field ``name``, which some clients send
    instead."""
    name = fields.text("model") or fields.text("name")
    if not name:
        raise fields.bad("model", "is required and must be a string")
    return name


def read_chat(body: Any) -> OllamaAnswer:
    """Parses the body of /api/chat. Raises BadField."""
    fields = Fields(body)
    turns = Turns()
    for message in fields.objects("messages"):
        _message(turns, message)
    generation = _generation(fields, turns, empty=not fields.items("messages"))
    tools = [_tool(each) for each in fields.objects("tools") if each.text("type") in (None, "function")]
    options.choose_tools(generation, fields, tools, None, None)
    _logprobs(fields, generation)
    return OllamaAnswer(generation, chat=True, load=_load_reason(fields, not fields.items("messages")))


def read_generate(body: Any) -> OllamaAnswer:
    """Parses the body of /api/generate. Raises BadField."""
    fields = Fields(body)
    for name in ("template", "context"):
        if fields.raw(name):
            raise fields.unsupported(name, "is not supported")
    turns = Turns()
    turns.system(fields.text("system") or "")
    prompt, pictures = fields.text("prompt") or "", _images(fields)
    turns.user([*pictures, text_block(prompt)])
    empty = not prompt and not pictures
    generation = _generation(fields, turns, empty=empty)
    _logprobs(fields, generation)
    suffix = fields.text("suffix")
    if fields.flag("raw") or suffix:
        for name in ("system", "images", "think"):
            if fields.raw(name):
                raise fields.unsupported(name, "cannot be combined with raw or suffix")
        generation.options["raw"] = True
        if suffix:
            generation.options["suffix"] = suffix
    return OllamaAnswer(generation, chat=False, load=_load_reason(fields, empty))


def _load_reason(fields: Fields, empty: bool) -> str | None:
    """Returns the purpose of an empty request, ``load`` or ``unload``. Returns ``None`` for any other
    request."""
    if not empty:
        return None
    return "unload" if keep_alive_of(fields) == 0 else "load"


_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_AMOUNT = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_MOST_SECS = 1e9


def keep_alive_of(fields: Fields) -> float | None:
    """Returns for how many seconds the model stays loaded, or -1 for ever. The field ``keep_alive`` is a
    number of seconds or a duration such as ``1h30m``."""
    stay = fields.raw("keep_alive")
    if stay is None:
        return None
    if isinstance(stay, bool) or not isinstance(stay, str | int | float):
        raise fields.bad("keep_alive", "must be a duration or a number of seconds")
    secs = _duration(stay) if isinstance(stay, str) else float(stay)
    if secs is None or secs != secs:
        raise fields.bad("keep_alive", "must be a duration or a number of seconds")
    return -1.0 if secs < 0 else min(secs, _MOST_SECS)


def _duration(text: str) -> float | None:
    sign, digits = (-1.0, text[1:]) if text[:1] == "-" else (1.0, text.removeprefix("+"))
    if re.fullmatch(r"\d{1,12}(\.\d{1,12})?", digits):
        return sign * float(digits)
    parts = _AMOUNT.findall(digits[:100])
    if not parts or "".join(number + unit for number, unit in parts) != digits:
        return None
    return sign * sum(float(number) * _UNITS[unit] for number, unit in parts)


def _generation(fields: Fields, turns: Turns, *, empty: bool) -> Generation:
    own = fields.object("options") or Fields({})
    streams = fields.flag("stream")
    generation = Generation(
        model=model_of(fields),
        turns=[] if empty else turns.finish(),
        options=options.sampling(own),
        max_tokens=_num_predict(own),
        stream=streams is None or streams,
        keep_alive=keep_alive_of(fields),
        num_ctx=own.integer("num_ctx"),
    )
    options.add_stops(generation.options, options.stops(own, "stop"))
    if (thinking := _think(fields)) is not None:
        generation.options["thinking"] = thinking
    if (form := _format(fields)) is not None:
        generation.options["response_format"] = form
    return generation


def _logprobs(fields: Fields, generation: Generation) -> None:
    if fields.flag("logprobs"):
        options.want_logprobs(generation, fields, "logprobs", options.top_logprobs(fields))
    elif options.top_logprobs(fields):
        raise fields.bad("top_logprobs", "needs logprobs to be true")


def _num_predict(own: Fields) -> int | None:
    count = own.integer("num_predict")
    if count is None or count in (-1, -2):
        return None
    return own.count("num_predict")


def _think(fields: Fields) -> bool | None:
    think = fields.raw("think")
    if think is None or isinstance(think, bool):
        return think
    if think not in _LEVELS:
        raise fields.bad("think", f"must be true, false or one of {', '.join(_LEVELS)}")
    return True


def _format(fields: Fields) -> dict[str, Any] | None:
    form = fields.raw("format")
    if form is None or form == "":
        return None
    if form == "json":
        return {"type": "json_object"}
    if not isinstance(form, dict):
        raise fields.bad("format", "must be json or a JSON Schema object")
    return {"type": "json_schema", "schema": form}


# Messages.


def _message(turns: Turns, message: Fields) -> None:
    role, text = message.required_text("role"), message.text("content") or ""
    blocks: list[Block] = [*_images(message), text_block(text)]
    if role == "system":
        turns.system(text)
    elif role == "user":
        turns.user(blocks)
    elif role == "tool":
        name = message.text("tool_name") or message.text("name")
        turns.result(message.text("tool_call_id"), name, blocks, message.path("tool_name"))
    elif role == "assistant":
        turns.assistant([{"type": "thinking", "text": message.text("thinking") or ""}, text_block(text)])
        for call in message.objects("tool_calls"):
            function = Fields(call.raw("function"), call.path("function"))
            arguments = function.raw("arguments")
            if not isinstance(arguments, dict | None):
                raise function.bad("arguments", "must be an object")
            given = options.json_text(arguments or {})
            turns.call(
                call.text("id") or "", function.required_text("name"), given, function.path("arguments")
            )
    else:
        raise message.bad("role", "must be system, user, assistant or tool")


def _images(fields: Fields) -> list[Block]:
    pictures: list[Block] = []
    for number, text in enumerate(fields.items("images") or ()):
        where = f"{fields.path('images')}[{number}]"
        if not isinstance(text, str):
            raise BadField(where, f"{where} must be base64")
        pictures.append(media.image(text, where))
    return pictures


def _tool(fields: Fields) -> dict[str, Any]:
    function = Fields(fields.raw("function"), fields.path("function"))
    return options.tool(
        function.required_text("name"), function.text("description"), function.raw("parameters")
    )
