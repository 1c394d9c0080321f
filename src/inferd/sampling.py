"""The sampling parameters of a request, in the form that the whole daemon uses."""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

MAX_TOKENS = 1000
"""The token limit for a request that sets none, on a local model, and on a remote one over v1, which promises
that an answer ends."""


class SamplingParams(Struct, frozen=True, kw_only=True):
    """The sampling settings of one request, already validated.

    ``None`` means that the client did not set the value, and the backend's default applies. A ``temperature``
    of 0 means greedy sampling. A ``top_k`` of 0, a ``min_p`` of 0, a ``repeat_penalty`` of 1, a
    ``presence_penalty`` of 0 or a ``frequency_penalty`` of 0 turns its sampling step off. With the same
    ``seed``, the same request gets the same answer.
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
        """Returns these settings with the value from ``defaults`` in place of each ``None``."""
        missing = {name: getattr(defaults, name) for name in NAMES if getattr(self, name) is None}
        return replace(self, **missing) if missing else self


NAMES = SamplingParams.__struct_fields__
NOTHING_GIVEN = SamplingParams()
