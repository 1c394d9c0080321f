"""A model in a process of its own: what the supervisor guarantees if the process dies, hangs or sends false
messages."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from inferd.engine.backend import Stream
from inferd.engine.events import Done, Frames
from inferd.engine.local.child import process, spawned, supervisor
from inferd.engine.local.child.messages import Load
from inferd.engine.local.child.process import Patience
from inferd.engine.local.child.supervisor import HostedModel
from inferd.engine.requests import EmbedRequest, FrameTemplate, GenerateRequest, Message, RankRequest
from inferd.errors import (
    EmbedUnsupported,
    EngineEnded,
    InvalidRequest,
    ModelError,
    NotReady,
    RerankUnsupported,
    Unavailable,
)
from tests.daemon_process import is_gone
from tests.demo_model import demo_model
from tests.in_process import until
from tests.requests import generate_request
from tests.tiny_bert import write_bert
from tests.tiny_llama import random_llama

FRAME = FrameTemplate(b"<", b">\n")


@asynccontextmanager
async def hosted(
    path: Path | None = None,
    *,
    check_files: Callable[[], None] = lambda: None,
    patience: Patience | None = None,
    progress: Callable[[str, dict[str, object]], None] = lambda phase, details: None,
    loading: Callable[[], AbstractContextManager[spawned.Spawned | None]] = nullcontext,
    **options: object,
) -> AsyncIterator[HostedModel]:
    where = random_llama() if path is None else path
    wanted = {"n_ctx": 4096, "n_parallel": 1, "threads": 1, **options}
    load = Load(name="test", model="test", path=str(where), **wanted)  # type: ignore[arg-type]
    model = HostedModel(load, [os.open(where, os.O_RDONLY)], progress, check_files, patience, loading=loading)
    try:
        await model.start()
        yield model
    finally:
        await model.close()


def ask(text: str = "Count.", max_tokens: int = 3000) -> GenerateRequest:
    """An answer that goes on while the test does something, however slow the test's own process is."""
    grammar = "root ::= [a-z] root"  # so that no answer ends by itself
    return generate_request(
        messages=(Message("user", text),),
        max_tokens=max_tokens,
        grammar=grammar,
        temperature=0.0,
        frame=FRAME,
    )


def pid_of(model: HostedModel) -> int:
    state = model.engine_state()
    assert state is not None
    return state.pid


def restarts_of(model: HostedModel) -> int:
    state = model.engine_state()
    assert state is not None
    return state.restarts


async def begin(model: HostedModel, request: GenerateRequest) -> Stream:
    """A stream of a running request, whose first frames have arrived."""
    stream = await model.generate(request)
    assert isinstance(await anext(stream), Frames)
    return stream


async def finish(stream: Stream) -> Done:
    async for event in stream:
        if isinstance(event, Done):
            return event
    raise AssertionError("no end")


async def test_it_answers_and_ends_with_its_counts() -> None:
    async with hosted() as model:
        done = await finish(await model.generate(ask(max_tokens=3)))
        assert (done.stop_reason, done.usage.completion_tokens) == ("length", 3)
        assert done.usage.prompt_tokens > 0
        assert model.capabilities().v2
        assert pid_of(model) != os.getpid()


async def test_a_request_that_cannot_be_served_is_refused_with_the_reason() -> None:
    async with hosted() as model:
        with pytest.raises(InvalidRequest, match=r"tokens long|characters"):
            await finish(await model.generate(ask("word " * 100_000)))
        assert (await finish(await model.generate(ask(max_tokens=2)))).stop_reason == "length"


async def test_vectors_and_scores(tmp_path: Path) -> None:
    async with hosted(write_bert(tmp_path / "bert"), embed=True) as model:
        made = await model.embed(EmbedRequest(inputs=("hello", "world")))
        assert len(made.vectors) == 2 * 4 * made.width
        assert made.input_tokens > 0
        with pytest.raises(InvalidRequest, match="dimensions"):
            await model.embed(EmbedRequest(inputs=("hello",), dimensions=made.width + 1))
        with pytest.raises(RerankUnsupported):
            await model.rank(RankRequest("q", ("d",)))


async def test_scores(tmp_path: Path) -> None:
    import gguf

    ranker = write_bert(tmp_path / "ranker", pooling=gguf.PoolingType.RANK)
    async with hosted(ranker, embed=True, embed_pooling="rank") as model:
        made = await model.rank(RankRequest("query", ("one", "two")))
        assert len(made.scores) == 2
        with pytest.raises(EmbedUnsupported):
            await model.embed(EmbedRequest(inputs=("hello",)))


async def test_a_file_that_is_not_a_model_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ModelError, match="cannot load"):
        async with hosted(broken):
            pass


