"""inferd: one warm model for every program on a machine.

The tree, in the order in which a request walks through it: ``fastpath`` cuts lines and encodes frames;
``wire`` knows what the bytes mean and ``serve`` moves them; ``engine`` makes the text; ``store`` brings and
verifies models; ``daemon`` puts them together; ``client`` and ``cli`` are the other end of the socket.

For programs there are the client's names and the errors that it raises, each loaded when it is used, so that
``import inferd`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inferd.client import (
        AdminClient,
        Answer,
        AsyncAdminClient,
        AsyncAnswer,
        AsyncChat,
        AsyncClient,
        AsyncGeneration,
        Attachment,
        Chat,
        Client,
        Done,
        Embeddings,
        Generation,
        MessageDone,
        Ranked,
        Ranking,
        Snapshot,
        Status,
        Text,
        Thinking,
        Token,
        ToolUse,
        async_dial_and_wait_ready,
        dial_and_wait_ready,
        tool_result,
    )
    from inferd.errors import (
        AnswerCancelled,
        BootFailed,
        ConnectionLost,
        DaemonUnreachable,
        DaemonUntrusted,
        InferdError,
        KeyRefused,
        NotPermitted,
        ProtocolError,
        RequestFailed,
        SurfaceNotServed,
        UsageError,
    )

__version__ = "0.9.0"

_ERRORS = (
    "AnswerCancelled",
    "BootFailed",
    "ConnectionLost",
    "DaemonUnreachable",
    "DaemonUntrusted",
    "InferdError",
    "KeyRefused",
    "NotPermitted",
    "ProtocolError",
    "RequestFailed",
    "SurfaceNotServed",
    "UsageError",
)

__all__ = [
    "AdminClient",
    "Answer",
    "AnswerCancelled",
    "AsyncAdminClient",
    "AsyncAnswer",
    "AsyncChat",
    "AsyncClient",
    "AsyncGeneration",
    "Attachment",
    "BootFailed",
    "Chat",
    "Client",
    "ConnectionLost",
    "DaemonUnreachable",
    "DaemonUntrusted",
    "Done",
    "Embeddings",
    "Generation",
    "InferdError",
    "KeyRefused",
    "MessageDone",
    "NotPermitted",
    "ProtocolError",
    "Ranked",
    "Ranking",
    "RequestFailed",
    "Snapshot",
    "Status",
    "SurfaceNotServed",
    "Text",
    "Thinking",
    "Token",
    "ToolUse",
    "UsageError",
    "__version__",
    "async_dial_and_wait_ready",
    "dial_and_wait_ready",
    "tool_result",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module("inferd.errors" if name in _ERRORS else "inferd.client"), name)
    globals()[name] = value
    return value
