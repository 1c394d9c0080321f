"""Starts the daemon of a replica: ``python -m inferd.ray.daemon CONFIG``. The daemon ends when its parent,
the Ray actor, ends."""

from __future__ import annotations

import os
import sys

from inferd.cli import main
from inferd.engine.local.child import cage

if __name__ == "__main__":
    cage.die_with_parent(os.getppid())
    sys.exit(main(["serve", "--config", sys.argv[1]]))
