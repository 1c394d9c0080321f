"""The functions of the wire protocols and of the log that must be fast: splitting lines, finding repeated
names, encoding token frames and vectors, comparing keys, and writing the fields of log records.

There are two implementations with the same names: ``_fastpath`` is compiled, and ``_purepath`` is plain
Python. The docstrings of ``_purepath`` document both. The environment variable ``INFERD_IMPL`` selects ``c``
(the default) or ``python``. The variable is read once. Importing this module raises ConfigError if the
selected implementation is unavailable.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from inferd.errors import ConfigError

IMPLEMENTATION = os.environ.get("INFERD_IMPL") or "c"

if IMPLEMENTATION not in ("c", "python"):
    raise ConfigError(f"INFERD_IMPL is {IMPLEMENTATION!r}; it must be 'c' or 'python'")

if TYPE_CHECKING or IMPLEMENTATION == "c":
    try:
        from inferd._fastpath import (
            MAX_FRAME_BYTES,
            LineSplitter,
            add_fields,
            count_names,
            decode_utf8,
            escape_json,
            float_rows,
            frame_lines,
            is_utf8,
            joined_fields,
            keys_equal,
            may_repeat_a_name,
            set_aside,
            token_frame,
        )
    except ImportError as missing:
        raise ConfigError(
            f"the compiled module inferd._fastpath cannot be loaded ({missing}); "
            "install inferd again, or set INFERD_IMPL=python to run without it"
        ) from missing
else:
    from inferd._purepath import (
        MAX_FRAME_BYTES,
        LineSplitter,
        add_fields,
        count_names,
        decode_utf8,
        escape_json,
        float_rows,
        frame_lines,
        is_utf8,
        joined_fields,
        keys_equal,
        may_repeat_a_name,
        set_aside,
        token_frame,
    )

__all__ = [
    "IMPLEMENTATION",
    "MAX_FRAME_BYTES",
    "LineSplitter",
    "add_fields",
    "count_names",
    "decode_utf8",
    "escape_json",
    "float_rows",
    "frame_lines",
    "is_utf8",
    "joined_fields",
    "keys_equal",
    "may_repeat_a_name",
    "set_aside",
    "token_frame",
]
