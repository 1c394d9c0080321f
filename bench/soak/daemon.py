"""The daemon of a soak: ``inferd serve``, extended to report further numbers on SIGUSR1.

``python -m bench.soak.daemon REPORT`` writes a JSON file, again for each signal. It has the tasks of the
event loop, and the backends and streams that still exist in the process.
"""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import sys
from pathlib import Path
from types import FrameType

from inferd import cli
from inferd.engine.backend import Backend, Stream


def inventory() -> dict[str, int]:
    gc.collect()
    found = gc.get_objects()
    return {
        "tasks": len(asyncio.all_tasks()),
        "backends": sum(isinstance(each, Backend) for each in found),
        "streams": sum(isinstance(each, Stream) for each in found),
    }


def main() -> int:
    report = Path(sys.argv[1])

    def tell(number: int, frame: FrameType | None) -> None:
        written = report.with_suffix(".new")
        written.write_text(json.dumps(inventory()))
        written.replace(report)

    signal.signal(signal.SIGUSR1, tell)

    return cli.main(["serve"])


if __name__ == "__main__":
    sys.exit(main())
