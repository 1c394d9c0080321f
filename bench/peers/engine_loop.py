"""Runs the backend of inferd without a daemon and without a socket.

Arguments: model, threads, n_ctx. Each line of stdin is a JSON object with ``messages`` and ``n_predict``;
each line of stdout is a JSON object with ``prefill_ms`` and ``times`` (seconds of the clock at each token).
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
from pathlib import Path

import uvloop

from inferd.engine.events import Done, Frames
from inferd.engine.local.llamacpp import LlamaCpp
from inferd.engine.local.opening import LlamaCppConfig
from inferd.engine.requests import FrameTemplate, GenerateRequest, Message
from inferd.sampling import SamplingParams

FRAME = FrameTemplate(b'{"type":"token","id":"b","content":"', b'"}\n')


async def answer(backend: LlamaCpp, line: str) -> str:
    asked = json.loads(line)
    request = GenerateRequest(
        messages=tuple(Message(message["role"], message["content"]) for message in asked["messages"]),
        max_tokens=asked["n_predict"],
        sampling=SamplingParams(temperature=0.0, top_p=1.0, top_k=0),
        frame=FRAME,
    )
    times: list[float] = []
    async for event in await backend.generate(request):
        if isinstance(event, Frames):
            times += [time.perf_counter()] * event.data.count(b"\n")
        elif isinstance(event, Done):
            assert event.timings is not None
            return json.dumps({"prefill_ms": event.timings.prefill_ms, "times": times})
    raise AssertionError("a stream ends with Done")


async def main(path: Path, threads: int, n_ctx: int) -> None:
    fd = os.open(path, os.O_RDONLY)
    config = LlamaCppConfig(
        name="bench",
        model=path.name,
        path=path,
        fd=fd,
        n_ctx=n_ctx,
        n_parallel=1,
        threads=threads,
        drafts="off",
    )
    backend = LlamaCpp.load(config, progress=lambda phase, details: None, cancelled=threading.Event())
    await backend.start()
    print("ready", flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        print(await answer(backend, line), flush=True)
    await backend.close()


if __name__ == "__main__":
    uvloop.run(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
