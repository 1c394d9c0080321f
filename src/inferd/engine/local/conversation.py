"""Renders a conversation with the template of a model's family, and parses the answer.

If the template supports tools, llama.cpp renders and parses the family's own format for calls. Otherwise
calls use the format of :mod:`inferd.engine.local.generic_tools`. Everything here is slow, so it does not run
on the event loop.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson
from msgspec.structs import replace

from inferd.engine.events import Event, Text, Thinking, ToolUse
from inferd.engine.local import _llama, generic_tools, media
from inferd.engine.local.child import turns
from inferd.engine.local.past.answers import Kept
from inferd.engine.local.schema import family_guides
from inferd.engine.local.schema.family_grammar import NoCalls
from inferd.engine.local.schema.family_repairs import repaired
from inferd.engine.local.schema.guides import Guides, Held
from inferd.engine.local.streams.token_records import Place
from inferd.engine.requests import GenerateRequest, Media, Message, Tool, ToolCall
from inferd.errors import InvalidRequest, PromptTooLong


class Reader(Protocol):
    """Parses an answer while it grows. ``places`` lists the byte ranges of the raw answer that contain the
    text of the last events."""

    places: Sequence[Place]

    def feed(self, text: str, *, last: bool) -> list[Event] | None:
        """Returns the events that ``text`` completes, or ``None`` if the answer cannot be parsed. ``last``
        means that the answer ends after ``text``."""

    def cut(self) -> list[Event]:
        """Ends an answer that was cut off. Returns the events of the text that :meth:`feed` held back."""


@dataclass(frozen=True, slots=True)
class Past:
    """The data that earlier requests of a conversation left. ``answers`` has the answers whose tokens were
    kept. ``now`` is the time that the template gets, in seconds since 1970; 0 means the present."""

    answers: Sequence[Kept] = ()
    now: int = 0


NOTHING = Past()


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that is ready for the token loop.

    ``grammar`` is the client's GBNF. A ``guide`` replaces ``grammar`` and also the prompt's own grammar. If
    ``reader`` is ``None``, the answer is plain text. ``held`` is the schema of the answer. ``tools`` maps the
    name of each tool to the schema of its arguments. The finished answer and its calls are checked against
    these schemas.
    """

    prompt: _llama.Prompt
    reader: Reader | None
    grammar: bytes = b""
    guide: _llama.Guide | None = None
    held: Held | None = None
    tools: Mapping[str, Held] = field(default_factory=dict)

    @property
    def unenforced(self) -> tuple[str, ...]:
        """The list for ``Done.unenforced``. Each item is a tool's name (empty for the answer's own schema),
        ``#`` and a JSON pointer."""
        schemas = {"": self.held} if self.held else self.tools
        return tuple(f"{name}#{pointer}" for name, held in schemas.items() for pointer in held.dropped)


@dataclass(frozen=True, slots=True)
class Family:
    """The templates, guides and limits of a loaded model.

    ``n_batch`` is the maximum number of tokens in one step of the engine. A text longer than ``most_chars``
    characters cannot fit the context of ``n_ctx`` tokens.
    """

    templates: _llama.Templates
    guides: Guides
    projector: _llama.Projector | None = None
    n_batch: int = 0
    most_chars: int = sys.maxsize
    n_ctx: int = 0
    n_ctx_train: int = 0

    def prompt(self, request: GenerateRequest, past: Past, *, thinking: bool) -> _llama.Prompt:
        """Returns the prompt of a request without tools."""
        messages = request.messages
        if request.raw:
            text = turns.text(messages[-1])
            self._check_size(len(text) + len(request.suffix or ""))
            return self.templates.raw(
                text.encode(), None if request.suffix is None else request.suffix.encode()
            )
        more: dict[str, object] = {}
        if request.begun:
            messages, more = messages[:-1], {"begun": turns.text(messages[-1])}
        return self.render(messages, past, thinking=thinking, text_only=not thinking, **more)

    def _check_size(self, chars: int) -> None:
        # Rendering takes forty times a prompt's size in memory. So a prompt that cannot fit is refused before
        # rendering.
        if chars > self.most_chars:
            raise PromptTooLong(
                f"the prompt has {chars} characters and the context holds {self.most_chars} at the very most",
                max(self.n_ctx + 1, chars * self.n_ctx // self.most_chars),
                self.n_ctx,
                self.n_ctx_train,
            )

    def render(self, messages: Sequence[Message], past: Past, **more: object) -> _llama.Prompt:
        """Returns the prompt of a conversation. ``past`` comes from earlier requests of the conversation.
        ``more`` holds further keys for the template's input."""
        self._check_size(sum(len(turns.text(message)) for message in messages))
        # Each medium keeps its number, whatever the order in the messages and the template.
        parts = [part for message in messages for part in turns.media(message)]
        items = [media.to_item(part, self.projector) for part in parts]
        places = {id(part): number for number, part in enumerate(parts)}
        marker = self.projector.marker if self.projector else ""

        def rendered(shown: Sequence[Message]) -> _llama.Prompt:
            content = [_message(message, lambda part: f"{marker}{places[id(part)]}>") for message in shown]
            conversation = orjson.dumps({"messages": content, "now": past.now, **more})
            return self.templates.render(conversation, self.projector, items, self.n_batch, past.answers)

        given = turns.fitting(messages, self.templates)
        try:
            return rendered(given)
        except InvalidRequest:
            for others in turns.stricter(given):
                with contextlib.suppress(InvalidRequest):
                    return rendered(others)
            raise


def shows_earlier_thoughts(templates: _llama.Templates, model: _llama.Model) -> bool:
    """Returns whether the template still shows the thinking of an answer once another user message has
    followed."""
    thought = "an earlier thought"
    messages = [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "Because.", "reasoning_content": thought},
        {"role": "user", "content": "And now?"},
    ]
    try:
        prompt = templates.render(orjson.dumps({"messages": messages, "text_only": True}))
    except InvalidRequest:
        return True
    return thought.encode() in model.text(prompt.tokens)


