"""The requests to a backend, as immutable, validated data.

The requests are msgspec structs, which compare by type and value. ``msgspec.structs.replace`` copies a
request with changes. The engine process gets requests unchanged.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from inferd.sampling import NOTHING_GIVEN, SamplingParams


class Media(Struct, frozen=True, eq=False):
    """An image or a sound in a message.

    ``kind`` is ``image`` or ``audio``. With ``mime``, ``data`` is an encoded file. Without ``mime``, ``data``
    is raw: ``width`` x ``height`` interleaved RGB bytes, or little-endian float32 mono samples at
    ``sample_rate`` Hz.
    """

    kind: Literal["image", "audio"]
    data: memoryview
    mime: str = ""
    width: int = 0
    height: int = 0
    sample_rate: int = 0


class ToolCall(Struct, frozen=True):
    """A tool call by the model. ``arguments`` is the text of a JSON object."""

    id: str
    name: str
    arguments: str


class Tool(Struct, frozen=True):
    """A function that the model may call. ``schema`` is the JSON Schema of the function's arguments, as JSON
    text."""

    name: str
    description: str
    schema: str


class Message(Struct, frozen=True):
    """One turn of the conversation.

    ``role`` is ``system``, ``user``, ``assistant``, or ``tool`` for the result of the call ``tool_call_id``.
    ``content`` is a text, or a sequence of texts and media. An assistant's turn may also have ``thinking``
    and ``tool_calls``.
    """

    role: str
    content: str | tuple[str | Media, ...]
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""


class FrameTemplate(Struct, frozen=True):
    """A token frame consists of ``prefix``, a JSON-escaped text and ``suffix``, in this order.

    If the request asks for log probabilities, ``opening`` and the token records stand between the text and
    ``suffix``.
    """

    prefix: bytes
    suffix: bytes
    opening: bytes = b""


class GenerateRequest(Struct, frozen=True, kw_only=True):
    """A validated request to a backend.

    If ``max_tokens`` is ``None``, the backend sets the limit. ``json_schema`` (JSON text) and ``grammar``
    (GBNF) exclude each other. With ``schema_lenient``, a keyword of ``json_schema`` that cannot be enforced
    during generation is dropped if the finished answer can be checked against this keyword. ``frame`` is
    ``None`` if the client wants no token frames. Requests with the same ``scope`` may reuse each other's KV
    caches, unless ``cache`` is false. ``session`` is the client's name for the conversation. With
    ``model_defaults``, each setting that ``sampling`` leaves open gets the value that the model's publisher
    recommends. Only a backend with its own queue uses ``priority`` (``interactive`` or ``batch``).

    With ``typed``, thinking and tool calls are separate events. Without ``typed``, the model answers in text
    and does not think first. If ``thinking`` is ``None``, the model decides whether it thinks.
    ``tool_choice`` is ``auto``, ``none`` or ``required``. If ``tool_name`` is set, the model must call that
    tool. ``lora`` is the name of an adapter, or empty.

    With ``raw``, the text of the only message is the whole prompt, and no template is applied. If ``suffix``
    is set, the model fills in the text between the prompt and ``suffix``. With ``begun``, the last message is
    the beginning of the answer. If ``logprobs`` is a number N, the answer has the log probability of each
    text token, and of N alternatives to each token. ``raw``, ``begun`` and ``logprobs`` cannot be combined
    with thinking. ``raw`` and ``begun`` cannot be combined with tools either.
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
    """Texts to embed; none is empty. ``dimensions`` truncates the vectors. ``task`` selects the prefix that
    the model family puts before each text."""

    inputs: tuple[str, ...]
    dimensions: int | None = None
    task: str | None = None


class RankRequest(Struct, frozen=True):
    """Documents to score against a query. No document is empty."""

    query: str
    documents: tuple[str, ...]
