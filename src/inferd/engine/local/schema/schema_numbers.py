"""Converts the numbers in a JSON Schema to bounds that llguidance handles correctly, and limits llguidance's
work."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Any, TypeGuard

from inferd.engine.local.schema.schema_places import refusal, step

Digits = tuple[int, int]
ONE: Digits = (1, 0)
EXACT = 2**53  # integers up to here are exact as float64, in which llguidance keeps a bound
_LARGEST = 2**63 - 1024  # the largest bound of llguidance
_LONG = 10**17  # a bound of 19 digits needs a bound on the other side, too
_SMALLEST = Decimal("1e-16")  # of a fraction; the float64 next to 0 has 324 digits
_LOWER, _UPPER = ("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")
_SIZES = (("minLength", "maxLength"), ("minItems", "maxItems"), ("minProperties", "maxProperties"))

MAX_DIGITS, MAX_DIVISOR, MAX_DIVISORS = 50_000, 5_000_000, 200_000
"""The limits of ``multipleOf``: for one divisor without its trailing zeros, for one divisor as a whole, and
for the sum of a schema's divisors without their trailing zeros. The grammar of a divisor takes quadratic time
to make; this sum takes a second."""


def check_bounds(node: dict[str, Any], pointer: str) -> None:
    """Raises ``InvalidRequest`` for bounds that exclude each other, and for a number that is not finite as a
    float64. Call this function before llguidance compiles a part of the node."""
    pairs = [(low, high) for low in _LOWER for high in _UPPER] + list(_SIZES)
    for low, high in pairs:
        least, most = node.get(low), node.get(high)
        if not _is_number(least) or not _is_number(most):  # absent, or in the style of draft 4
            continue
        if least > most or (least == most and (low.startswith("excl") or high.startswith("excl"))):
            raise refusal(step(pointer, low), f"`{low}` {least} and `{high}` {most} leave no value")
    for key in (*_LOWER, *_UPPER, "multipleOf"):
        value = node.get(key)
        if isinstance(value, float) and not math.isfinite(value):
            raise refusal(step(pointer, key), f"`{key}` is beyond what a float64 can hold")


def hold_bounds(node: dict[str, Any], pointer: str) -> list[str]:
    """Replaces the bounds of ``node`` by inclusive bounds, equal or narrower, that llguidance represents
    exactly.

    If the bounds cannot be enforced, returns their keywords and does not change the node. Raises
    ``InvalidRequest`` if ``node`` is an integer and no integer is between the bounds.
    """
    whole = node.get("type") == "integer"
    lows, highs = ([key for key in keys if _is_number(node.get(key))] for keys in (_LOWER, _UPPER))
    low = max((_inside(node, key, whole) for key in lows), default=None)
    high = min((_inside(node, key, whole) for key in highs), default=None)
    if low is not None and high is not None and low > high and whole and high >= -EXACT and low <= EXACT:
        raise refusal(step(pointer, lows[0]), f"`{lows[0]}` and `{highs[0]}` leave no integer")
    if high is not None:
        high = min(high, _LARGEST)
    elif low is not None and low >= _LONG:
        high = _LARGEST
    if low is not None:
        low = max(low, -_LARGEST)
    elif high is not None and high <= -_LONG:
        low = -_LARGEST
    if low is not None and high is not None and low > high:
        return lows + highs  # the boolean bounds of draft 4 remain, and mean nothing alone
    for key in (*_LOWER, *_UPPER):
        node.pop(key, None)
    node |= {key: bound for key, bound in (("minimum", low), ("maximum", high)) if bound is not None}
    return []


def is_too_large(divisor: Digits) -> bool:
    found, exponent = divisor
    return found > MAX_DIGITS or (found > 1 and exponent > 0 and found * 10**exponent > MAX_DIVISOR)


def digits(number: float) -> Digits:
    """Returns ``number`` as a pair: an integer without trailing zeros, and an exponent of 10."""
    _, found, exponent = Decimal(str(number)).normalize().as_tuple()
    return int("".join(map(str, found))), int(exponent)


def least_common(one: Digits, other: Digits) -> Digits:
    """Returns the least common multiple. All numbers have the form that :func:`digits` returns."""
    exponent = min(one[1], other[1])
    a, b = (number * 10 ** (up - exponent) for number, up in (one, other))
    found = math.lcm(a, b)
    while found % 10 == 0:
        found, exponent = found // 10, exponent + 1
    return found, exponent


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _inside(node: dict[str, Any], key: str, whole: bool) -> float:
    """Returns the inclusive bound that replaces the bound ``key``: the nearest number that the bound allows
    and that llguidance represents exactly.

    llguidance compares decimal numbers. The result is an integer that a float64 holds exactly, or a number
    with at most 15 significant digits and at most 22 decimal places. A client that reads a float64 cannot
    distinguish an exclusive bound from a number very close to it. So the result for an exclusive bound
    differs from the bound by up to one unit of the result's last digit.
    """
    bound, up = node[key], key in _LOWER
    exclusive = key.startswith("exclusive") or node.get(f"exclusive{key.capitalize()}") is True  # of draft 4
    if whole and abs(bound) >= EXACT:
        near = float(max(-(2**64), min(2**64, bound)))
        if exclusive or (near < bound if up else near > bound):
            near = math.nextafter(near, math.inf if up else -math.inf)
        return int(near)
    if abs(bound) >= EXACT:
        exact = Decimal(bound)
        unit = Decimal(1).scaleb(exact.adjusted() - 14)
    else:
        exact = Decimal(repr(bound))
        unit = Decimal(1).scaleb(max(-22, min(0, exact.adjusted() - 14))) if exact else _SMALLEST
    if whole:
        unit = Decimal(1)
    inside = exact.quantize(unit, ROUND_CEILING if up else ROUND_FLOOR)
    if exclusive and inside == exact:
        inside += unit if up else -unit
    if 0 < abs(inside) < _SMALLEST:
        inside = (_SMALLEST if up else Decimal(0)) if inside > 0 else (Decimal(0) if up else -_SMALLEST)
    return int(inside) if inside == inside.to_integral_value() else float(inside)
