"""``AsyncClient`` with the methods of the blocking client, so that one test covers both clients.

Each blocking call of a test runs the asyncio client on an event loop. Both clients must behave alike.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from inferd import (
    AdminClient,
    AsyncAdminClient,
    AsyncClient,
    Client,
    async_dial_and_wait_ready,
    dial_and_wait_ready,
)


class BlockingReply(Iterator[Any]):
    def __init__(self, loop: asyncio.AbstractEventLoop, reply: Any) -> None:
        self._loop = loop
        self._reply = reply
        loop.run_until_complete(reply.__aenter__())

    def __next__(self) -> Any:
        try:
            return self._loop.run_until_complete(anext(self._reply))
        except StopAsyncIteration:
            raise StopIteration from None

    def __getattr__(self, name: str) -> Any:
        return lambda: self._loop.run_until_complete(getattr(self._reply, name)())

    def close(self) -> None:
        self._loop.run_until_complete(self._reply.aclose())

    def __enter__(self) -> BlockingReply:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class BlockingClient:
    def __init__(self, loop: asyncio.AbstractEventLoop, client: AsyncClient) -> None:
        self._loop = loop
        self._client = client
        self.address = client.address

    def generate(self, *arguments: Any, **options: Any) -> BlockingReply:
        return BlockingReply(self._loop, self._client.generate(*arguments, **options))

    def messages(self, *arguments: Any, **options: Any) -> BlockingReply:
        return BlockingReply(self._loop, self._client.messages(*arguments, **options))

    def chat(self, *arguments: Any, **options: Any) -> BlockingChat:
        return BlockingChat(self._loop, self._client.chat(*arguments, **options))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)
        return lambda *args, **options: self._loop.run_until_complete(method(*args, **options))

    def close(self) -> None:
        self._loop.run_until_complete(self._client.aclose())

    def __enter__(self) -> BlockingClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class BlockingChat:
    def __init__(self, loop: asyncio.AbstractEventLoop, chat: Any) -> None:
        self._loop = loop
        self._chat = chat

    def ask(self, content: Any) -> BlockingReply:
        return BlockingReply(self._loop, self._chat.ask(content))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._chat, name)


class BlockingAdminClient:
    def __init__(self, loop: asyncio.AbstractEventLoop, admin: AsyncAdminClient) -> None:
        self._loop = loop
        self._admin = admin
        loop.run_until_complete(admin.__aenter__())

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._admin, name)
        return lambda *args: self._loop.run_until_complete(method(*args))

    def __enter__(self) -> BlockingAdminClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.run_until_complete(self._admin.aclose())


class Asyncio:
    """The blocking API of ``inferd``, implemented with the asyncio client."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def client(self, *arguments: Any, **options: Any) -> BlockingClient:
        return BlockingClient(self._loop, AsyncClient(*arguments, **{"id_prefix": "c", **options}))

    def admin(self, *arguments: Any, **options: Any) -> BlockingAdminClient:
        return BlockingAdminClient(self._loop, AsyncAdminClient(*arguments, **options))

    def dial(self, address: Path, *, sleep: Callable[[float], None], **options: Any) -> BlockingClient:
        async def nap(seconds: float) -> None:
            sleep(seconds)

        dialling = async_dial_and_wait_ready(address, sleep=nap, **options)
        return BlockingClient(self._loop, self._loop.run_until_complete(dialling))


class Blocking:
    client = staticmethod(functools.partial(Client, id_prefix="c"))
    admin = AdminClient
    dial = staticmethod(dial_and_wait_ready)
