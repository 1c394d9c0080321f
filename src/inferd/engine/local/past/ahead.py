"""Computes the beginning of a conversation's next prompt while nothing else runs.

Many templates leave out the thinking of earlier turns once the user speaks again. Then all tokens after the
first thought that is left out differ from those in the slot, and the next request would compute them while
its client waits. But as soon as the answer has ended, inferd knows the prompt of the next request up to the
text of the user.

The work begins a moment after the last request has ended, not on battery, and is bounded. The next request
ends it; what is computed by then stays in the cache.

Belongs to one model and to the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import takewhile
from operator import eq

from msgspec.structs import replace

from inferd import log
from inferd.engine.local import _llama
from inferd.engine.local.conversation import Family, Past, prepare
from inferd.engine.local.past.answers import Answers, Turn
from inferd.engine.local.power import Supplies
from inferd.engine.local.suggested import DEFAULTS
from inferd.engine.requests import GenerateRequest, Message
from inferd.errors import InferdError

_log = log.get("llamacpp")

PAUSE_SECS = 0.25
"""The time without a request before the work begins."""

LEAST_TOKENS = 64
"""Fewer tokens take no time that a client would notice."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A request whose answer has ended by itself: its prompt, the time that its template saw, and the scope
    and adapter of its engine job."""

    request: GenerateRequest
    prompt: _llama.Prompt
    now: int
    scope: bytes
    adapter: int


class Ahead:
    """Computes ahead for a template that leaves out earlier thinking.

    ``most`` is the maximum number of tokens computed after one answer; with 0 nothing is computed.
    """

    def __init__(
        self,
        family: Family,
        engine: _llama.Engine,
        answers: Answers,
        pool: Executor,
        supplies: Callable[[], Supplies],
        most: int,
    ) -> None:
        self._family = family
        self._engine = engine
        self._answers = answers
        self._pool = pool
        self._supplies = supplies
        self._most = most
        self._work: asyncio.Task[None] | None = None
        self._cancellation: _llama.Cancellation | None = None
        self._job = 0
        self._computed: asyncio.Future[None] | None = None

    def answered(self, ended: Ended, turn: Turn) -> None:
        """Begins the work after the answer ``turn`` has ended.

        Does nothing unless the next prompt may leave out a thought.
        """
        thought = bool(turn.thinking) or any(message.thinking for message in ended.request.messages)
        if self._most == 0 or turn.calls or not thought or not ended.request.cache:
            return
        self.stop()
        self._computed = None
        self._work = asyncio.get_running_loop().create_task(self._run(ended, turn))

    def stop(self) -> None:
        """Ends the work, because a request has come."""
        if self._work is not None:
            self._work.cancel()
            self._work = None
        if self._cancellation is not None:
            self._cancellation.cancel()
            self._cancellation = None
        if self._job:
            self._engine.cancel(self._job, True)
            self._job = 0

    def wake(self) -> None:
        """Collects the job if it has ended; called when the engine has news."""
        if self._job and self._engine.collect(self._job)[1] is not None:
            self._job = 0
            if self._computed is not None and not self._computed.done():
                self._computed.set_result(None)

    async def computed(self) -> bool:
        """Waits until the work has ended; returns whether any was running."""
        if self._work is None:
            return False
        await asyncio.wait((self._work,))
        return not self._work.cancelled() and self._computed is not None

    async def _run(self, ended: Ended, turn: Turn) -> None:
        await asyncio.sleep(PAUSE_SECS)
        if self._supplies().on_battery():
            return
        cancellation = self._cancellation = _llama.Cancellation()
        loop = asyncio.get_running_loop()
        prompt = await loop.run_in_executor(self._pool, self._next_prompt, ended, turn, cancellation)
        self._cancellation = None
        if prompt is None:
            return
        self._computed = loop.create_future()
        self._job = self._engine.submit(
            prompt,
            max_tokens=1,
            sampling=replace(DEFAULTS, temperature=0.0, seed=0),
            grammar=b"",
            stops=[],
            frame=None,
            scope=ended.scope,
            session=ended.request.session.encode(),
            adapter=ended.adapter,
        )
        await self._computed
        _log.debug("prompt computed ahead", tokens=len(prompt))

    def _next_prompt(
        self, ended: Ended, turn: Turn, cancellation: _llama.Cancellation
    ) -> _llama.Prompt | None:
        """The known beginning of the next prompt; ``None`` if nearly all of it is computed already.

        Runs in the pool.
        """
        answer = Message("assistant", "".join(turn.text), thinking="".join(turn.thinking))
        messages = (*ended.request.messages, answer, Message("user", "Next."))
        request = replace(ended.request, messages=messages)
        try:
            with cancellation:
                prompt = prepare(
                    self._family, request, Past(self._answers.of(request, thoughts=False), ended.now)
                ).prompt
        except InferdError:
            return None
        known, tokens = ended.prompt.tokens, prompt.tokens
        end = prompt.last_turn
        same = sum(takewhile(bool, map(eq, known, tokens)))
        end = min(end, same + self._most, self._engine.n_ctx)
        if end - same < LEAST_TOKENS or prompt.media:
            return None
        return prompt.head(end)
