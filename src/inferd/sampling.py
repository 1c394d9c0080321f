"""The sampling parameters, one object from the wire to the token loop."""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace


class SamplingParams(Struct, frozen=True, kw_only=True):
    """The sampling settings of one request, already validated.

    ``None`` means that the client did not give the value and the backend's default applies. ``temperature``
    0 is greedy. ``top_k`` 0, ``min_p`` 0, ``repeat_penalty`` 1 and a penalty of 0 switch a step off. A given
    ``seed`` makes the answer repeatable.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None

    def over(self, defaults: SamplingParams) -> SamplingParams:
        """These settings, and ``defaults`` for each that is ``None``."""
        missing = {name: getattr(defaults, name) for name in NAMES if getattr(self, name) is None}
        return replace(self, **missing) if missing else self


NAMES = SamplingParams.__struct_fields__
NOTHING_GIVEN = SamplingParams()