async def test_a_load_can_be_cancelled() -> None:
    begun = asyncio.Event()

    async def load() -> None:
        async with hosted(progress=lambda phase, details: begun.set()):
            raise AssertionError("it was given up before")

    task = asyncio.create_task(load())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# When the process dies.


async def test_running_requests_end_retryably_and_waiting_ones_are_served() -> None:
    async with hosted() as model:
        running = await begin(model, ask())
        waiting = asyncio.create_task(finish(await model.generate(ask("Wait.", max_tokens=2))))
        first = pid_of(model)
        os.kill(first, signal.SIGSEGV)
        with pytest.raises(EngineEnded, match=r"SIGSEGV.*send the request again") as caught:
            await finish(running)
        assert caught.value.retryable
        assert caught.value.code == "backend_unavailable"
        assert not caught.value.counts
        assert (await waiting).stop_reason == "length"
        assert pid_of(model) != first
        assert restarts_of(model) == 1


async def test_a_request_between_two_processes_waits_for_the_second() -> None:
    async with hosted() as model:
        os.kill(pid_of(model), signal.SIGKILL)
        await until(lambda: restarts_of(model) == 1)
        assert model.ready()
        assert (await finish(await model.generate(ask(max_tokens=2)))).stop_reason == "length"


async def test_a_request_can_be_cancelled_between_two_processes() -> None:
    async with hosted() as model:
        os.kill(pid_of(model), signal.SIGKILL)
        await until(lambda: restarts_of(model) == 1)
        stream = await model.generate(ask())
        end = asyncio.create_task(finish(stream))
        await asyncio.sleep(0)
        stream.cancel()
        assert (await end).stop_reason == "cancelled"


async def test_a_signal_to_stop_is_for_the_daemon_alone() -> None:
    async with hosted() as model:
        stream = await begin(model, ask(max_tokens=200))
        for number in (signal.SIGINT, signal.SIGTERM):  # a terminal and systemd send them to all processes
            os.kill(pid_of(model), number)
        assert (await finish(stream)).stop_reason == "length"
        assert restarts_of(model) == 0


async def test_the_process_is_reaped() -> None:
    async with hosted() as model:
        first = pid_of(model)
        os.kill(first, signal.SIGKILL)
        await until(lambda: pid_of(model) not in (0, first))
        assert is_gone(first)


async def test_a_request_that_kills_alone_twice_is_refused_and_no_other() -> None:
    async with hosted() as model:
        for _ in range(2):
            stream = await begin(model, ask("Kill."))
            os.kill(pid_of(model), signal.SIGSEGV)
            with pytest.raises(EngineEnded):
                await finish(stream)
        with pytest.raises(InvalidRequest, match="refused for ten minutes"):
            await model.generate(ask("Kill."))
        assert (await finish(await model.generate(ask("Live.", max_tokens=2)))).stop_reason == "length"


async def test_the_request_that_kills_is_convicted_and_its_five_neighbours_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervisor, "BACK_OFF_SECS", (0.0,))
    neighbours = [ask(f"Neighbour {n}.") for n in range(5)]
    async with hosted(n_parallel=6) as model:
        for _ in range(2):
            streams = [await begin(model, request) for request in (ask("Kill."), *neighbours)]
            os.kill(pid_of(model), signal.SIGSEGV)
            for stream in streams:
                with pytest.raises(EngineEnded):
                    await finish(stream)
        # All six are suspects, so each runs alone.
        killer = await begin(model, ask("Kill."))
        os.kill(pid_of(model), signal.SIGSEGV)
        with pytest.raises(EngineEnded):
            await finish(killer)
        with pytest.raises(InvalidRequest, match="refused for ten minutes"):
            await model.generate(ask("Kill."))
        for request in neighbours:
            stream = await begin(model, request)
            stream.cancel()
            assert (await finish(stream)).stop_reason == "cancelled"


async def test_a_suspect_runs_alone() -> None:
    async with hosted(n_parallel=2) as model:
        for _ in range(2):
            beside = await begin(model, ask("Beside."))
            suspect = await begin(model, ask("Suspect."))
            os.kill(pid_of(model), signal.SIGSEGV)
            for stream in (beside, suspect):
                with pytest.raises(EngineEnded):
                    await finish(stream)
        other = await begin(model, ask("Other.", max_tokens=30))
        suspect = await model.generate(ask("Suspect.", max_tokens=2))
        alone = asyncio.create_task(finish(suspect))
        await asyncio.sleep(0)
        assert not alone.done()
        other.cancel()
        await finish(other)
        assert (await alone).stop_reason == "length"


