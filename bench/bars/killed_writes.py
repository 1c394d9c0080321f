"""Checks that a killed writer of cache files leaves no truncated file and no temporary file.

``python -m bench.bars.killed_writes [--kills 50] [--mib 24]`` starts a process that writes states one after
the other, kills it with SIGKILL at a random moment, and opens the directory as the next daemon does. The exit
status is 1 if a file is damaged, if anything besides state files and the key remains, or if the files exceed
their budget.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from inferd.store.states import Head, StateFiles

BUDGET_FILES = 4


def write_for_ever(directory: Path, mib: int) -> None:
    files = StateFiles(directory, BUDGET_FILES * (mib + 1) << 20)
    with tempfile.TemporaryFile() as state:
        state.write(os.urandom(1 << 20) * mib)
        state.flush()
        print("writes", flush=True)
        for number in range(1 << 30):
            tokens = number.to_bytes(4, "little") * 100
            size = mib << 20
            head = Head(owner="bar", made_by="bar", scope=b"1", session=b"", tokens=tokens, size=size)
            files.save(head, state.fileno())


def faults(directory: Path, mib: int) -> tuple[int, list[str]]:
    """The number of files, and the fault, if any."""
    parts = len([*directory.glob("*.part")])
    files = StateFiles(directory, BUDGET_FILES * (mib + 1) << 20)
    found = [] if not files.removed else [f"{files.removed} files were damaged"]
    kept = files.files()
    for file in kept:
        sound = files.fetch(file.number, "bar")
        if sound is None:
            found.append(f"{file.path.name} is not sound")
        else:
            os.close(sound[0])
    others = [path.name for path in directory.iterdir() if path.suffix != ".state" and path.name != "key"]
    found += [f"{name} is left" for name in others]
    if sum(file.bytes for file in kept) > BUDGET_FILES * (mib + 1) << 20:
        found.append("the files take more than their budget")
    return parts, found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--mib", type=int, default=24, help="size of a state")
    parser.add_argument("--writer", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.writer is not None:
        write_for_ever(options.writer, options.mib)
    draw = random.Random(1)
    in_the_middle, wrong = 0, 0
    with tempfile.TemporaryDirectory(prefix="inferd-bar-") as name:
        directory = Path(name) / "cache"
        command = [sys.executable, "-m", "bench.bars.killed_writes", "--mib", str(options.mib)]
        for kill in range(options.kills):
            with subprocess.Popen([*command, "--writer", str(directory)], stdout=subprocess.PIPE) as writer:
                assert writer.stdout is not None
                writer.stdout.readline()
                time.sleep(draw.uniform(0.0, 0.25))
                writer.kill()
            parts, found = faults(directory, options.mib)
            in_the_middle += parts > 0
            wrong += bool(found)
            for line in found:
                print(f"kill {kill + 1}: {line}")
    print(f"{options.kills} kills, {in_the_middle} in the middle of a file: {wrong} left something wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
