"""Runs the SDKs: ``python -m bench.sdks --work DIR``.

Installs two generations of the Python SDKs and the Node SDKs, and frameworks built on them, into DIR, from
the package indexes that pip and npm use. Then starts a daemon with the default model and its HTTP bridge,
runs the checks, and prints a table. The exit status is 1 if a check fails. ``--only`` runs one part. The part
``typed`` requests answers that conform to Pydantic models and Zod schemas.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from inferd.config import paths
from tests.demo_model import demo_model
from tests.http_bridge import BridgeProcess

HERE = Path(__file__).parent
PYTHON = {
    "old": ("openai==1.109.1", "anthropic==0.125.0", "ollama==0.6.1"),
    "new": ("openai==3.57.0", "anthropic==2.14.0", "ollama==0.6.3"),
    "frameworks": (
        "pydantic-ai-slim[openai]==2.68.0",
        "langchain-openai==1.7.4",
        "langchain-ollama==1.1.0",
        "llm==0.36",
    ),
    "agents": ("instructor==1.17.0", "openai-agents==0.24.0", "smolagents[openai]==1.26.0"),
    "litellm": ("litellm==1.110.2",),
    "llama-index": ("llama-index-llms-ollama==0.11.0", "llama-index-llms-openai-like==0.8.1"),
}
"""Each in an environment of its own, because their requirements conflict."""
NODE = {
    "old": ("openai@5", "@anthropic-ai/sdk@0.91.1", "ollama@0.6.0"),
    "new": ("openai@6.49.0", "@anthropic-ai/sdk@1.14.0", "ollama@0.6.4"),
    "typed": ("openai@6.49.0", "@anthropic-ai/sdk@1.14.0", "ollama@0.6.4", "zod@4.6.7"),
}
PARTS = (*PYTHON, "typed")


def python_of(work: Path, age: str) -> list[str]:
    """The command that runs Python in the environment of one generation of SDKs."""
    if age == "typed":
        return [sys.executable, str(HERE / "typed_client.py")]  # the tests need the same SDKs
    home = work / f"python-{age}"
    python = home / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", home], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PYTHON[age]], check=True)
    client = "python_client.py" if age in NODE else "frameworks_client.py"
    return [str(python), str(HERE / client)]


def node_of(work: Path, age: str) -> list[str]:
    """The same for Node; empty without Node."""
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        return []
    home = work / f"node-{age}"
    if not (home / "node_modules").exists():
        home.mkdir(parents=True, exist_ok=True)
        subprocess.run([npm, "install", "--silent", "--prefix", home, *NODE[age]], check=True)
    client = "typed_client.mjs" if age == "typed" else "node_client.mjs"
    shutil.copy(HERE / client, home)
    return [node, str(home / client)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", choices=PARTS)
    given = parser.parse_args()
    work = given.work.absolute()
    ages = PARTS if given.only is None else (given.only,)
    commands = [python_of(work, age) for age in ages] + [node_of(work, age) for age in ages if age in NODE]
    failed = 0
    demo_model()
    with BridgeProcess(MODELS_HOME=paths.models_home(), n_ctx=2048) as process:
        model = process.status().backends[0]["model"]
        environment = {**os.environ, "HOME": str(process.dir), "XDG_RUNTIME_DIR": str(process.dir)}
        for command in filter(None, commands):
            with subprocess.Popen(
                [*command, process.base, model, sys.executable],
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
            ) as client:
                assert client.stdout is not None
                for line in client.stdout:
                    told = json.loads(line)
                    failed += bool(told["wrong"])
                    outcome = told["wrong"] or told.get("note", "passed")
                    print(f"| {told['sdk']} | {told['check']} | {outcome} |", flush=True)
            failed += bool(client.returncode)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