async def test_a_crash_loop_is_reported_and_fails_waiting_requests() -> None:
    told = asyncio.Event()
    async with hosted() as model:
        model.on_crash_loop(told.set)
        for deaths in range(1, 4):
            await until(lambda: pid_of(model) != 0 and model._jobs._process is not None)
            last = pid_of(model)
            os.kill(last, signal.SIGKILL)
            await until(lambda last=last: pid_of(model) != last)  # type: ignore[misc]
            assert told.is_set() == (deaths == 3)


async def test_each_restart_waits_longer_until_a_process_was_healthy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[int] = []

    class BackOff(tuple[float, ...]):
        __slots__ = ()

        def __getitem__(self, number: Any) -> Any:
            waits.append(number)
            return 0.0

    assert supervisor.BACK_OFF_SECS == (0.0, 1.0, 5.0, 30.0)
    monkeypatch.setattr(supervisor, "BACK_OFF_SECS", BackOff(supervisor.BACK_OFF_SECS))
    async with hosted() as model:
        for healthy_secs in (60.0, 60.0, 60.0, 60.0, 60.0, 0.0):
            monkeypatch.setattr(supervisor, "HEALTHY_SECS", healthy_secs)
            await until(lambda: model._serving is not None)
            os.kill(pid_of(model), signal.SIGKILL)
            await until(lambda: model._serving is None)
        await until(lambda: model._serving is not None)
    assert waits == [0, 1, 2, 3, 3, 0]


async def test_a_file_that_was_changed_is_not_loaded_again() -> None:
    def changed() -> None:
        raise ModelError("the model file was changed")

    async with hosted(check_files=changed) as model:
        os.kill(pid_of(model), signal.SIGKILL)
        await until(lambda: not model.ready())
        assert not model.alive()
        state = model.engine_state()
        assert state is not None
        assert state.problem == "the model file was changed"
        with pytest.raises(NotReady):
            await model.generate(ask())


async def test_a_restart_loads_the_descriptor_not_the_path(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(random_llama().read_bytes())
    async with hosted(path) as model:
        path.unlink()
        path.write_bytes(b"something else")
        os.kill(pid_of(model), signal.SIGKILL)
        await until(lambda: restarts_of(model) == 1)
        assert (await finish(await model.generate(ask(max_tokens=2)))).stop_reason == "length"


async def test_the_share_of_the_prompt_that_was_computed_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_BUSY_BEAT_SECS", 0.002)
    async with hosted(n_ctx=2048, n_batch=16) as model:
        seen: list[float | None] = []
        for number in range(100):  # until a pulse comes within a prompt
            stream = await model.generate(ask(f"{number} " + "one two " * 700, max_tokens=1))
            answer = asyncio.create_task(finish(stream))
            while not answer.done():
                seen.append(stream.prompt_read())
                await asyncio.sleep(0)
            if any(share is not None and 0 < share < 1 for share in seen):
                break
        else:
            pytest.fail(f"no share of a prompt was seen: {set(seen)}")
        assert all(share is None or 0 <= share <= 1 for share in seen)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such limit")
async def test_a_process_may_not_take_far_more_memory_than_its_model_needs() -> None:
    async with hosted(memory_bytes=64 << 20, cache_mib=0) as model:
        most, _ = resource.prlimit(pid_of(model), resource.RLIMIT_DATA)
        assert most == (64 << 20) + (1 << 30) + (256 << 20)
    with pytest.raises(ModelError):  # 3 GiB for the context, which would be only reserved
        async with hosted(demo_model(), memory_bytes=1, cache_mib=0, n_ctx=8192, n_parallel=16):
            pass


def test_it_is_reported_within_ten_seconds() -> None:
    beats = process._IDLE_BEAT_SECS + process._BUSY_BEAT_SECS
    assert beats + Patience().slow_secs < 10


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (3, "it left with exit status 3"),
        (-signal.SIGSEGV, "SIGSEGV"),
        (-signal.SIGKILL, "SIGKILL, the system may be out of memory"),
        (-signal.SIGBUS, "SIGBUS, the model file may have become shorter while it was read"),
    ],
)
def test_an_end_is_reported_with_its_likely_cause(code: int, said: str) -> None:
    assert spawned.ending(code) == said


async def test_a_waiting_request_gets_the_reason_why_the_model_cannot_be_loaded_again() -> None:
    broken = False

    def check() -> None:
        if broken:
            raise ModelError("the file has gone")

    async with hosted(check_files=check) as model:
        running = await model.generate(ask())
        await anext(running)
        waiting = await model.generate(ask(max_tokens=2))
        waits = asyncio.create_task(anext(waiting))
        await asyncio.sleep(0)
        broken = True
        os.kill(pid_of(model), signal.SIGKILL)
        with pytest.raises(EngineEnded):
            async for _ in running:
                pass
        with pytest.raises(Unavailable, match="the file has gone"):
            await waits
