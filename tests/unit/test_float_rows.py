"""Vectors as JSON text, by both implementations of the fast path; numpy gives the expected digits."""

from __future__ import annotations

import struct
from array import array
from types import ModuleType

import numpy as np
import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from inferd import _fastpath, _purepath
from tests.cases import cases

IMPLEMENTATIONS = pytest.mark.parametrize("impl", [_fastpath, _purepath], ids=["c", "python"])
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@IMPLEMENTATIONS
@cases(
    "number, text",
    [(0.1, "0.1"), (0.5, "0.5"), (-0.25, "-0.25"), (1.0, "1.0"), (0.0, "0.0"), (1 / 3, "0.33333334")],
)
def test_numbers_have_the_digits_of_a_float32(impl: ModuleType, number: float, text: str) -> None:
    assert impl.float_rows(array("f", [number]), 1) == f"[[{text}]]".encode()


@IMPLEMENTATIONS
def test_rows(impl: ModuleType) -> None:
    values = array("f", range(6))
    assert orjson.loads(impl.float_rows(values, 3)) == [[0, 1, 2], [3, 4, 5]]
    assert orjson.loads(impl.float_rows(values.tobytes(), 1)) == [[0], [1], [2], [3], [4], [5]]
    assert impl.float_rows(memoryview(values), 6) == b"[[0.0,1.0,2.0,3.0,4.0,5.0]]"
    assert impl.float_rows(b"", 7) == b"[]"


@IMPLEMENTATIONS
@given(numbers=st.lists(FLOATS, min_size=1))
@example(numbers=[3.4028234663852886e38, -1.1754943508222875e-38, 1.401298464324817e-45, 16777216.0])
@example(numbers=[9.860761315262648e-32, 123456792.0, 1e22, 1e-5, -0.0])
def test_every_number_reads_back_and_has_no_digit_too_many(impl: ModuleType, numbers: list[float]) -> None:
    text = impl.float_rows(array("f", numbers), 1)
    assert b"." in text or b"e" in text
    for number, written in zip(numbers, text[2:-2].split(b"],["), strict=True):
        (read,) = orjson.loads(b"[" + written + b"]")
        assert isinstance(read, float)
        assert struct.pack("f", read) == struct.pack("f", number)
        shortest = np.format_float_scientific(np.float32(number), unique=True, trim="-")
        # At a power of two the nearest decimal of some length can miss where its neighbour hits.
        spare = 1 if impl is _purepath else 0
        if abs(number) < 2**24:  # a larger one may be written out as the whole number it is
            assert digits(written.decode()) <= digits(shortest) + spare


def digits(number: str) -> int:
    """The number of significant digits."""
    return len(number.split("e")[0].replace(".", "").replace("-", "").strip("0")) or 1


@IMPLEMENTATIONS
@cases("number", [float("nan"), float("inf"), -float("inf")])
def test_values_that_json_cannot_carry_are_refused(impl: ModuleType, number: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        impl.float_rows(array("f", [1.0, number]), 2)


@IMPLEMENTATIONS
@cases("size, width", [(8, 3), (7, 1), (4, 0), (4, -1)])
def test_only_whole_rows_are_taken(impl: ModuleType, size: int, width: int) -> None:
    with pytest.raises(ValueError, match="no whole rows"):
        impl.float_rows(bytes(size), width)
