"""Validates a parsed request of the v2 protocol: checks the rules for messages, attachments and tools.

:func:`validate` reports only the first fault, with the path of the wrong value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from inferd.wire import attachments, sampling
from inferd.wire.attachments import Attachment
from inferd.wire.sampling import invalid
from inferd.wire.v2 import (
    Audio,
    Block,
    Image,
    Message,
    Request,
    Text,
    Thinking,
    ToolName,
    ToolResult,
    ToolUse,
    Unknown,
    Video,
)

MAX_TOOLS = 128
# The nesting limit of tool results: above any useful depth, since each level takes stack space.
MAX_DEPTH = 16

_REFERS_TO: dict[type[Block], tuple[str, type[Attachment]]] = {
    Text: ("text", attachments.Text),
    Image: ("image", attachments.Image),
    Audio: ("audio", attachments.Audio),
    Video: ("video", attachments.Video),
}


def validate(request: Request) -> None:
    """Raises AttachmentUnsupported for a video, and InvalidRequest if any other rule is violated."""
    if not request.messages:
        raise invalid("messages must not be empty")
    by_id = attachments.check_list(request.attachments or ())
    _check_tool_names(request)
    for i, message in enumerate(request.messages):
        if not message.content:
            raise invalid(f"messages[{i}].content must not be empty")
        for path, block in _walk(message.content, f"messages[{i}].content"):
            _check_block(block, path, by_id)
    attachments.check_contents(request.attachments or ())
    _check_history(request)
    _check_constraints(request)
    _check_prompt(request)
    sampling.check(request)


def _check_tool_names(request: Request) -> None:
    names: set[str] = set()
    for tool in request.tools or ():
        if tool.name in names:
            raise invalid(f"duplicate tool name: {tool.name}")
        names.add(tool.name)
    if len(names) > MAX_TOOLS:
        raise invalid(f"tools must hold at most {MAX_TOOLS}")
    if "" in names:
        raise invalid("tools must have non-empty name")


def _walk(blocks: Sequence[Block], path: str, depth: int = 0) -> Iterator[tuple[str, Block]]:
    """Yields every block with its path. A tool result comes before the blocks that it contains."""
    if depth > MAX_DEPTH:
        raise invalid(f"{path} is nested too deeply")
    for j, block in enumerate(blocks):
        yield f"{path}[{j}]", block
        if isinstance(block, ToolResult):
            yield from _walk(block.content, f"{path}[{j}].content", depth + 1)


def _check_block(block: Block, path: str, by_id: Mapping[str, Attachment]) -> None:
    if isinstance(block, Unknown):
        raise invalid(f"{path} uses unknown content-block type")
    if isinstance(block, Text) and (block.text is None) == (block.attachment_id is None):
        raise invalid(f"{path} must have one of text and attachment_id")
    if isinstance(block, Text | Image | Audio | Video) and block.attachment_id is not None:
        kind, expected = _REFERS_TO[type(block)]
        found = by_id.get(block.attachment_id)
        if found is None:
            raise invalid(f'{path} references unknown attachment_id "{block.attachment_id}"')
        if not isinstance(found, expected):
            raise invalid(
                f'{path} block expects {kind} attachment but "{block.attachment_id}" is a different kind'
            )


def _check_history(request: Request) -> None:
    """Checks four rules. Thinking and tool calls are only in assistant messages. No two tool calls have the
    same id. Each tool result is in a user message. A tool call with the id of the tool result comes before
    the tool result."""
    called: set[str] = set()
    for i, message in enumerate(request.messages):
        for path, block in _walk(message.content, f"messages[{i}].content"):
            if isinstance(block, Thinking | ToolUse):
                if message.role != "assistant":
                    raise invalid(f"{path} is allowed only in an assistant message")
            elif isinstance(block, ToolResult) and message.role != "user":
                raise invalid(f"{path} is allowed only in a user message")
            if isinstance(block, ToolUse):
                if not block.tool_call_id or not block.name:
                    raise invalid(f"{path} must have non-empty tool_call_id and name")
                if not bytes(block.input).startswith(b"{"):
                    raise invalid(f"{path}.input must be an object")
                if block.tool_call_id in called:
                    raise invalid(f'{path} repeats the tool_call_id "{block.tool_call_id}"')
                called.add(block.tool_call_id)
            elif isinstance(block, ToolResult) and block.tool_call_id not in called:
                raise invalid(f'{path} has no tool_use before it with tool_call_id "{block.tool_call_id}"')


def _check_constraints(request: Request) -> None:
    """Checks that at most one option constrains the form of the answer, and that the tool in ``tool_choice``
    exists."""
    choice = request.tool_choice
    names = {tool.name for tool in request.tools or ()}
    if isinstance(choice, ToolName) and choice.name not in names:
        raise invalid(f'tool_choice names the unknown tool "{choice.name}"')
    if choice == "required" and not names:
        raise invalid("tool_choice is required but there are no tools")
    if request.response_format is not None and bytes(request.json_schema):
        raise invalid("response_format and json_schema exclude each other")
    constraint = "response_format" if request.response_format is not None else "json_schema"
    if request.grammar and request.schema:
        raise invalid(f"grammar and {constraint} exclude each other")
    if names and choice != "none" and (request.grammar or request.schema):
        constraint = "grammar" if request.grammar else constraint
        raise invalid(
            f"{constraint} and tools exclude each other, since the answer could be either what {constraint}"
            ' describes or a tool call; leave one out, or set tool_choice to "none"'
        )


def _check_prompt(request: Request) -> None:
    """Checks the fields ``suffix``, ``raw``, ``begun`` and ``logprobs``. With ``raw``, the only message must
    be plain text. ``suffix`` requires ``raw``. With ``begun``, the last message must be plain text."""
    if request.suffix is not None and not request.raw:
        raise invalid("suffix is for raw prompts; set raw to true")
    if request.raw and request.begun:
        raise invalid("raw and begun exclude each other")
    messages = request.messages
    if request.raw and not (len(messages) == 1 and messages[0].role == "user" and _is_text(messages[0])):
        raise invalid("with raw, messages must be one user message of text only")
    if request.begun and not (messages[-1].role == "assistant" and _is_text(messages[-1])):
        raise invalid("with begun, the last message must be an assistant message of text only")
    if request.begun and len(messages) < 2:
        raise invalid("with begun, messages must hold another message before the last one")
    if request.begun and (request.grammar or request.schema):
        raise invalid("begun excludes grammar and schema, which apply to a whole answer")
    for name in ("raw", "begun", "logprobs"):
        wish = getattr(request, name)
        if wish is None or wish is False:
            continue
        if name != "logprobs" and request.tools and request.tool_choice != "none":
            raise invalid(f'{name} and tools exclude each other; leave one out, or set tool_choice to "none"')
        if request.thinking:
            raise invalid(f"{name} and thinking exclude each other; leave one out")


def _is_text(message: Message) -> bool:
    return all(isinstance(block, Text) for block in message.content)
