"""The requests to a backend: immutable data, validated.

They are structs of msgspec: compared by type and value, copied with changes by ``msgspec.structs.replace``,
and sent to the process of a model as they are.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from inferd.sampling import NOTHING_GIVEN, SamplingParams


class Media(Struct, frozen=True, eq=False):
    """An image or a sound in a message.

    ``kind`` is ``image`` or ``audio``. With a ``mime`` type ``data`` is an encoded file; without one it is
    ``width`` x ``height`` interleaved RGB bytes, or little-endian float32 mono samples at ``sample_rate`` Hz.
    """

    kind: Literal["image", "audio"]
    data: memoryview
    mime: str = ""
    width: int = 0
    height: int = 0
    sample_rate: int = 0


class ToolCall(Struct, frozen=True):
    """A call that the model made; ``arguments`` is a JSON object as text."""

    id: str
    name: str
    arguments: str


class Tool(Struct, frozen=True):
    """A function that the model may call; ``schema`` is the JSON Schema of its arguments as JSON text."""

    name: str
    description: str
    schema: str


class Message(Struct, frozen=True):
    """One turn of the conversation.

    ``role`` is ``system``, ``user``, ``assistant``, or ``tool`` for the result of the call ``tool_call_id``.
    ``content`` is text, or texts and media in order. An assistant's turn may carry its ``thinking`` and
    ``tool_calls``.
    """

    role: str
    content: str | tuple[str | Media, ...]
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""


class FrameTemplate(Struct, frozen=True):
    """The bytes before and after the JSON-escaped text of a token frame.

    If the request asks for probabilities, ``opening`` and the records of the tokens follow the text.
    """

    prefix: bytes
    suffix: bytes
    opening: bytes = b""


class GenerateRequest(Struct, frozen=True, kw_only=True):
    """A validated request to a backend.

    A ``max_tokens`` of ``None`` leaves the limit to the backend. ``json_schema`` is the schema as JSON text
    and excludes ``grammar`` (GBNF). ``schema_lenient`` drops a keyword that cannot be enforced, if the
    finished answer can be checked for it. ``frame`` is ``None`` if the client wants no token frames. Requests
    of one ``scope`` may reuse each other's computed prefixes, unless ``cache`` is false; ``session`` is the
    client's name for the conversation. ``model_defaults`` fills settings that ``sampling`` leaves open with
    the publisher's recommendation. ``priority`` (``interactive`` or ``batch``) is for a backend with its own
    queue.

    ``typed`` asks for thinking and tool calls as separate events; without it the model answers at once, in
    text. ``thinking`` ``None`` leaves that to the model. ``tool_choice`` is ``auto``, ``none`` or
    ``required``; with a ``tool_name`` that tool is required. ``lora`` names an adapter of the model, empty
    for none.

    ``raw``: the text of the only message is the whole prompt, without a template; with a ``suffix`` the model
    fills in the middle. ``begun``: the last message is the beginning of the answer. ``logprobs`` asks for the
    probability of each token of the text and of that many alternatives. None of these combines with thinking,
    and only ``logprobs`` with tools.
    """

    messages: tuple[Message, ...]
    max_tokens: int | None = None
    sampling: SamplingParams = NOTHING_GIVEN
    stop: tuple[str, ...] = ()
    grammar: str = ""
    json_schema: str = ""
    schema_lenient: bool = False
    session: str = ""
    scope: str = ""
    cache: bool = True
    model_defaults: bool = False
    priority: str = "interactive"
    frame: FrameTemplate | None = None
    typed: bool = False
    thinking: bool | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: Literal["auto", "none", "required"] = "auto"
    tool_name: str = ""
    lora: str = ""
    raw: bool = False
    suffix: str | None = None
    begun: bool = False
    logprobs: int | None = None


class EmbedRequest(Struct, frozen=True, kw_only=True):
    """Texts to embed, none empty; ``dimensions`` truncates vectors, ``task`` selects the family's prefix."""

    inputs: tuple[str, ...]
    dimensions: int | None = None
    task: str | None = None


class RankRequest(Struct, frozen=True):
    """Documents, none empty, to be scored against a query."""

    query: str
    documents: tuple[str, ...]
