"""A daemon whose scripted backend reads a file, edits it, and reports that it is done.

The script calls the tools that the agent offers, whatever their names: a tool that reads and a tool that
edits, or else a shell. An agent without tools, such as aider, gets the whole corrected file as text.

The arguments of the program are the path of the file, the old text, the new text, the seconds of silence
before the first answer of a conversation, and a file for a record of all requests.
"""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from inferd.config import sources
from inferd.config.entries import BackendEntry
from inferd.config.settings import Settings
from inferd.daemon import start
from inferd.engine.backend import Capabilities, Stream
from inferd.engine.events import ToolUse
from inferd.engine.local.child import messages
from inferd.engine.mock import Mock, MockStream
from inferd.engine.requests import GenerateRequest, Tool, ToolCall

WINDOW = 131_072
DONE = "The file is corrected."
READS = ("read", "read_file", "readfile")
EDITS = ("edit", "edit_file", "replace")
SHELLS = ("exec_command", "shell", "shell_command", "local_shell", "bash")


class Scripted(Mock):
    """Chooses its answer by the conversation so far. It keeps no state between requests."""

    def __init__(self, path: str, old: str, new: str, silence: float, record: str | None) -> None:
        able = Capabilities(v2=True, tools=True, thinking=True, n_ctx=WINDOW)
        super().__init__(capabilities=able)
        self._path, self._old, self._new = path, old, new
        self._silence = silence
        self._record = None if record is None else Path(record)

    async def generate(self, request: GenerateRequest) -> Stream:
        if self._record is not None:
            body, _ = messages.pack_generate(request)
            with self._record.open("ab") as file:
                file.write(len(body).to_bytes(4, "little") + body)
        if all(message.role != "assistant" for message in request.messages):
            await asyncio.sleep(self._silence)
        scripted = Mock(self.name, tape=self._tape(request))
        return MockStream(scripted, request)

    def _tape(self, request: GenerateRequest) -> list[str | ToolUse]:
        if not request.tools:
            return [f"{Path(self._path).name}\n```\n{self._new}\n```\n"]
        results = sum(message.role == "tool" for message in request.messages)
        calls = self._calls({tool.name.lower(): tool for tool in request.tools})
        if results >= len(calls):
            return [DONE]
        name, arguments = calls[results]
        return [ToolUse(ToolCall(f"call-{results}", name, json.dumps(arguments)))]

    def _calls(self, tools: dict[str, Tool]) -> list[tuple[str, dict[str, Any]]]:
        reads = next((tools[name] for name in READS if name in tools), None)
        edits = next((tools[name] for name in EDITS if name in tools), None)
        shell = next((tools[name] for name in SHELLS if name in tools), None)
        if edits is not None:
            return [(tool.name, self._filled(tool)) for tool in (reads, edits) if tool is not None]
        if shell is None:
            return []
        script = f"s/{self._old}/{self._new}/"
        command = ["sed", "-i", script, self._path]
        key = next(key for key in _properties(shell) if key in ("cmd", "command"))
        is_list = _properties(shell)[key].get("type") == "array"
        return [(shell.name, {key: command if is_list else shlex.join(command)})]

    def _filled(self, tool: Tool) -> dict[str, Any]:
        """The arguments of a call, chosen by the names of the tool's fields."""
        found: dict[str, Any] = {}
        for key in _properties(tool):
            small = key.lower()
            if "path" in small:
                found[key] = self._path
            elif small.startswith("old"):
                found[key] = self._old
            elif small.startswith("new"):
                found[key] = self._new
            elif small == "edits":
                found[key] = [{"oldText": self._old, "newText": self._new}]
        return found


def _properties(tool: Tool) -> dict[str, Any]:
    properties: dict[str, Any] = json.loads(tool.schema).get("properties", {})
    return properties


def main() -> int:
    path, old, new, silence, *record = sys.argv[1:]

    def read() -> Any:
        return sources.read({})

    def build(settings: Settings, entry: BackendEntry, *more: Any) -> Mock:
        return Scripted(path, old, new, float(silence), record[0] if record else None)

    return start.run(read, build)


if __name__ == "__main__":
    sys.exit(main())
