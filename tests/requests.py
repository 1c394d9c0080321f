"""Makes requests to a backend from one flat set of fields."""

from __future__ import annotations

from typing import Any

from inferd.engine.requests import GenerateRequest, Message
from inferd.sampling import NAMES, SamplingParams

HI = (Message("user", "hi"),)


def generate_request(**fields: Any) -> GenerateRequest:
    """A request; ``messages`` defaults to a greeting."""
    sampling = {name: fields.pop(name) for name in NAMES if name in fields}
    return GenerateRequest(**{"messages": HI, **fields}, sampling=SamplingParams(**sampling))