def prepare(family: Family, request: GenerateRequest, past: Past = NOTHING) -> Prepared:
    """Renders the conversation, and chooses the reader and the guide of its answer.

    Raises ``InvalidRequest`` for content that the model's template cannot express, and
    ``AttachmentUnsupported`` for media that the model does not support.
    """
    tools = _tools(request)
    required = bool(tools) and (request.tool_choice == "required" or bool(request.tool_name))
    if tools and family.templates.tools:
        with contextlib.suppress(NoCalls):
            return _with_tools(family, request, past, tools, required)
    if tools:
        return _with_generic_tools(family, request, past, tools, required)
    thinks = _thinks(family, request)
    held = None
    if request.json_schema:
        held = family.guides.answer(request.json_schema, lenient=request.schema_lenient)
        if thinks:
            prompt = family.render(request.messages, past, thinking=True, form=family_guides.ANSWER)
            guide = family_guides.answer(family.guides, prompt, held)
            if guide is not None:
                return Prepared(prompt, _FamilyReader(_llama.Reply(prompt.syntax)), guide=guide, held=held)
        thinks = False  # this family cannot combine thoughts with a schema
    prompt = family.prompt(request, past, thinking=thinks)
    reader = _FamilyReader(_llama.Reply(prompt.syntax)) if thinks else None
    guide = family.guides.value(held) if held else None
    return Prepared(prompt, reader, request.grammar.encode(), guide, held)


def _thinks(family: Family, request: GenerateRequest) -> bool:
    in_text = request.raw or request.begun or request.logprobs is not None
    return request.typed and request.thinking is not False and not in_text and family.templates.thinking


def _with_tools(
    family: Family, request: GenerateRequest, past: Past, tools: tuple[Tool, ...], required: bool
) -> Prepared:
    held = {tool.name: family.guides.tool(tool) for tool in tools}
    thinking = _thinks(family, request)

    def rendered(shown: Sequence[Tool], *, typed: bool, listed: bool = False) -> _llama.Prompt:
        form = family_guides.calls_form(tools, held, required, typed=typed, listed=listed)
        return family.render(
            request.messages, past, tools=[_tool(tool) for tool in shown], thinking=thinking, form=form
        )

    prompt = _first_that_renders(
        lambda: rendered(tools, typed=False),
        lambda: rendered([_with_all_keys(tool) for tool in tools], typed=True),
        lambda: rendered(
            [_with_named_arrays(_with_all_keys(tool)) for tool in tools], typed=True, listed=True
        ),
    )
    syntax = repaired(prompt.syntax)
    guide = family_guides.calls(family.guides, prompt, syntax, held, required)
    reader = _FamilyReader(_llama.Reply(syntax, places=request.logprobs is not None))
    return Prepared(prompt, reader, guide=guide, tools=held)


