"""Checks a model that is split over two hosts, which are network namespaces of this machine: its text, its
speed, and the death of a worker.

``python -m bench.bars.rpc --model FILE.gguf`` needs root and ``ip``. One daemon holds the whole model.
Another daemon holds half of its layers, and a worker in the other namespace holds the rest. The texts at
temperature 0 must be equal. Decoding must reach 0.9 of the local speed (the median of interleaved rounds).
When the worker is killed, the request must get a typed error, and the daemon must serve the next request. The
exit status is 1 if one of these fails.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from inferd.client import AdminClient, Client
from inferd.errors import InferdError, RequestFailed

NAMESPACES = ("inferd-here", "inferd-there")
ADDRESSES = ("10.213.77.1", "10.213.77.2")
PORT = 50052
PROMPT = "Explain in simple words how a steam engine works, step by step."
PATIENCE_SECS = 120.0


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@contextlib.contextmanager
def network() -> Iterator[None]:
    """Two namespaces connected by a virtual cable."""
    for name in NAMESPACES:
        ip("netns", "add", name)
    try:
        ip(
            "link",
            "add",
            "inferd0",
            "netns",
            NAMESPACES[0],
            "type",
            "veth",
            "peer",
            "inferd1",
            "netns",
            NAMESPACES[1],
        )
        for number, (name, address) in enumerate(zip(NAMESPACES, ADDRESSES, strict=True)):
            ip("-n", name, "address", "add", f"{address}/24", "dev", f"inferd{number}")
            for device in ("lo", f"inferd{number}"):
                ip("-n", name, "link", "set", device, "up")
        yield
    finally:
        for name in NAMESPACES:
            ip("netns", "delete", name)


@contextlib.contextmanager
def inferd(namespace: str, directory: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(sys.path),
        "HOME": str(directory),
        "XDG_RUNTIME_DIR": str(directory),
    }
    command = ["ip", "netns", "exec", namespace, sys.executable, "-m", "inferd", *arguments]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def daemon(directory: Path, model: Path, workers: list[str]) -> Iterator[Client]:
    directory.mkdir()
    entry = {"kind": "llamacpp", "name": "model", "model_path": str(model), "n_ctx": 2048}
    if workers:
        entry |= {"rpc": workers, "rpc_unprotected": True}
    config = directory / "config.json"
    config.write_text(json.dumps({"backends": [entry], "engine": {"cache_mib": 0, "drafts": "off"}}))
    with inferd(NAMESPACES[0], directory, "serve", "--config", str(config)):
        until_ready(directory / "inferd" / "admin.sock")
        with Client(str(directory / "inferd" / "infer.sock")) as client:
            yield client


def until_ready(admin: Path) -> None:
    end = time.monotonic() + PATIENCE_SECS
    while True:
        try:
            with AdminClient(str(admin), timeout=PATIENCE_SECS) as client:
                client.wait_ready()
                return
        except InferdError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def answer(client: Client, tokens: int) -> tuple[str, float]:
    """The text, and the tokens per second after the first one."""
    parts: list[str] = []
    first = 0.0
    for event in client.generate(PROMPT, max_tokens=tokens, temperature=0.0):
        text = getattr(event, "content", None)
        if text is not None:
            first = first or time.monotonic()
            parts.append(text)
    return "".join(parts), (len(parts) - 1) / (time.monotonic() - first)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=96)
    options = parser.parse_args()
    good = True
    with tempfile.TemporaryDirectory() as name, network():
        root = Path(name)
        endpoint = f"{ADDRESSES[1]}:{PORT}"
        (root / "worker").mkdir()
        with (
            inferd(NAMESPACES[1], root / "worker", "rpc-worker", "--listen", endpoint, "--i-know") as worker,
            daemon(root / "local", options.model, []) as local,
            daemon(root / "split", options.model, [endpoint]) as split,
        ):
            ratios = []
            for number in range(options.rounds):
                pair = {
                    which: answer(client, options.tokens)
                    for which, client in (("local", local), ("split", split))
                }
                same = pair["local"][0] == pair["split"][0]
                good &= same
                ratios.append(pair["split"][1] / pair["local"][1])
                print(
                    f"round {number}: {pair['local'][1]:.1f} and {pair['split'][1]:.1f} tokens/s,"
                    f" same text: {same}"
                )
            median = statistics.median(ratios)
            print(f"decode: {median:.3f} of local ({min(ratios):.3f} to {max(ratios):.3f}); the bar is 0.9")
            good &= median >= 0.9
            good &= killed(split, worker)
    print("good" if good else "NOT GOOD")
    return 0 if good else 1


def killed(client: Client, worker: subprocess.Popen[bytes]) -> bool:
    """Kills the worker's process in the middle of an answer; its parent starts another one."""
    events = client.generate(PROMPT, max_tokens=1500, temperature=0.0)
    next(iter(events))
    (child,) = Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGKILL)
    started = time.monotonic()
    try:
        for _ in events:
            pass
    except RequestFailed as error:
        print(f"{error.wire_code} after {time.monotonic() - started:.2f} s: {error}")
        good = error.wire_code == "backend_unavailable"
    else:
        print("the answer ended as if nothing had happened")
        return False
    while True:
        try:
            answer(client, 4)
        except InferdError as error:
            if time.monotonic() - started > PATIENCE_SECS:
                print(f"no answer again: {error}")
                return False
            time.sleep(0.1)
        else:
            print(f"served again after {time.monotonic() - started:.1f} s")
            return good


if __name__ == "__main__":
    sys.exit(main())
