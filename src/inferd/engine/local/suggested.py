"""Sampling defaults for requests that leave settings open.

``DEFAULTS`` are the defaults of inferd 0.2.1, which v1 still uses. ``suggested`` reads the publisher's
recommendation from the model's file (``general.sampling.*``). A setting without a recommendation gets its
value from ``UNSUGGESTED``, whose temperature suits both small and large models.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from inferd.sampling import SamplingParams

DEFAULTS = SamplingParams(
    temperature=1.0,
    top_p=0.95,
    top_k=64,
    min_p=0.0,
    repeat_penalty=1.0,
    presence_penalty=0.0,
    frequency_penalty=0.0,
)
UNSUGGESTED = replace(DEFAULTS, temperature=0.6)

# Each with the minimum and the maximum that a request may give.
_KEYS: dict[str, tuple[str, float, float]] = {
    "general.sampling.temp": ("temperature", 0.0, 100.0),
    "general.sampling.top_p": ("top_p", 1e-6, 1.0),
    "general.sampling.top_k": ("top_k", 0, 2**31 - 1),
    "general.sampling.min_p": ("min_p", 0.0, 1.0),
    "general.sampling.penalty_repeat": ("repeat_penalty", 0.01, 100.0),
}


def suggested(metadata: Callable[[str], str]) -> SamplingParams:
    """Returns the recommended settings of a model. ``metadata`` returns the value of a metadata key of the
    model's file as text, or an empty text if the file does not have the key.

    A recommendation is ignored if it is out of the range that a request may set.
    """
    found: dict[str, Any] = {}
    for key, (name, least, most) in _KEYS.items():
        try:
            value = float(metadata(key))
        except ValueError:
            continue
        if math.isfinite(value) and least <= value <= most:
            found[name] = int(value) if name == "top_k" else value
    return replace(UNSUGGESTED, **found)
