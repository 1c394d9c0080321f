"""Samples answers that conform to the eighty schemas of the tests from a real model, and validates them with
jsonschema.

    python -m bench.schemas --model FILE.gguf [--samples 20] [--max-tokens 300] [--jsonl FILE]

Each schema is either refused or sampled at temperature 1.5 from the whole vocabulary. The exit status is 1 if
one of these bars is missed: no answer that ends with `done` breaks its schema (declared draft, formats on);
fewer than 0.5 % of the answers end with `schema_violation`; at least 80 % end by themselves; a cut answer is
the beginning of an answer that the grammar accepts; at least 95 % of the schemas are served. With --jsonl,
samples that are already in the file are not drawn again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import threading
import time
from collections import Counter
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import jsonschema
import orjson
from jsonschema import validators

from inferd.engine.events import Done, Frames
from inferd.engine.local.llamacpp import LlamaCpp
from inferd.engine.local.opening import LlamaCppConfig
from inferd.engine.requests import FrameTemplate, GenerateRequest, Message
from inferd.errors import InvalidRequest, SchemaViolation
from inferd.sampling import SamplingParams
from tests.schema_examples import REFUSED, SERVED

AT_ONCE = 8


def load(path: Path, threads: int) -> LlamaCpp:
    fd = os.open(path, os.O_RDONLY)
    try:
        config = LlamaCppConfig(
            name="bench", model="bench", path=path, fd=fd, n_ctx=1024, n_parallel=AT_ONCE, threads=threads
        )
        return LlamaCpp.load(config, progress=lambda phase, details: None, cancelled=threading.Event())
    finally:
        os.close(fd)


def request(schema: object, name: str, seed: int, max_tokens: int) -> GenerateRequest:
    return GenerateRequest(
        messages=(Message("user", f"Invent an example of: {name.replace('_', ' ')}"),),
        max_tokens=max_tokens,
        sampling=SamplingParams(seed=seed, temperature=1.5, top_p=1.0, top_k=0),
        json_schema=json.dumps(schema),
        frame=FrameTemplate(b'{"t":"', b'"}\n'),
    )


async def sample(engine: LlamaCpp, name: str, seed: int, max_tokens: int) -> dict[str, Any]:
    """One answer. ``end`` is "end" or "length" for a valid answer or beginning, else the fault."""
    schema = SERVED[name]
    text = ""
    try:
        async for event in await engine.generate(request(schema, name, seed, max_tokens)):
            if isinstance(event, Frames):
                text += "".join(orjson.loads(line)["t"] for line in event.data.splitlines())
            elif isinstance(event, Done):
                end = event.stop_reason
                tokens = event.usage.completion_tokens
    except SchemaViolation as violation:
        return {"name": name, "seed": seed, "end": "violation", "tokens": 0, "why": str(violation)}
    if end == "end" and not is_valid(schema, text):
        end = "broken"
    elif end != "end" and not begins_one(engine, schema, text):
        end = "no beginning"
    return {"name": name, "seed": seed, "end": end, "tokens": tokens, "why": text}


def is_valid(schema: dict[str, Any], text: str) -> bool:
    """Judged in decimal numbers: in binary ones, jsonschema finds that 19.88 is no multiple of 0.01."""
    exact = json.loads(json.dumps(schema), parse_float=Decimal)
    kind = validators.validator_for(exact, default=jsonschema.Draft202012Validator)
    checked = kind(exact, format_checker=kind.FORMAT_CHECKER)
    return bool(checked.is_valid(json.loads(text, parse_float=_number)))


def _number(text: str) -> Decimal | float:
    """Returns the exact number, or the nearest float if the exponent is too large for a Decimal."""
    try:
        return Decimal(text)
    except InvalidOperation:
        return float(text)


def begins_one(engine: LlamaCpp, schema: object, text: str) -> bool:
    guides = engine._family.guides
    return guides.value(guides.answer(json.dumps(schema), lenient=False)).accept_text(text.encode())


async def run(args: argparse.Namespace) -> int:
    known: dict[tuple[str, int], dict[str, Any]] = {}
    if args.jsonl and args.jsonl.exists():
        for line in args.jsonl.read_text("utf-8").splitlines():
            drawn = json.loads(line)
            known[drawn["name"], drawn["seed"]] = drawn
    engine = await asyncio.to_thread(load, args.model, args.threads)
    await engine.start()
    refused = 0
    for name, (schema, _) in REFUSED.items():
        try:
            await engine.generate(request(schema, name, 0, 1))
        except InvalidRequest:
            refused += 1
    wanted = [(name, seed) for seed in range(args.samples) for name in SERVED]
    left = iter([each for each in wanted if each not in known])
    begun = time.perf_counter()

    async def work() -> None:
        for name, seed in left:
            known[name, seed] = drawn = await sample(engine, name, seed, args.max_tokens)
            if args.jsonl:
                with args.jsonl.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(drawn) + "\n")

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    await engine.close()
    seconds = time.perf_counter() - begun
    drawn = [known[each] for each in wanted]
    return told(drawn, refused, seconds)


def told(drawn: list[dict[str, Any]], refused: int, seconds: float) -> int:
    ends = Counter(each["end"] for each in drawn)
    all_of_them = len(drawn)
    served = len(SERVED) / (len(SERVED) + len(REFUSED))
    print(f"{len(SERVED)} schemas served ({served:.1%}), {refused} of {len(REFUSED)} others refused")
    tokens = sum(each["tokens"] for each in drawn)
    print(f"{all_of_them} samples in {seconds:.0f} s, {tokens} tokens: {dict(ends)}")
    for each in drawn:
        if each["end"] not in ("end", "length"):
            print(f"  {each['name']} seed {each['seed']}: {each['end']}: {each['why'][:200]}")
    holds = (
        ends["broken"] == ends["no beginning"] == 0
        and ends["violation"] < 0.005 * all_of_them
        and ends["end"] >= 0.8 * all_of_them
        and served >= 0.95
        and refused == len(REFUSED)
    )
    return 0 if holds else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--max-tokens", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--jsonl", type=Path, help="a file to which each sample is appended")
    return asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
