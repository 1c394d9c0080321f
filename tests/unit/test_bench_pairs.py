"""The arithmetic of ``bench/ci.py``: only an unambiguous slowdown is a regression."""

from __future__ import annotations

import random

import pytest

from bench.pairs import Metric


def metric(base: list[float], head: list[float], *, more_is_better: bool = False) -> Metric:
    return Metric("c", "m", "u", more_is_better, 1.05, base, head)


def noisy(rng: random.Random, middle: float, spread: float, count: int = 15) -> list[float]:
    return [middle * rng.uniform(1 - spread, 1 + spread) for _ in range(count)]


def test_the_ratio_is_of_rounds_and_not_of_medians() -> None:
    assert metric([1, 10, 100], [2, 20, 200]).ratio() == 2
    assert metric([1, 10, 100], [2, 20, 200]).interval() == (2, 2)


@pytest.mark.parametrize("more_is_better", [False, True])
def test_worse_in_every_round_is_a_regression(more_is_better: bool) -> None:
    rng = random.Random(1)
    good, bad = (110.0, 100.0) if more_is_better else (100.0, 110.0)
    base, head = noisy(rng, good, 0.01), noisy(rng, bad, 0.01)
    assert metric(base, head, more_is_better=more_is_better).regressed()
    assert not metric(head, base, more_is_better=more_is_better).regressed()


def test_noise_is_not_a_regression() -> None:
    rng = random.Random(2)
    pair = metric(noisy(rng, 100, 0.3), noisy(rng, 106, 0.3))
    low, high = pair.interval()
    assert low < 1.05 < high
    assert not pair.regressed()


def test_worse_within_the_bound_is_not_a_regression() -> None:
    rng = random.Random(3)
    pair = metric(noisy(rng, 100, 0.001), noisy(rng, 103, 0.001))
    assert pair.interval()[0] > 1
    assert not pair.regressed()
