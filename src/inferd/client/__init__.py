"""Clients of the daemon: ``Client`` for its surfaces, ``AdminClient`` for its state.

Loads nothing of the engine.
"""

from inferd.client.admin import AdminClient, Snapshot
from inferd.client.blocking import Client, dial_and_wait_ready
from inferd.client.messages import Answer, Attachment, MessageDone, Text, Thinking, ToolUse
from inferd.client.text import Done, Generation, Token
from inferd.client.vectors import Embeddings, Ranked, Ranking

__all__ = [
    "AdminClient",
    "Answer",
    "Attachment",
    "Client",
    "Done",
    "Embeddings",
    "Generation",
    "MessageDone",
    "Ranked",
    "Ranking",
    "Snapshot",
    "Text",
    "Thinking",
    "Token",
    "ToolUse",
    "dial_and_wait_ready",
]
