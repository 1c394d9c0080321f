"""Runs a fuzz test for a longer time, guided by coverage: ``python tests/fuzz/run.py TARGET [OPTIONS]``.

It needs ``pip install atheris``. OPTIONS are those of libFuzzer. This runs for ten minutes with a corpus that
is kept: ``python tests/fuzz/run.py v1_request -max_total_time=600 CORPUS_DIR``. The run ends at the first
finding. Hypothesis stores the finding, so that the same test fails under pytest with a minimal example.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import atheris

TARGETS = {
    "splitter": ("test_splitter", "test_any_order_of_calls"),
    "v1_request": ("test_v1_request", "test_damaged_requests"),
    "v1_bytes": ("test_v1_request", "test_arbitrary_bytes"),
    "v2_request": ("test_v2_request", "test_damaged_v2_requests"),
    "v2_bytes": ("test_v2_request", "test_arbitrary_v2_bytes"),
    "frame_heads": ("test_frames", "test_heads_in_any_order_of_calls"),
    "frames": ("test_frames", "test_however_frames_are_cut"),
    "v2_framing": ("test_v2_framing", "test_however_a_stream_is_cut"),
}

if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
    sys.exit(f"usage: {sys.argv[0]} {{{','.join(TARGETS)}}} [OPTIONS]")

module, test = TARGETS[sys.argv.pop(1)]
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
with atheris.instrument_imports(include=["inferd"]):
    entry = getattr(importlib.import_module(f"tests.fuzz.{module}"), test).hypothesis.fuzz_one_input

atheris.Setup(sys.argv, entry)
atheris.Fuzz()
