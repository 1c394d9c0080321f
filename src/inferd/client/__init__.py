"""The clients of the daemon: ``Client`` sends requests, ``AdminClient`` reads the daemon's state. Each of the
two has a version for asyncio.

This package never imports the engine, and imports each of its classes and functions on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inferd.client.address import Address, Surface
    from inferd.client.admin import AdminClient, Snapshot, Status
    from inferd.client.async_admin import AsyncAdminClient
    from inferd.client.asynchronous import (
        AsyncAnswer,
        AsyncChat,
        AsyncClient,
        AsyncGeneration,
        async_dial_and_wait_ready,
    )
    from inferd.client.blocking import Answer, Chat, Client, Generation, dial_and_wait_ready
    from inferd.client.messages import Attachment, MessageDone, Text, Thinking, ToolUse, tool_result
    from inferd.client.text import Done, Token
    from inferd.client.vectors import Embeddings, Ranked, Ranking

__all__ = [
    "Address",
    "AdminClient",
    "Answer",
    "AsyncAdminClient",
    "AsyncAnswer",
    "AsyncChat",
    "AsyncClient",
    "AsyncGeneration",
    "Attachment",
    "Chat",
    "Client",
    "Done",
    "Embeddings",
    "Generation",
    "MessageDone",
    "Ranked",
    "Ranking",
    "Snapshot",
    "Status",
    "Surface",
    "Text",
    "Thinking",
    "Token",
    "ToolUse",
    "async_dial_and_wait_ready",
    "dial_and_wait_ready",
    "tool_result",
]

_NAMES = {
    "address": "Address Surface",
    "admin": "AdminClient Snapshot Status",
    "async_admin": "AsyncAdminClient",
    "asynchronous": "AsyncAnswer AsyncChat AsyncClient AsyncGeneration async_dial_and_wait_ready",
    "blocking": "Answer Chat Client Generation dial_and_wait_ready",
    "messages": "Attachment MessageDone Text Thinking ToolUse tool_result",
    "text": "Done Token",
    "vectors": "Embeddings Ranked Ranking",
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value
