"""Runs one check of a package and prints its outcome, a JSON object a line: the package with its version, the
check, and an empty text or the error. Needs nothing beyond Python: it runs in the environment of the package.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable
from typing import Any

CUT = "cut off by the limit of tokens"


def check(package: str, name: str, run: Callable[[], Any]) -> None:
    """``run`` returns whether its answer is correct, or ``CUT``; an error that it raises is printed."""
    found: Any = None
    try:
        found = run()
        wrong = "" if found else "an empty answer"
    except Exception as error:
        wrong = f"{type(error).__name__}: {error}"[:200]
    told = {"sdk": f"{package} {importlib.metadata.version(package)}", "check": name, "wrong": wrong}
    told["note"] = CUT if found == CUT else "passed"
    print(json.dumps(told), flush=True)
