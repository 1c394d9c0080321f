"""Builds of inferd to measure: a wheel, a commit of this repository (anything that git resolves), or
``installed``, the inferd of the Python that runs this.

Each wheel and commit is installed into an environment of its own under ``build/bench-ci``, once.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def python_of(build: str) -> Path:
    """The interpreter that has ``build`` installed."""
    if build == "installed":
        return Path(sys.executable)
    wheel = Path(build)
    if wheel.suffix == ".whl":
        name, source = wheel.name, wheel
    else:
        done = subprocess.run(
            ["git", "rev-parse", "--verify", f"{build}^{{commit}}"], cwd=ROOT, capture_output=True, text=True
        )
        if done.returncode != 0:
            raise SystemExit(f"{build!r} is no wheel and no commit: {done.stderr.strip()}")
        name = done.stdout.strip()
        source = ROOT / "build" / "bench-ci" / f"{name}.tree"
        if not source.exists():
            command = ["git", "worktree", "add", "--detach", str(source), name]
            subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    home = ROOT / "build" / "bench-ci" / name
    python = home / "bin" / "python"
    if not (home / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", source], check=True)
        (home / "complete").touch()
    return python
