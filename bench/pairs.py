"""The arithmetic for the comparison of two builds in pairs: a ratio, its interval, and the rule for a
regression.

Each round measures both builds one after the other, so that a slow minute of the machine affects both. The
ratio of a metric is the median of the rounds' ratios. Its interval holds 95 % of the medians of resampled
rounds (a bootstrap with a fixed seed, so the same numbers give the same interval). A regression is a ratio
whose whole interval lies beyond the metric's bound.
"""

from __future__ import annotations

import random
import statistics
from dataclasses import dataclass, field

RESAMPLES = 2000


@dataclass
class Metric:
    """One number of a case, for both builds: ``base[i]`` and ``head[i]`` are of the same round.

    ``bound`` is the factor by which ``head`` may be worse. Without a base, ``base`` is empty.
    """

    case: str
    name: str
    unit: str
    more_is_better: bool
    bound: float
    base: list[float] = field(default_factory=list)
    head: list[float] = field(default_factory=list)

    def ratios(self) -> list[float]:
        """The ratio of head to base in each round."""
        return [head / base for base, head in zip(self.base, self.head, strict=True)]

    def ratio(self) -> float:
        return statistics.median(self.ratios())

    def interval(self) -> tuple[float, float]:
        """The ends of the ratio's 95 % interval."""
        ratios = self.ratios()
        rng = random.Random(1)
        medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES))
        return medians[int(0.025 * RESAMPLES)], medians[int(0.975 * RESAMPLES)]

    def regressed(self) -> bool:
        """Whether the whole interval shows head worse than the bound."""
        low, high = self.interval()
        return high < 1 / self.bound if self.more_is_better else low > self.bound
