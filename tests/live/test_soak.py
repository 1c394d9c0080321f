"""A few seconds of the soak on a small model, with the clients that need little time."""

from __future__ import annotations

from bench.soak import __main__ as soak
from bench.soak import loads
from tests.tiny_llama import random_llama

VISITS = (
    *(loads.short, loads.pipelined, loads.vectors, loads.watcher, loads.malformed, loads.cut),
    *(loads.invalid, loads.leaver, loads.reconnecter, loads.half_attached, loads.deaf),
)


async def test_mixed_load_leaks_nothing() -> None:
    shown: list[str] = []
    findings = await soak.soak(random_llama(), 3, seed=1, show=shown.append, visits=VISITS, fill=False)
    assert not findings, "\n".join([*findings, *shown])
