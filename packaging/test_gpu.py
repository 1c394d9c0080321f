"""Installs the wheels on a machine with a GPU, and measures: ``packaging/test_gpu.py WHEELHOUSE MODEL``.

WHEELHOUSE has the wheels of inferd, of one companion (``inferd-cuda`` or ``inferd-vulkan``) and of all
their dependencies. No package index is used. MODEL is one GGUF file, or two. The second model does not
fit into the memory of the GPU: it must be refused with the sizes, and must answer on the CPU. Everything
is measured through the daemon, as users would use it: the chosen device, ``inferd bench`` with 1 to 32
answers at once, the same greedy answer twice, the time to cancel an answer, and all this without the GPU.
The numbers are printed as JSON. At the first step that fails, the script ends with the exit code 1.
``--without-gpu`` takes a wheelhouse without a companion and skips the steps that need a GPU, so that the
script itself can be tested.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from test_wheel import GREEDY, QUESTION, Failed, Machine

CHOICE = ("CUDA_VISIBLE_DEVICES", "GGML_VK_VISIBLE_DEVICES")
"""The variables that choose a device are passed on."""

SLOTS = 32
CANCEL = """
import time
from inferd.client import Client, Token
with Client() as client:
    stream = client.generate("Count from one to ten thousand.", max_tokens=2000, temperature=0)
    arrivals = []
    for event in stream:
        arrivals.append(time.perf_counter())
        if len(arrivals) == 33:
            break
    stream.close()
    while client.status().running:
        pass
    gone = time.perf_counter() - arrivals[-1]
print(gone, (arrivals[-1] - arrivals[0]) / 32)
"""
"""Prints the seconds until a cancelled answer no longer counts as active, and the seconds of a step."""


@contextlib.contextmanager
def daemon(user: Machine, model: Path, *options: str) -> Iterator[None]:
    """The user's daemon, which serves ``model``."""
    command = [user.venv / "bin" / "inferd", "serve", "--model-path", model, *options]
    with subprocess.Popen(command, env=user.environment, cwd=user.home, stderr=subprocess.PIPE) as serving:
        try:
            while serving.poll() is None:
                with contextlib.suppress(Failed):
                    user.run("inferd", "status")
                    break
                time.sleep(0.2)
            else:
                assert serving.stderr is not None
                raise Failed(f"inferd serve ended: {serving.stderr.read().decode()[-2000:]}")
            yield
        finally:
            serving.terminate()


def refusal(user: Machine, model: Path) -> str:
    """The error of a daemon whose model does not fit into the memory of the GPU."""
    try:
        with daemon(user, model):
            pass
    except Failed as failure:
        if "gpu_memory_budget_bytes" in str(failure):
            return str(failure)
        raise
    raise Failed(f"{model} fits into the memory of the GPU; give a larger model")


def measured(user: Machine, model: Path, *options: str) -> dict[str, Any]:
    """The measurements of a daemon with these options."""
    with daemon(user, model, "--active-permits", str(SLOTS), "--n-ctx", "2048", *options):
        answers = {user.run("inferd", "run", *GREEDY, QUESTION) for _ in range(2)}
        if len(answers) != 1:
            raise Failed(f"the greedy text differs: {answers}")
        bench = user.run("inferd", "bench", "--json", "--streams", str(SLOTS))
        gone, step = map(float, user.run("python", "-c", CANCEL).split())
        return {"answer": answers.pop(), "bench": json.loads(bench), "cancel_secs": gone, "step_secs": step}


def check(wheelhouse: Path, models: list[Path], gpu: bool, scratch: Path) -> dict[str, Any]:
    user = Machine(scratch / "user", sys.executable)
    user.environment |= {name: os.environ[name] for name in CHOICE if name in os.environ}
    names = ["inferd"] + [
        f"inferd-{each}" for each in ("cuda", "vulkan") if [*wheelhouse.glob(f"inferd_{each}*")]
    ]
    user.run("pip", "install", "--no-index", "--find-links", str(wheelhouse), *names)
    told: dict[str, Any] = {"installed": user.run("inferd", "--version", "--verbose").splitlines()}
    if gpu:
        told["gpu"] = measured(user, models[0], "--require-gpu")
        for large in models[1:]:
            told["refusal"] = refusal(user, large)
            with daemon(user, large, "--n-gpu-layers", "0"):
                told["too large"] = user.run("inferd", "run", *GREEDY, QUESTION)
    told["cpu"] = measured(user, models[0], "--n-gpu-layers", "0")
    return told


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheelhouse", type=Path)
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL")
    parser.add_argument("--without-gpu", action="store_true")
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="ifd-", dir="/tmp"))
    models = [model.resolve() for model in options.models]
    try:
        told = check(options.wheelhouse.resolve(), models, not options.without_gpu, scratch)
    except Failed as failure:
        print(f"test_gpu: {failure}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(json.dumps(told, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
