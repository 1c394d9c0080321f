"""Makes one test of many cases. All cases run, and each failure is shown with its values.

``@cases("text, level", [("0", "off"), ("1", "error")])`` has the syntax of ``pytest.mark.parametrize``, but
counts as one test instead of one for each row. All rows share the fixtures of the test, so use it only if no
row changes shared state.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from tests.left_behind import forget_tracebacks

Test = Callable[..., Any]
SHOWN = 300  # characters of the values of a row


def cases(names: str, rows: Iterable[Any]) -> Callable[[Test], Test]:
    """``rows`` are tuples of the values of ``names``, or the values themselves of a single name."""
    arguments = [name.strip() for name in names.split(",")]
    listed = [dict(zip(arguments, row if len(arguments) > 1 else (row,), strict=True)) for row in rows]
    assert listed, "no rows: a test without rows cannot fail"

    def decorate(test: Test) -> Test:
        @functools.wraps(test)
        def each(*own: Any, **fixtures: Any) -> None:
            failures = _Failures()
            for row in listed:
                try:
                    test(*own, **row, **fixtures)
                except _FAILURES as error:
                    failures.add(row, error)
                finally:
                    forget_tracebacks(row)
            failures.tell(len(listed))

        @functools.wraps(test)
        async def each_async(*own: Any, **fixtures: Any) -> None:
            failures = _Failures()
            for row in listed:
                try:
                    await test(*own, **row, **fixtures)
                except _FAILURES as error:
                    failures.add(row, error)
                finally:
                    forget_tracebacks(row)
            failures.tell(len(listed))

        chosen: Any = each_async if inspect.iscoroutinefunction(test) else each
        signature = inspect.signature(test)
        left = [each for name, each in signature.parameters.items() if name not in arguments]
        chosen.__signature__ = signature.replace(parameters=left)
        return chosen

    return decorate


_FAILURES = (Exception, pytest.fail.Exception)


class _Failures:
    def __init__(self) -> None:
        self._told: list[str] = []

    def add(self, row: dict[str, Any], error: BaseException) -> None:
        values = ", ".join(f"{name}={value!r:.{SHOWN}}" for name, value in row.items())
        shown = pytest.ExceptionInfo.from_exception(error).getrepr(style="short")
        self._told.append(f"{values}\n{shown}")

    def tell(self, rows: int) -> None:
        if self._told:
            told = "\n\n".join(self._told)
            pytest.fail(f"{len(self._told)} of {rows} cases failed:\n\n{told}", pytrace=False)
