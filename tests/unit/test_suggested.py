"""The sampling settings in a model's file are the defaults of requests, except on v1."""

from __future__ import annotations

import asyncio
from pathlib import Path

from inferd.engine.local.suggested import DEFAULTS, UNSUGGESTED, suggested
from inferd.engine.requests import Message
from inferd.sampling import SamplingParams
from inferd.serve.surfaces.v1 import TextSurface
from inferd.serve.surfaces.v2 import BlockSurface
from inferd.wire import v1, v2
from tests.cases import cases
from tests.requests import generate_request
from tests.tiny_llama import write_llama
from tests.unit.test_llamacpp import FRAME, load, read


@cases(
    "file, settings",
    [
        ({}, {}),
        ({"temp": "0.700000", "top_k": "20"}, {"temperature": 0.7, "top_k": 20}),
        ({"temp": "nan", "top_p": "0", "top_k": "-1", "min_p": "2", "penalty_repeat": "x"}, {}),
        ({"min_p": "0.05", "penalty_repeat": "1.1"}, {"min_p": 0.05, "repeat_penalty": 1.1}),
    ],
)
def test_settings_of_the_file_are_valid_request_settings(
    file: dict[str, str], settings: dict[str, float]
) -> None:
    found = suggested(lambda key: file.get(key.removeprefix("general.sampling."), ""))
    assert found == SamplingParams(**settings).over(UNSUGGESTED)  # type: ignore[arg-type]


def test_v1_keeps_its_defaults_unless_it_is_asked() -> None:
    blocks = b'{"messages":[{"role":"user","content":[{"type":"text","text":"a"}]}]%b}'
    text = b'{"messages":[{"role":"user","content":"a"}]%b}'
    asked, refused = b',"model_defaults":true', b',"model_defaults":false'
    for line, expected in ((text % b"", False), (text % asked, True)):
        assert TextSurface().engine_request(v1.parse(line), None).model_defaults == expected
    for line, expected in ((blocks % b"", True), (blocks % refused, False)):
        assert BlockSurface().engine_request(v2.parse(line), None).model_defaults == expected
    assert DEFAULTS.temperature == 1.0


async def test_a_file_that_recommends_temperature_0_gives_equal_answers(tmp_path: Path) -> None:
    backend = await asyncio.to_thread(load, write_llama(tmp_path / "model.gguf", temp=0.0), n_ctx=256)
    await backend.start()

    async def answers(**options: bool) -> set[str]:
        request = generate_request(messages=(Message("user", "a"),), max_tokens=8, frame=FRAME, **options)
        return {(await read(await backend.generate(request)))[0] for _ in range(4)}

    try:
        assert len(await answers(model_defaults=True)) == 1
        assert len(await answers()) == 4
    finally:
        await backend.close()
