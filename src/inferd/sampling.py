"""The sampling parameters, as one object from the wire to the token loop."""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace


class SamplingParams(Struct, frozen=True, kw_only=True):
    """The sampling settings of one request, already validated.

    ``None`` means that the client did not set the value, and the backend's default applies. A ``temperature``
    of 0 is greedy sampling. A sampling step is off if its ``top_k`` is 0, its ``min_p`` 0, its
    ``repeat_penalty`` 1, or another penalty 0. With a ``seed``, the same request gets the same answer again.
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
        """Returns these settings, with each ``None`` replaced by the value of ``defaults``."""
        missing = {name: getattr(defaults, name) for name in NAMES if getattr(self, name) is None}
        return replace(self, **missing) if missing else self


NAMES = SamplingParams.__struct_fields__
NOTHING_GIVEN = SamplingParams()
