"""Computes the beginning of a conversation's next prompt while nothing else runs.

Many templates omit the thinking of earlier turns once the user speaks again. Then the next prompt equals the
tokens in the slot only up to the first omitted thought, and the model would compute the rest while the client
waits. But inferd knows the next prompt up to the user's text as soon as the answer has ended.

The computation begins ``PAUSE_SECS`` after the answer, unless the machine runs on battery. The computation is
limited to a number of tokens. The next request stops the computation. The tokens that were computed stay in
the cache.

An ``Ahead`` belongs to one model and runs on the event loop.
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
"""The time after an answer before the computation begins. A request in that time prevents it."""

LEAST_TOKENS = 64
"""Fewer tokens than these are not computed ahead, because a client would not notice the time."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A request whose answer was ended by the model, and not by a limit or a cancellation. ``now`` is the
    time that the template got. ``scope`` and ``adapter`` are those of the request's engine job."""

    request: GenerateRequest
    prompt: _llama.Prompt
    now: int
    scope: bytes
    adapter: int


class Ahead:
    """Computes next prompts in advance, for a template that omits earlier thinking.

    ``most`` is the maximum number of tokens to compute after one answer; 0 disables the computation.
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
        """Begins to compute the next prompt after the answer ``turn``.

        Does nothing if the conversation has no thinking that the next prompt could omit, or if ``turn`` has
        tool calls.
        """
        thought = bool(turn.thinking) or any(message.thinking for message in ended.request.messages)
        if self._most == 0 or turn.calls or not thought or not ended.request.cache:
            return
        self.stop()
        self._computed = None
        self._work = asyncio.get_running_loop().create_task(self._run(ended, turn))

    def stop(self) -> None:
        """Stops the computation, because a request has arrived."""
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
        """Collects the job if it has ended. The backend calls this when the engine has new output."""
        if self._job and self._engine.collect(self._job)[1] is not None:
            self._job = 0
            if self._computed is not None and not self._computed.done():
                self._computed.set_result(None)

    async def computed(self) -> bool:
        """Waits until the computation has ended. Returns whether it computed anything."""
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
        """Returns the known beginning of the next prompt. Returns ``None`` if the prompt cannot be rendered,
        contains media, or has fewer than ``LEAST_TOKENS`` tokens left to compute.

        Runs in a thread of the pool.
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
