"""A session over HTTP, in the manner of each of five agents, computes only the new part of each request.

A session has two prompts and turns with tools, or one prompt for each answer with a schema, with the chat
template of Qwen 2.5. The agents differ in their API, and in how they send an answer back.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.http_bridge import BridgeProcess, web
from tests.tiny_llama import write_llama
from tests.unit.test_answers import EDIT, TEMPLATE

DESCRIPTION = "Changes a file."
SYSTEM = "You are an agent. " + "Work step by step. " * 20
Json = dict[str, Any]


class Agent(ABC):
    """One conversation. ``tools``: the model is to call a tool each time, else to answer by a schema."""

    endpoint: str

    def __init__(self, tools: bool) -> None:
        self.tools = tools
        self.turns: list[Json] = []
        self.number = 0

    @abstractmethod
    def body(self) -> Json: ...

    @abstractmethod
    def prompt(self, text: str) -> None: ...

    @abstractmethod
    def take(self, answer: Json) -> int:
        """Adds an answer, and results for its calls, to the conversation; returns the number of calls."""

    @abstractmethod
    def usage(self, answer: Json) -> tuple[int, int, int]:
        """The tokens of the prompt, the cached ones among them, and the tokens of the answer."""


class OfChat(Agent):
    """Chat completions; the subclasses differ in how they send calls, results and texts back."""

    endpoint = "/v1/chat/completions"

    def body(self) -> Json:
        how: Json
        if self.tools:
            tool = {"name": "edit", "description": DESCRIPTION, "parameters": EDIT}
            how = {"tools": [{"type": "function", "function": tool}], "tool_choice": "required"}
        else:
            schema = {"name": "edit", "schema": EDIT, "strict": True}
            how = {"response_format": {"type": "json_schema", "json_schema": schema}}
        messages = [{"role": "system", "content": SYSTEM}, *self.turns]
        return {"model": "chat", "messages": messages, "max_tokens": 1000, **how}

    def prompt(self, text: str) -> None:
        self.turns.append({"role": "user", "content": text})

    def take(self, answer: Json) -> int:
        message = answer["choices"][0]["message"]
        calls = message.get("tool_calls") or []
        self.turns.append(self.again(message))
        self.turns += [
            {"role": "tool", "tool_call_id": call["id"], "content": self.result(call)} for call in calls
        ]
        return len(calls)

    def again(self, message: Json) -> Json:
        return message

    def result(self, call: Json) -> Any:
        return "ok"

    def usage(self, answer: Json) -> tuple[int, int, int]:
        found = answer["usage"]
        cached = found.get("prompt_tokens_details", {}).get("cached_tokens", 0)
        return found["prompt_tokens"], cached, found["completion_tokens"]


class Opencode(OfChat):
    """Writes arguments anew, without blanks, and leaves empty texts out."""

    def again(self, message: Json) -> Json:
        return rewritten(message, separators=(",", ":"))


class Pi(OfChat):
    """Sends an empty text beside calls."""

    def again(self, message: Json) -> Json:
        return {**message, "content": message.get("content") or ""}


class QwenCode(OfChat):
    """Writes arguments anew with blanks and sorted, and sends results and texts as lists of parts."""

    def again(self, message: Json) -> Json:
        message = rewritten(message, sort_keys=True)
        text = message.get("content")
        return {**message, "content": [{"type": "text", "text": text}] if text else None}

    def result(self, call: Json) -> Any:
        return [{"type": "text", "text": "ok"}]


def rewritten(message: Json, **how: Any) -> Json:
    """The message with its calls' arguments written anew."""
    calls = [
        {**call, "function": {**call["function"], "arguments": json.dumps(json.loads(arguments), **how)}}
        for call in message.get("tool_calls") or []
        for arguments in [call["function"]["arguments"]]
    ]
    return {**message, "tool_calls": calls} if calls else message


