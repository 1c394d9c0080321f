"""Measures how long another client is delayed by clients that left while their requests were being prepared.

``python -m bench.bars.leaving --model FILE.gguf`` prints the time to the first token of a plain request. It
measures pairs: the request alone, and the request just after ten clients with large schemas have left.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from pathlib import Path

from bench.bars.engines import ask, last, say, serving
from inferd.client.admin import AdminClient
from tests.daemon_process import Wire, until

LEAVERS = 10
_numbers = itertools.count()
_digits = itertools.cycle(range(10))


def large_schema() -> dict[str, object]:
    """A schema that no request had before, and that is nearly as large as a line may be."""
    names = [f"property {next(_numbers)}" for _ in range(1000)]
    return {"type": "object", "properties": {name: {"type": "string"} for name in names}}


def first_token(wire: Wire) -> float:
    """In seconds."""
    # All have the same number of tokens that are not cached: one digit differs from the last prompt.
    content = f"Write the numbers from one to a thousand. {next(_digits)}"
    begun = time.monotonic()
    ask(wire, 1, messages=[{"role": "user", "content": content}])
    wire.frame()
    took = time.monotonic() - begun
    last(wire)
    return took


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--count", type=int, default=20, help="pairs")
    options = parser.parse_args()
    settings = {
        "backend": "llamacpp",
        "model_path": options.model,
        "n_ctx": 1024,
        "queue_depth": LEAVERS,
        "spare_engine": "false",  # its start would fall into the measurement
    }
    alone, behind = [], []
    with (
        tempfile.TemporaryDirectory(prefix="i", dir="/tmp") as directory,
        serving(Path(directory) / "p", **settings) as process,
        AdminClient(process.admin) as admin,
        process.connect() as wire,
    ):
        first_token(wire)
        for _ in range(options.count):
            alone.append(first_token(wire))
            leavers = [process.connect() for _ in range(LEAVERS)]
            for leaver in leavers:
                ask(leaver, 1, json_schema=large_schema())
            until(lambda: _present(admin) == LEAVERS)
            for leaver in leavers:
                leaver.close()
            behind.append(first_token(wire))
            until(lambda: _present(admin) == 0)
    ratios = [b / a for a, b in zip(alone, behind, strict=True)]
    median = statistics.median
    say(
        f"first token alone {median(alone) * 1e3:.1f} ms, behind {LEAVERS} clients that left"
        f" {median(behind) * 1e3:.1f} ms; median of the ratios {median(ratios):.2f} (most {max(ratios):.2f})"
        f" over {options.count} pairs"
    )
    return 0


def _present(admin: AdminClient) -> int:
    """The number of requests that run or wait."""
    state = admin.status()
    return len(state.running) + len(state.waiting)


if __name__ == "__main__":
    sys.exit(main())
