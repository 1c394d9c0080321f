"""Rewrites the messages of a conversation for templates that lack features that clients use.

All content is kept, including pictures and sounds. Parts that a template does not support become text or
change their order.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from typing import TypeAlias

from msgspec.structs import replace

from inferd.engine.local import _llama, generic_tools
from inferd.engine.requests import Media, Message

Content: TypeAlias = "str | tuple[str | Media, ...]"
_SHORT_ID = re.compile(r"[A-Za-z0-9]{9}")


def fitting(messages: Sequence[Message], templates: _llama.Templates) -> Sequence[Message]:
    """Returns the messages with their tool calls in a form that the template renders, such as text or one
    call in each turn."""
    if not any(message.tool_calls or message.role == "tool" for message in messages):
        return messages
    if not templates.tools and not templates.calls:
        return list(alternating([without_tools(message) for message in messages]))
    if not templates.calls:
        return [_calls_as_text(message) for message in messages]
    if not templates.nested_arguments:
        messages = [_with_flat_arguments(message) for message in messages]
    return messages if templates.several_calls else list(_one_call_each(messages))


def alternating(messages: Sequence[Message]) -> Iterator[Message]:
    """Yields the messages, with neighbours of the same role joined into one. Rewriting can produce such
    neighbours."""
    last: Message | None = None
    for message in messages:
        if last is not None and last.role == message.role:
            content = joined(last.content, message.content)
            last = replace(last, content=content, thinking=last.thinking + message.thinking)
            continue
        if last is not None:
            yield last
        last = message
    if last is not None:
        yield last


def without_tools(message: Message) -> Message:
    """Returns the message with its tool calls or its tool result as text."""
    if message.role == "tool":
        return Message("user", _around(message.content, "<tool_response>", "</tool_response>"))
    return _calls_as_text(message)


def stricter(messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
    """Yields rewritten conversations for templates that refuse the original or omit a part. The least changed
    conversation comes first.

    In all of them, the id of a call consists of nine characters, each a letter or a digit. The first has no
    other change. The second moves the text of a turn with calls into a separate message. If a user's text
    follows tool results, the third appends this text to the last result. The fourth makes the changes of the
    second and of the third. In the fifth, calls and results are text. A conversation that equals an earlier
    one is left out.
    """
    with_ids = [_with_short_ids(message) for message in messages]
    apart = [part for message in with_ids for part in _apart(message)]
    as_text = list(alternating([without_tools(message) for message in with_ids]))
    tried = [list(messages)]
    for others in (with_ids, apart, _joined_to_results(with_ids), _joined_to_results(apart), as_text):
        if others not in tried:
            tried.append(others)
            yield others


def _apart(message: Message) -> list[Message]:
    if not message.tool_calls or not (text(message).strip() or media(message)):
        return [message]
    return [replace(message, tool_calls=()), replace(message, content="", thinking="")]


def _joined_to_results(messages: Sequence[Message]) -> list[Message]:
    out: list[Message] = []
    for message in messages:
        if message.role == "user" and out and out[-1].role == "tool":
            out[-1] = replace(out[-1], content=joined(out[-1].content, message.content))
        else:
            out.append(message)
    return out


def text(message: Message) -> str:
    if isinstance(message.content, str):
        return message.content
    return "".join(part for part in message.content if isinstance(part, str))


def media(message: Message) -> list[Media]:
    """Returns the images and sounds of the message."""
    if isinstance(message.content, str):
        return []
    return [part for part in message.content if isinstance(part, Media)]


def _calls_as_text(message: Message) -> Message:
    calls = "".join(generic_tools.as_text(call) for call in message.tool_calls)
    return replace(message, content=_around(message.content, "", calls), tool_calls=()) if calls else message


def _with_flat_arguments(message: Message) -> Message:
    """Returns the message with flat call arguments: JSON text replaces each object or array among them."""
    calls = tuple(replace(call, arguments=_flat(call.arguments)) for call in message.tool_calls)
    return replace(message, tool_calls=calls)


def _flat(arguments: str) -> str:
    try:
        values = json.loads(arguments)
    except ValueError:
        return arguments
    if not isinstance(values, dict):
        return arguments
    flat = {key: _json(value) if isinstance(value, dict | list) else value for key, value in values.items()}
    return _json(flat)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _one_call_each(messages: Sequence[Message]) -> Iterator[Message]:
    """Splits a turn with several calls into turns with one call each. The result of each call follows the
    call's turn."""
    results = {message.tool_call_id: message for message in messages if message.role == "tool"}
    moved: set[str] = set()
    for message in messages:
        if message.role == "tool" and message.tool_call_id in moved:
            continue
        if len(message.tool_calls) < 2:
            yield message
            continue
        for i, call in enumerate(message.tool_calls):
            said = message if i == 0 else Message("assistant", "")
            yield replace(said, tool_calls=(call,))
            if call.id in results and call.id not in moved:
                moved.add(call.id)
                yield results[call.id]


def joined(first: Content, second: Content) -> Content:
    """Returns both contents as one. Texts are joined by a newline."""
    if isinstance(first, str) and isinstance(second, str):
        return f"{first}\n{second}"
    return (*_parts(first), *_parts(second))


def _around(content: Content, before: str, behind: str) -> Content:
    if isinstance(content, str):
        return before + content + behind
    return tuple(part for part in (before, *content, behind) if part)


def _parts(content: Content) -> tuple[str | Media, ...]:
    return (content,) if isinstance(content, str) else content


def _with_short_ids(message: Message) -> Message:
    calls = tuple(replace(call, id=_short_id(call.id)) for call in message.tool_calls)
    return replace(message, tool_calls=calls, tool_call_id=_short_id(message.tool_call_id))


def _short_id(call_id: str) -> str:
    if not call_id or _SHORT_ID.fullmatch(call_id):
        return call_id
    return hashlib.sha256(call_id.encode()).hexdigest()[:9]
