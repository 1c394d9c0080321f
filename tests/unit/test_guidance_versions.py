"""llguidance's C interface, with the lowest version that pyproject.toml allows and with the installed one."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOWEST = re.search(r'"llguidance>=([\d.]+),', (ROOT / "pyproject.toml").read_text("utf-8"))
PROGRAM = """
import importlib, sys
from inferd.engine.local import _llama
print(_llama.open_guidance(importlib.import_module("llguidance._lib").__file__))
from tests.unit.test_schemas import allows, guides, hold, properties
held = hold(properties(n={"type": "integer", "maximum": 9}, s={"type": "string", "pattern": "^a+$"}))
guide = guides().value(held)
print(allows(held, '{"n":9,"s":"aa"}'), allows(held, '{"n":10,"s":"aa"}'), guide.forced() != [])
"""


@pytest.mark.parametrize("which", ["lowest", "installed"])
def test_a_version_enforces_a_schema(which: str, tmp_path: Path) -> None:
    assert LOWEST is not None
    version = LOWEST[1] if which == "lowest" else importlib.metadata.version("llguidance")
    path = [str(ROOT)]
    if which == "lowest":
        install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(tmp_path)]
        subprocess.run([*install, f"llguidance=={version}"], check=True)
        path.insert(0, str(tmp_path))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
    )
    name, outcome = done.stdout.splitlines()
    assert name.startswith(f"llguidance@{version} ")
    assert outcome == "True False True"
