"""Numbers in JSON Schemas: bounds that llguidance handles correctly, and limits on its work."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

from inferd.engine.local.schema.schema_places import refusal, step

Digits = tuple[int, int]
ONE: Digits = (1, 0)
_LARGEST = 2**63 - 1024
EXACT = 2**53  # integers up to here are exact as float64, in which llguidance keeps a bound
_SMALLEST = 1e-16  # replaces the float64 next to 0, which has 324 digits
_LOWER, _UPPER = ("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")
_SIZES = (("minLength", "maxLength"), ("minItems", "maxItems"), ("minProperties", "maxProperties"))

MAX_DIGITS, MAX_DIVISOR = 50_000, 5_000_000
"""The limits of a divisor, without trailing zeros and in all. Making its grammar takes quadratic time."""


def check_bounds(node: dict[str, Any], pointer: str) -> None:
    """Refuses bounds that exclude each other, before compiling anything."""
    pairs = [(low, high) for low in _LOWER for high in _UPPER] + list(_SIZES)
    for low, high in pairs:
        least, most = node.get(low), node.get(high)
        if isinstance(least, bool) or isinstance(most, bool):  # the style of draft 4
            continue
        if not isinstance(least, int | float) or not isinstance(most, int | float):
            continue
        if least > most or (least == most and (low.startswith("excl") or high.startswith("excl"))):
            raise refusal(step(pointer, low), f"`{low}` {least} and `{high}` {most} leave no value")
    for key in (*_LOWER, *_UPPER, "multipleOf"):
        value = node.get(key)
        if isinstance(value, float) and not math.isfinite(value):
            raise refusal(step(pointer, key), f"`{key}` is beyond what a float64 can hold")


def hold_bounds(node: dict[str, Any]) -> None:
    """Changes bounds to equal ones that llguidance accepts, or one step narrower."""
    _close_bounds(node)
    for key in (*_LOWER, *_UPPER):
        bound = node.get(key)
        if isinstance(bound, int) and not isinstance(bound, bool) and abs(bound) > EXACT:
            node[key] = _inside(bound, upwards=key in _LOWER)
    # llguidance counts in int64: a bound of 19 digits needs another bound on its far side.
    if any(_is_beyond(node.get(key), 1) for key in _LOWER) and not any(key in node for key in _UPPER):
        node["maximum"] = _LARGEST
    if any(_is_beyond(node.get(key), -1) for key in _UPPER) and not any(key in node for key in _LOWER):
        node["minimum"] = -_LARGEST


def is_too_large(divisor: Digits) -> bool:
    found, exponent = divisor
    return found > MAX_DIGITS or (found > 1 and exponent > 0 and found * 10**exponent > MAX_DIVISOR)


def digits(number: float) -> Digits:
    """The digits of the number as an integer, without trailing zeros, and their exponent of 10."""
    _, found, exponent = Decimal(str(number)).normalize().as_tuple()
    return int("".join(map(str, found))), int(exponent)


def least_common(one: Digits, other: Digits) -> Digits:
    """The least common multiple, in the form of :func:`digits`."""
    exponent = min(one[1], other[1])
    a, b = (number * 10 ** (up - exponent) for number, up in (one, other))
    found = math.lcm(a, b)
    while found % 10 == 0:
        found, exponent = found // 10, exponent + 1
    return found, exponent


def _inside(bound: int, *, upwards: bool) -> int:
    """The nearest integer inside the bound that is exact as a float64."""
    nearest = float(bound)
    if upwards and nearest < bound:
        nearest = math.nextafter(nearest, math.inf)
    if not upwards and nearest > bound:
        nearest = math.nextafter(nearest, -math.inf)
    return int(nearest)


def _close_bounds(node: dict[str, Any]) -> None:
    """Turns exclusive bounds of fractions into inclusive ones, a step further in.

    llguidance compares decimals, with bounds of 15 digits. A decimal closer to the bound than float64
    resolves equals the bound once it is read.
    """
    if node.get("type") == "integer":
        return
    for key, to, inclusive in (("exclusiveMinimum", 1, "minimum"), ("exclusiveMaximum", -1, "maximum")):
        bound = node.get(key)
        if isinstance(bound, bool) or not isinstance(bound, int | float) or abs(bound) > EXACT:
            continue
        exact = Decimal(repr(bound))
        nearest = float(exact + to * Decimal(10) ** (exact.adjusted() - 14)) if bound else to * _SMALLEST
        held = node.get(inclusive, nearest)
        if isinstance(held, int | float):
            node[inclusive] = max(held, nearest) if to > 0 else min(held, nearest)
            del node[key]


def _is_beyond(bound: Any, sign: int) -> bool:
    return isinstance(bound, int | float) and not isinstance(bound, bool) and bound * sign >= 10**17