class Codex(Agent):
    """Responses; sends the output items back as they came."""

    endpoint = "/v1/responses"

    def body(self) -> Json:
        tool = {"type": "function", "name": "edit", "description": DESCRIPTION, "parameters": EDIT}
        schema = {"format": {"type": "json_schema", "name": "edit", "schema": EDIT, "strict": True}}
        how: Json = {"tools": [tool], "tool_choice": "required"} if self.tools else {"text": schema}
        body = {"model": "chat", "instructions": SYSTEM, "input": self.turns, "store": False}
        return {**body, "max_output_tokens": 1000, **how}

    def prompt(self, text: str) -> None:
        self.turns.append(
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
        )

    def take(self, answer: Json) -> int:
        calls = [item for item in answer["output"] if item["type"] == "function_call"]
        self.turns += answer["output"]
        self.turns += [
            {"type": "function_call_output", "call_id": call["call_id"], "output": "ok"} for call in calls
        ]
        return len(calls)

    def usage(self, answer: Json) -> tuple[int, int, int]:
        found = answer["usage"]
        return found["input_tokens"], found["input_tokens_details"]["cached_tokens"], found["output_tokens"]


class ClaudeCode(Agent):
    """Messages; its system prompt begins with a line that changes, and strings become lists of one block."""

    endpoint = "/v1/messages"

    def body(self) -> Json:
        self.number += 1
        billing = f"x-anthropic-billing-header: cc_version=2.1.{self.number};"
        marked = {"cache_control": {"type": "ephemeral"}}
        system = [{"type": "text", "text": billing}, {"type": "text", "text": SYSTEM, **marked}]
        tool = {"name": "edit", "description": DESCRIPTION, "input_schema": EDIT}
        how: Json = {"output_config": {"format": {"type": "json_schema", "schema": EDIT}}}
        if self.tools:
            how = {"tools": [tool], "tool_choice": {"type": "any"}}
        last = self.turns[-1]
        blocks = last["content"] if isinstance(last["content"], list) else [text_block(last["content"])]
        marked_last = {**last, "content": [*blocks[:-1], {**blocks[-1], **marked}]}
        return {
            "model": "chat",
            "system": system,
            "messages": [*self.turns[:-1], marked_last],
            "max_tokens": 1000,
            **how,
        }

    def prompt(self, text: str) -> None:
        if self.turns and self.turns[-1]["role"] == "user":
            self.turns[-1]["content"].append(text_block(text))
        else:
            self.turns.append({"role": "user", "content": text})

    def take(self, answer: Json) -> int:
        calls = [block for block in answer["content"] if block["type"] == "tool_use"]
        self.turns.append({"role": "assistant", "content": answer["content"]})
        results = [{"type": "tool_result", "tool_use_id": call["id"], "content": "ok"} for call in calls]
        if results:
            self.turns.append({"role": "user", "content": results})
        return len(calls)

    def usage(self, answer: Json) -> tuple[int, int, int]:
        found = answer["usage"]
        cached = found["cache_read_input_tokens"]
        return found["input_tokens"] + cached, cached, found["output_tokens"]


def text_block(text: str) -> Json:
    return {"type": "text", "text": text}


@pytest.fixture(scope="module")
def bridge() -> Iterator[BridgeProcess]:
    with TemporaryDirectory(prefix="i", dir="/tmp") as name:
        directory = Path(name)
        model = write_llama(directory / "model.gguf", eager=True, whole=True)
        entry = {"kind": "llamacpp", "name": "chat", "model_path": str(model), "n_ctx": 8192}
        config = directory / "config.json"
        config.write_text(json.dumps({"backends": [{**entry, "chat_template_file": str(TEMPLATE)}]}))
        with BridgeProcess(config=config, threads=1, active_permits=1) as process:
            yield process


@pytest.mark.parametrize("tools", [True, False], ids=["tools", "schema"])
@pytest.mark.parametrize("agent", [Codex, Opencode, Pi, ClaudeCode, QwenCode])
def test_only_what_is_new_is_computed(agent: type[Agent], tools: bool, bridge: BridgeProcess) -> None:
    session = agent(tools)
    session.prompt("Mend the parser.")
    held = 0
    for turn in range(4):
        body = {**session.body(), "temperature": 1.0, "seed": turn}
        response = web.post(bridge.base + session.endpoint, json=body)
        assert response.status_code == 200, response.text
        answer = response.json()
        prompt, cached, completion = session.usage(answer)
        if turn > 0:
            assert prompt - cached <= 1.02 * (prompt - held) + 2
        held = prompt + completion
        calls = session.take(answer)
        assert (calls > 0) == tools
        if turn == 1 or not tools:
            session.prompt(f"And now line {turn}.")
