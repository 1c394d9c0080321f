"""Clients of the daemon: ``Client`` for text, ``AdminClient`` for its state. Loads nothing of the engine."""

from inferd.client.admin import AdminClient, Snapshot
from inferd.client.blocking import Client, Done, Generation, Token, dial_and_wait_ready

__all__ = ["AdminClient", "Client", "Done", "Generation", "Snapshot", "Token", "dial_and_wait_ready"]
