"""inferd: one warm model for every program on a machine.

The packages: ``fastpath`` splits lines and encodes frames. ``wire`` defines the formats of requests and
answers. ``serve`` handles connections and queues. ``engine`` generates the text. ``store`` downloads and
verifies models. ``daemon`` assembles these parts. ``client`` connects to the daemon, and ``cli`` has the
commands.

The public names are the classes of the client and the errors that they raise. Each name is imported on first
use, so that ``import inferd`` is fast.
"""

from __future__ import annotations

TYPE_CHECKING = False  # replaces `typing.TYPE_CHECKING`, because importing typing takes time
if TYPE_CHECKING:
    from typing import Any

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
    from importlib import import_module

    value = getattr(import_module("inferd.errors" if name in _ERRORS else "inferd.client"), name)
    globals()[name] = value
    return value
