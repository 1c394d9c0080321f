"""A token is sampled from the candidates that the settings leave, according to their probabilities."""

from __future__ import annotations

import math
import random
from array import array
from collections import Counter

import pytest
from msgspec.structs import replace

from inferd.engine.local import _llama
from inferd.engine.local._llama import draws
from inferd.engine.local.suggested import DEFAULTS
from inferd.sampling import SamplingParams
from tests.tiny_llama import VOCABULARY, random_llama
from tests.unit.test_llamacpp import load_model

PLAIN = replace(DEFAULTS, temperature=1.0, top_k=0, top_p=1.0, seed=7)
COUNT = 4000


@pytest.fixture(scope="module")
def model() -> _llama.Model:
    return load_model(random_llama())


def row(spread: float, likely: dict[int, float] | None = None) -> array[float]:
    draw = random.Random(3)
    logits = array("f", (draw.gauss(0, spread) for _ in range(VOCABULARY)))
    for token, logit in (likely or {}).items():
        logits[token] = logit
    return logits


def best(logits: array[float], count: int) -> set[int]:
    return set(sorted(range(len(logits)), key=logits.__getitem__)[-count:])


@pytest.mark.parametrize("settings", [PLAIN, replace(PLAIN, top_k=3), replace(PLAIN, top_p=0.999)])
def test_the_draws_have_the_probabilities_of_the_logits(
    settings: SamplingParams, model: _llama.Model
) -> None:
    likely = {10: 40.0, 2000: 40.0 + math.log(2), 8000: 40.0 + math.log(5)}
    found = Counter(draws(model, row(1.0, likely), settings, COUNT))
    assert set(found) == set(likely)
    for token, share in zip(likely, (1 / 8, 2 / 8, 5 / 8), strict=True):
        assert found[token] / COUNT == pytest.approx(share, abs=0.03)


def test_only_the_best_candidates_are_drawn(model: _llama.Model) -> None:
    logits = row(0.1)
    assert set(draws(model, logits, replace(PLAIN, top_k=64), COUNT)) == best(logits, 64)
    assert set(draws(model, logits, replace(PLAIN, temperature=0.0), 3)) == best(logits, 1)


def test_a_seed_repeats_the_draws(model: _llama.Model) -> None:
    first, second, other = (draws(model, row(1.0), replace(PLAIN, seed=seed), 20) for seed in (1, 1, 2))
    assert first == second != other


def test_a_row_of_another_length_is_refused(model: _llama.Model) -> None:
    with pytest.raises(ValueError, match="5"):
        draws(model, array("f", [0.0] * 5), PLAIN, 1)
