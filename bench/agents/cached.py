"""Measures how much of an agent's requests comes from the cache:
``python -m bench.agents.cached FILE … [--template FILE …]``.

The files are written by ``bench.agents --record``. Their requests are sent in order to an engine with a small
random model and a large context, once for each chat template. Each row of the table is a request that
continues the conversation of the previous request. The row has the request's number, the number of tokens of
the previous request, and how many of these were cached.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from msgspec.structs import replace

from inferd.engine.events import Done, Usage
from inferd.engine.local.child import messages
from inferd.engine.local.llamacpp import LlamaCpp
from inferd.engine.local.opening import LlamaCppConfig
from inferd.engine.requests import GenerateRequest
from tests.tiny_llama import write_llama

CONTEXT = 65_536


def requests(file: Path) -> Iterator[GenerateRequest]:
    """The requests of a record."""
    data = file.read_bytes()
    at = 0
    while at < len(data):
        end = at + 4 + int.from_bytes(data[at : at + 4], "little")
        yield messages.unpack_generate(data[at + 4 : end], ())
        at = end


def load(path: Path, template: str) -> LlamaCpp:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        config = LlamaCppConfig(
            name="bench", model="bench", path=path, fd=descriptor, n_ctx=CONTEXT, chat_template=template
        )
        return LlamaCpp.load(config, progress=lambda phase, details: None, cancelled=threading.Event())
    finally:
        os.close(descriptor)


async def usages(model: LlamaCpp, asked: list[GenerateRequest]) -> list[Usage]:
    """The usage of each request, one after the other."""
    found = []
    await model.start()
    try:
        for request in asked:
            short = replace(request, max_tokens=1, frame=None)
            async for event in await model.generate(short):
                if isinstance(event, Done):
                    found.append(event.usage)
    finally:
        await model.close()
    return found


def goes_on(first: GenerateRequest, second: GenerateRequest) -> bool:
    """Whether the second request continues the conversation of the first."""
    return (
        len(second.messages) > len(first.messages)
        and second.messages[0] == first.messages[0]
        and second.tools == first.tools
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--template", action="append", type=Path, default=[])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = write_llama(Path(folder, "model.gguf"), keys={"llama.context_length": CONTEXT})
        for template in given.template or [None]:
            for file in given.files:
                asked = list(requests(file))
                took = asyncio.run(usages(load(path, template.read_text() if template else ""), asked))
                for i in range(1, len(asked)):
                    if goes_on(asked[i - 1], asked[i]):
                        before = took[i - 1].prompt_tokens
                        share = took[i].cached_tokens / before
                        name = template.stem if template else "the model's own"
                        cells = (file.stem, name, i + 1, before, took[i].cached_tokens, f"{share:.1%}")
                        print(f"| {' | '.join(map(str, cells))} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