def _first_that_renders(*renders: Callable[[], _llama.Prompt]) -> _llama.Prompt:
    """Returns the first prompt that the template accepts. If the template refuses all prompts, raises the
    first refusal."""
    refusals: list[InvalidRequest] = []
    for render in renders:
        try:
            return render()
        except InvalidRequest as refusal:
            refusals.append(refusal)
    raise refusals[0]


def _with_generic_tools(
    family: Family, request: GenerateRequest, past: Past, tools: tuple[Tool, ...], required: bool
) -> Prepared:
    held = {tool.name: family.guides.tool(tool) for tool in tools}
    system = Message("system", generic_tools.instructions(tools, required))
    messages = [turns.without_tools(message) for message in request.messages]
    if messages[0].role == "system":
        system = replace(system, content=turns.joined(messages.pop(0).content, f"\n{system.content}"))
    return Prepared(
        family.render((system, *turns.alternating(messages)), past, thinking=False, text_only=True),
        generic_tools.Reader(required),
        guide=generic_tools.guide(family.guides, held, required),
        tools=held,
    )


def _tools(request: GenerateRequest) -> tuple[Tool, ...]:
    """Returns the tools that the model may call in this answer."""
    if request.tool_choice == "none":
        return ()
    if request.tool_name:
        return tuple(tool for tool in request.tools if tool.name == request.tool_name)
    return request.tools


def _message(message: Message, place: Callable[[Media], str]) -> dict[str, object]:
    """Returns a message in the form of OpenAI's chat completions. ``place`` returns the text that represents
    an image or a sound."""
    content: object = message.content
    if not isinstance(message.content, str):
        content = [
            {"type": "text", "text": part}
            if isinstance(part, str)
            else {"type": "media_marker", "text": place(part)}
            for part in message.content
        ]
    out: dict[str, object] = {"role": message.role, "content": content}
    if message.thinking:
        out["reasoning_content"] = message.thinking
    if message.tool_call_id:
        out["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        out["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    return out


def _tool(tool: Tool) -> dict[str, object]:
    function = {
        "name": tool.name,
        "description": tool.description,
        "parameters": orjson.Fragment(tool.schema),
    }
    return {"type": "function", "function": function}


def _with_all_keys(tool: Tool) -> Tool:
    """Returns a copy of the tool in which the schema has the key ``required``, and each parameter has exactly
    one ``type``. Some templates fail without these keys."""
    schema = orjson.loads(tool.schema)
    parameters = {}
    for name, part in (schema.get("properties") or {}).items():
        said = part if isinstance(part, dict) else {}
        one = said.get("type") if isinstance(said.get("type"), str) else "any"
        parameters[name] = {**said, "type": one}
    return replace(tool, schema=orjson.dumps({"required": [], **schema, "properties": parameters}).decode())


def _with_named_arrays(tool: Tool) -> Tool:
    """Returns a copy of the tool in which the type of an array names the type of its items. For example, the
    type of an array of strings is ``["string[]"]``. gpt-oss's template shows such a type as an array of
    strings. The template also reads the key ``items`` of an array, but llama.cpp's interpreter finds a method
    of that name instead of the key."""

    def named(part: Any) -> Any:
        if isinstance(part, list):
            return [named(each) for each in part]
        if not isinstance(part, dict):
            return part
        whole = {name: named(each) for name, each in part.items()}
        if part.get("type") == "array":
            items = part.get("items")
            kind = items.get("type") if isinstance(items, dict) else None
            whole["type"] = [f"{kind if isinstance(kind, str) else 'any'}[]"]
        return whole

    return replace(tool, schema=orjson.dumps(named(orjson.loads(tool.schema))).decode())


class _FamilyReader:
    """Reads an answer in a format that llama.cpp parses."""

    def __init__(self, reply: _llama.Reply) -> None:
        self._reply = reply
        self.places: Sequence[Place] = ()

    def feed(self, text: str, *, last: bool) -> list[Event] | None:
        news = self._reply.feed(text.encode(), last=last)
        if news is None:
            return None
        found = orjson.loads(news)
        self.places = found.get("places", ())
        events: list[Event] = []
        if found.get("thinking"):
            events.append(Thinking(found["thinking"]))
        if found.get("text"):
            events.append(Text(found["text"]))
        for call in found.get("tools", ()):
            events.append(ToolUse(ToolCall(call["id"], call["name"], call["arguments"])))
        return events

    def cut(self) -> list[Event]:
        return []  # a final parse would emit half a call as text
