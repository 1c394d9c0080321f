"""The cost of sampling a token with the whole sampler chain of a request, by the size of the vocabulary.

``pytest bench/micro/test_sampling.py`` runs these. ``default`` are the settings that apply to a request
without any (temperature 1, ``top_k`` 64, ``top_p`` 0.95). ``top_p alone`` is without ``top_k``. The logits
have a normal distribution with a standard deviation of 4, like those of a small model.
"""

from __future__ import annotations

import random
import tempfile
import time
from array import array
from functools import cache
from pathlib import Path

import pytest
from msgspec.structs import replace
from pytest_benchmark.fixture import BenchmarkFixture

from inferd.engine.local import _llama
from inferd.engine.local.suggested import DEFAULTS
from tests.tiny_llama import write_llama

VOCABULARIES = (49_152, 151_936, 262_144)
SETTINGS = {
    "default": replace(DEFAULTS, seed=1),
    "top_p alone": replace(DEFAULTS, top_k=0, top_p=0.95, seed=1),
    "greedy": replace(DEFAULTS, temperature=0.0, seed=1),
}
DRAWS = 20


@cache
def model_of(vocabulary: int) -> _llama.Model:
    with tempfile.TemporaryDirectory() as directory:
        path = write_llama(Path(directory) / "model.gguf", whole=True, vocabulary=vocabulary)
        with path.open("rb") as file:
            return _llama.Model(file.fileno(), path=str(path), n_gpu_layers=0, report=lambda fraction: True)


@pytest.mark.benchmark(timer=time.thread_time)
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("settings", SETTINGS)
def test_draw(benchmark: BenchmarkFixture, settings: str, vocabulary: int) -> None:
    draw = random.Random(1)
    logits = array("f", (draw.gauss(0, 4) for _ in range(vocabulary)))
    model = model_of(vocabulary)
    benchmark.group = f"{DRAWS} tokens, {settings}"
    drawn = benchmark.pedantic(
        lambda: _llama.draws(model, logits, SETTINGS[settings], DRAWS), rounds=30, warmup_rounds=2
    )
    assert len(drawn) == DRAWS
