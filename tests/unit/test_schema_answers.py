"""Answers of a model without preferences that must conform to eighty JSON Schemas, validated with
jsonschema."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from jsonschema import validators

from inferd.engine.events import Done
from inferd.engine.local import _llama
from inferd.engine.local.schema.guides import Guides
from inferd.engine.requests import GenerateRequest, Message
from inferd.errors import InvalidRequest, SchemaViolation
from inferd.sampling import SamplingParams
from tests.schema_examples import REFUSED, SERVED
from tests.unit.test_llamacpp import FRAME, load, read

FREE = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}


def request(schema: object, seed: int, **options: Any) -> GenerateRequest:
    sampling = SamplingParams(seed=seed, **FREE)
    return GenerateRequest(
        messages=(Message("user", "x"),),
        max_tokens=options.pop("max_tokens", 600),
        sampling=sampling,
        json_schema=json.dumps(schema),
        frame=FRAME,
        **options,
    )


def validator(schema: dict[str, Any]) -> Any:
    kind = validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    return kind(schema, format_checker=kind.FORMAT_CHECKER)


async def test_every_schema_is_followed_or_refused(tiny_llama: Path) -> None:
    engine = await asyncio.to_thread(load, tiny_llama, n_ctx=2048)
    await engine.start()
    ended: dict[str, int] = {}
    violations: list[str] = []

    async def sample(name: str, seed: int) -> None:
        schema = SERVED[name]
        try:
            text, done = await read(await engine.generate(request(schema, seed)))
        except SchemaViolation as violation:
            violations.append(f"{name}: {violation}")
            return
        ended[name] = ended.get(name, 0) + (done.stop_reason == "end")
        if done.stop_reason == "end":
            checked = validator(schema)
            assert not list(checked.iter_errors(json.loads(text))), (name, text)
        else:
            assert follows(engine, schema, text), (name, text)

    try:
        for name in SERVED:
            await asyncio.gather(*(sample(name, seed) for seed in range(2)))
        for name, (schema, pointer) in REFUSED.items():
            with pytest.raises(InvalidRequest, match=f"at {pointer.replace('$', '[$]')}: "):
                await engine.generate(request(schema, 0))
            assert name
    finally:
        await engine.close()
    assert violations == []
    assert sum(ended.values()) >= 0.8 * 2 * len(SERVED), ended
    assert len(SERVED) >= 0.95 * (len(SERVED) + len(REFUSED))
    assert len(SERVED) + len(REFUSED) == 80


def follows(engine: Any, schema: object, text: str) -> bool:
    """Whether the grammar accepts a cut answer as the prefix of one."""
    guides: Guides = engine._family.guides
    guide: _llama.Guide = guides.value(guides.answer(json.dumps(schema), lenient=False))
    return guide.accept_text(text.encode())


async def test_unenforced_keywords_are_reported_and_checked(tiny_llama: Path) -> None:
    """A list of unique items with only one possible value: any answer with two items violates the schema."""
    engine = await asyncio.to_thread(load, tiny_llama)
    await engine.start()
    try:
        one = {"type": "array", "items": {"const": 1}, "minItems": 2, "maxItems": 3, "uniqueItems": True}
        with pytest.raises(SchemaViolation, match="/ breaks `uniqueItems`"):
            await read(await engine.generate(request(one, 1, schema_lenient=True)))
        any_of = {**one, "items": {"enum": list(range(1000))}}
        text, done = await read(await engine.generate(request(any_of, 1, schema_lenient=True)))
        assert isinstance(done, Done)
        assert done.unenforced == ("#/uniqueItems",)
        assert len(set(json.loads(text))) >= 2
    finally:
        await engine.close()
