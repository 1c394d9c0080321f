"""Top-p without sorting selects the same candidates as llama.cpp's sampler."""

from __future__ import annotations

import math
import random
from array import array

import pytest

from inferd.engine.local._llama import nucleus, nucleus_of_llama_cpp


def row(size: int, spread: float, seed: int) -> array[float]:
    """Logits of an invented model; a greater ``spread`` makes it surer."""
    draw = random.Random(seed)
    return array("f", (draw.gauss(0, spread) for _ in range(size)))


@pytest.mark.parametrize("spread", [0.1, 1.0, 4.0, 12.0])
def test_the_same_candidates_as_by_sorting(spread: float) -> None:
    for seed, size in enumerate((1, 31, 32, 33, 1000, 1025, 20_011)):
        logits = row(size, spread, seed)
        for top_p in (1e-9, 0.05, 0.5, 0.9, 0.95):
            ours, theirs = set(nucleus(logits, top_p)), set(nucleus_of_llama_cpp(logits, top_p))
            # llama.cpp adds floats one by one, and its sum is a little off.
            assert len(ours ^ theirs) <= 1 + len(theirs) // 1000, (size, top_p)
            least = min(logits[token] for token in ours)
            assert all(logit <= least for token, logit in enumerate(logits) if token not in ours)


def test_the_fewest_candidates_that_reach_the_probability() -> None:
    logits = row(50_000, 3.0, 1)
    weights = [math.exp(logit) for logit in logits]
    for top_p in (0.3, 0.95, 0.999):
        kept = [weights[token] for token in nucleus(logits, top_p)]
        assert sum(kept) >= (top_p - 1e-6) * sum(weights)
        assert sum(kept) - min(kept) < (top_p + 1e-6) * sum(weights)


def test_equal_logits_and_excluded_tokens() -> None:
    assert sorted(nucleus(array("f", [1.0] * 100), 0.5)) == list(range(50))
    assert nucleus(array("f", [-math.inf, 2.0, -math.inf]), 0.95) == [1]
    assert nucleus(array("f", [-1e30, 0.0] * 40), 1e-6) == [1]
    assert nucleus(array("f", [math.nan] * 3), 0.95) == []
