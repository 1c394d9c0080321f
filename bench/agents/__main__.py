"""Runs the agents: ``python -m bench.agents --bin DIR[:DIR] [AGENT …]``.

Each agent that is installed in one of the directories gets a repository with a misspelt word, a daemon of its
own with a scripted backend, and one prompt. An agent passes if its exit status is 0 and the word is
corrected. If an agent fails, the exit status of the script is 1. With ``--record DIR``, the requests are
stored for ``bench.agents.cached``, and agents that can continue a conversation get a second prompt. With
``--model FILE`` a model answers instead of the script, and an agent passes if its exit status is 0 and it
prints text. With ``--silence SECS`` the script is silent before its first answer, like a model that reads a
long prompt on a slow machine.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx

from tests.http_bridge import free_port

WRONG, RIGHT = "hello wrold", "hello world"
PROMPT = f"In greeting.txt, replace '{WRONG}' by '{RIGHT}'."
SECOND = "Thank you. Say in one word which file that was."
RESULT = {True: "one correct edit", False: "one turn"}
START_SECS, AGENT_SECS = 300, 600

ARGUMENTS: Mapping[str, Sequence[str]] = {
    "claude": ("-p", PROMPT, "--allowedTools", "Read,Edit"),
    "codex": ("exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", PROMPT),
    "opencode": ("run", PROMPT),
    "qwen": ("-p", PROMPT, "--approval-mode", "yolo"),
    "pi": ("-p", PROMPT),
    "aider": (
        *("--yes-always", "--no-check-update", "--no-show-model-warnings", "--analytics-disable"),
        *("--edit-format", "whole", "--message", PROMPT, "greeting.txt"),
    ),
}


CONTINUED: Mapping[str, Sequence[str]] = {
    "claude": ("-p", "--continue", SECOND, "--allowedTools", "Read,Edit"),
    "codex": ("exec", "resume", "--last", "--skip-git-repo-check", SECOND),
}


def run(agent: str, path: str, record: Path | None, model: Path | None, secs: float, silence: float) -> str:
    """Runs one agent; returns the fault, or an empty text. With a ``record`` the agent gets a second prompt,
    if it can continue a conversation."""
    with tempfile.TemporaryDirectory(prefix="ifa-", dir="/tmp") as folder:
        home, work, port = Path(folder, "h"), Path(folder, "work"), free_port()
        home.mkdir()
        work.mkdir()
        file = work / "greeting.txt"
        file.write_text(f"{WRONG}\n")
        subprocess.run(["git", "init", "-q", work], check=True)
        env = {
            "PATH": path,
            "PYTHONPATH": os.pathsep.join(str(Path(part).absolute()) for part in sys.path if part),
            "HOME": str(home),
            "XDG_RUNTIME_DIR": str(home),
            "INFERD_HTTP": f"127.0.0.1:{port}",
            "INFERD_BACKEND": "mock",
            "INFERD_LOG_DIR": str(home / "logs"),
            "TERM": "dumb",
            "CI": "1",
        }
        script = [sys.executable, "-m", "bench.agents.scripted", str(file), WRONG, RIGHT, str(silence)]
        if record is not None:
            script.append(str(record / f"{agent}.requests"))
        if model is not None:
            serve = (sys.executable, "-m", "inferd", "serve", "--n-ctx", "0")
            script = [*serve, "--model-path", str(model)]
            del env["INFERD_BACKEND"]
        with (home / "stderr").open("wb") as errors:
            daemon = subprocess.Popen(script, env=env, stdin=subprocess.DEVNULL, stderr=errors)
            try:
                _wait(f"http://127.0.0.1:{port}/health")
                wrong = _ask(agent, ARGUMENTS[agent], env, work, file if model is None else None, secs)
                if not wrong and record is not None and agent in CONTINUED:
                    wrong = _ask(agent, CONTINUED[agent], env, work, file, secs)
            finally:
                daemon.send_signal(signal.SIGTERM)
                daemon.wait()
        return f"{wrong}; {_requests(home)}" if wrong else ""


def _ask(
    agent: str, arguments: Sequence[str], env: Mapping[str, str], work: Path, file: Path | None, secs: float
) -> str:
    """Runs one turn of an agent, after which ``file`` must be correct; returns the fault, or an empty
    text."""
    with subprocess.Popen(
        [sys.executable, "-m", "inferd", "agent", agent, "--", *arguments],
        env=env,
        cwd=work,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as done:
        try:
            said, _ = done.communicate(timeout=secs)
        except subprocess.TimeoutExpired:
            os.killpg(done.pid, signal.SIGKILL)  # the agent, too
            return f"did not end within {secs:g} s"
    tail = " / ".join(said.split("\n")[-12:])
    if file is None and not said.strip():
        return f"said nothing ({done.returncode})"
    if file is not None and file.read_text().strip() != RIGHT:
        return f"the file is not corrected ({done.returncode}): {tail}"
    return f"ended with {done.returncode}: {tail}" if done.returncode else ""


def _requests(home: Path) -> str:
    """What the bridge has answered, for the reason of a fault."""
    log = home / "logs" / "http" / "inferd.ndjson"
    events = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    told = [
        f"{event['path']} {event['status']}{' abandoned' * event['gone']}"
        f" ({event['input_tokens']} + {event['output_tokens']} tokens, {event['total_ms'] / 1e3:.0f} s)"
        for event in events
        if event["msg"] == "http_request" and event["method"] == "POST"
    ]
    return f"requests: {', '.join(told) or 'none'}"


def _wait(url: str) -> None:
    deadline = time.monotonic() + START_SECS
    while True:
        try:
            if httpx.get(url, timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        if time.monotonic() > deadline:
            raise SystemExit("the daemon did not start")
        time.sleep(0.1)


def version(agent: str, path: str) -> str:
    told = subprocess.run(
        [str(shutil.which(agent, path=path)), "--version"], capture_output=True, text=True, check=False
    )
    found = re.search(r"\d+\.\d+\.\d+\S*", told.stdout + told.stderr)
    return found[0] if found else "?"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--bin", required=True, help="directories of the installed agents")
    parser.add_argument("--model", type=Path, metavar="FILE", help="a GGUF file to answer with")
    parser.add_argument("--secs", type=float, default=AGENT_SECS, help="the most time of a turn")
    parser.add_argument("--silence", type=float, default=0.0, metavar="SECS", help="before the first answer")
    parser.add_argument("--record", type=Path, metavar="DIR", help="a directory for the requests")
    parser.add_argument("agents", nargs="*", default=tuple(ARGUMENTS))
    given = parser.parse_args()
    path = f"{given.bin}{os.pathsep}{os.environ['PATH']}"
    failed = 0
    for agent in given.agents:
        if shutil.which(agent, path=path) is None:
            print(f"| {agent} | not installed |", flush=True)
            continue
        wrong = run(agent, path, given.record, given.model, given.secs, given.silence)
        failed += bool(wrong)
        print(f"| {agent} {version(agent, path)} | {wrong or RESULT[given.model is None]} |", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
