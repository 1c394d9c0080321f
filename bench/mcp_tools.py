"""Checks the tools of published MCP servers: inferd must accept each tool, or refuse it with its name and the
path of the fault.

    python -m bench.mcp_tools --model FILE.gguf [PACKAGE …]

Installs the newest version of each server from npm into a temporary folder, requests its tools over its
standard input and output, and passes their schemas to the daemon's check of a request. Nothing is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from inferd.engine.local import _llama
from inferd.engine.local.schema.guides import Guides
from inferd.engine.requests import Tool
from inferd.errors import InvalidRequest

# The package of each server, its command and its arguments; {} is an empty folder.
SERVERS: list[tuple[str, str, list[str]]] = [
    ("@modelcontextprotocol/server-everything", "mcp-server-everything", []),
    ("@modelcontextprotocol/server-filesystem", "mcp-server-filesystem", ["{}"]),
    ("@modelcontextprotocol/server-github", "mcp-server-github", []),
    ("@modelcontextprotocol/server-memory", "mcp-server-memory", []),
    ("@modelcontextprotocol/server-sequential-thinking", "mcp-server-sequential-thinking", []),
    ("@notionhq/notion-mcp-server", "notion-mcp-server", []),
    ("@playwright/mcp", "playwright-mcp", []),
    ("@upstash/context7-mcp", "context7-mcp", []),
    ("chrome-devtools-mcp", "chrome-devtools-mcp", []),
    ("tavily-mcp", "tavily-mcp", []),
]
SECONDS = 60
ENVIRONMENT = {"TAVILY_API_KEY": "none", "NOTION_TOKEN": "none", "GITHUB_PERSONAL_ACCESS_TOKEN": "none"}


def ask(command: list[str], folder: Path) -> list[dict[str, Any]]:
    """The tools that a server lists."""
    environment = {**os.environ, **ENVIRONMENT, "HOME": str(folder)}
    server = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    alarm = threading.Timer(SECONDS, server.kill)
    alarm.start()
    assert server.stdin is not None
    assert server.stdout is not None
    tools: list[dict[str, Any]] = []
    try:
        hello = {
            "protocolVersion": "2025-06-18",
            "capabilities": {},
            "clientInfo": {"name": "bench", "version": "1"},
        }
        say(server.stdin, 1, "initialize", hello)
        result(server.stdout, 1)
        say(server.stdin, None, "notifications/initialized", {})
        cursor: dict[str, Any] = {}
        while True:
            say(server.stdin, 2, "tools/list", cursor)
            page = result(server.stdout, 2)
            tools += page["tools"]
            if not page.get("nextCursor"):
                return tools
            cursor = {"cursor": page["nextCursor"]}
    finally:
        alarm.cancel()
        server.kill()
        server.wait()


def say(stream: Any, request_id: int | None, method: str, params: dict[str, Any]) -> None:
    message = {"jsonrpc": "2.0", "method": method, "params": params}
    if request_id is not None:
        message["id"] = request_id
    stream.write(json.dumps(message) + "\n")
    stream.flush()


def result(stream: Any, request_id: int) -> dict[str, Any]:
    for line in stream:
        message = json.loads(line)
        if message.get("id") == request_id and "method" not in message:
            found: dict[str, Any] = message["result"]
            return found
    raise EOFError("the server has ended")


def check(guides: Guides, tools: list[dict[str, Any]]) -> tuple[int, list[str], list[str]]:
    """The number of fully enforced tools; the tools that are checked at the end or refused, by name and
    path."""
    whole = 0
    at_end: dict[str, list[str]] = {}
    refused = []
    for tool in tools:
        schema = json.dumps(tool["inputSchema"])
        try:
            held = guides.tool(Tool(tool["name"], tool.get("description", ""), schema))
        except InvalidRequest as error:
            refused.append(f"{tool['name']}: {error}")
            continue
        whole += not held.dropped
        for pointer in held.dropped:
            at_end.setdefault(pointer, []).append(tool["name"])
    dropped = [
        f"`{names[0]}#{pointer}`" if len(names) == 1 else f"`#{pointer}` of {len(names)} tools"
        for pointer, names in at_end.items()
    ]
    return whole, dropped, refused


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("packages", nargs="*", help="the servers to test; default: all")
    args = parser.parse_args()
    path = args.model
    fd = os.open(path, os.O_RDONLY)
    model = _llama.Model(fd, path=str(path), n_gpu_layers=0, report=lambda fraction: True)
    guides = Guides(model)
    failed = 0
    print("| server | tools | enforced in all | checked at the end | refused |\n|---|---|---|---|---|")
    for package, name, arguments in SERVERS:
        if args.packages and package not in args.packages:
            continue
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            install = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", package]
            subprocess.run([*install, "--prefix", made], check=True, stdout=subprocess.DEVNULL)
            version = json.loads((folder / "node_modules" / package / "package.json").read_text())["version"]
            command = [str(folder / "node_modules/.bin" / name), *(each.format(made) for each in arguments)]
            try:
                tools = ask(command, folder)
            except (EOFError, KeyError, OSError, json.JSONDecodeError) as error:
                print(f"| `{package}` {version} | not listed: {error} | | | |", flush=True)
                failed += 1
                continue
        whole, at_end, refused = check(guides, tools)
        cells = (f"`{package}` {version}", len(tools), whole, ", ".join(at_end), "; ".join(refused))
        print("|", " | ".join(map(str, cells)), "|", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
