"""Buffers of the CPU, such as a KV cache, as a patch of ggml clears them."""

from __future__ import annotations

import sys

import pytest

from inferd.engine.local import _llama
from tests.cases import cases
from tests.demo_model import demo_model
from tests.unit.test_engine_process import hosted


@cases("value", [0, 7])
@cases("size", [1, 100, 4096, 12_293, 1 << 20, (40 << 20) + 3])
def test_a_cleared_buffer_has_the_value_in_each_byte(size: int, value: int) -> None:
    assert _llama.cleared(b"\xff" * size, value) == bytes((value,)) * size


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives such memory back")
async def test_a_kv_cache_takes_no_memory_before_it_is_used() -> None:
    async with hosted(demo_model(), n_ctx=8192, n_parallel=4, cache_mib=0) as model:
        state = model.engine_state()
        assert state is not None
        assert 0 < state.private_bytes < 400 << 20  # the KV cache has 720 MiB
