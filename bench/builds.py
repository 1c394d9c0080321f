"""The builds of inferd that can be measured: a wheel, a commit, or ``installed``.

A commit is anything that git resolves in this repository; ``installed`` is the inferd of the running Python.
Each wheel and commit is installed once, into a separate environment under ``build/bench-ci``.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def python_of(build: str) -> Path:
    """The interpreter of the environment in which ``build`` is installed."""
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
