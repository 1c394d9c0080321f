"""Any config file is either read or refused with one sentence that names it."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from inferd.config import sources
from inferd.config.keys import BACKEND_KEYS, MODEL_KEYS
from inferd.config.settings import OPTIONS
from inferd.errors import ConfigError

KEYS = sorted(
    {part for option in OPTIONS if option.key for part in option.key.split(".")}
    | {key.name for keys in (*BACKEND_KEYS.values(), MODEL_KEYS) for key in keys}
    | {"backends", "model", "kind", "mmproj", "$schema", "", "nonsense"}
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9)
    | st.sampled_from([*BACKEND_KEYS, "127.0.0.1:1", "https://a", "/p"])
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=25,
)


@given(VALUES | st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5))
def test_any_json_is_read_or_refused(content: Any) -> None:
    with TemporaryDirectory() as directory:
        path = Path(directory) / "c.json"
        path.write_text(json.dumps(content))
        result = sources.read({"config": path}, {"HOME": directory})
    if result.problem is not None:
        assert isinstance(result.problem, ConfigError)
        assert result.serving or str(result.problem).startswith(f"config file {path}: ")
        assert "\n" not in str(result.problem)
    else:
        assert result.settings.backends
