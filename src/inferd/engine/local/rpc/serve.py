"""The process of an RPC worker: ``python -m inferd.engine.local.rpc.serve IP:port threads``.

An RPC worker lends the devices of this machine to one engine at a time. The worker's sandbox permits one
listening port, and with a GPU also the files and sockets of the GPU's driver. ``inferd rpc-worker`` starts
the process, and restarts it when it ends.
"""

from __future__ import annotations

import os
import sys

from inferd.engine.local import _llama
from inferd.engine.local.child import cage
from inferd.engine.local.rpc.workers import parts_of


def main(endpoint: str, threads: int) -> int:
    cage.die_with_parent(os.getppid())
    on_gpu = any(device[0] in ("gpu", "igpu") for device in _llama.devices())
    threads = threads or _llama.useful_threads()
    cage.enter("worker-gpu" if on_gpu else "worker", ports=[parts_of(endpoint)[1]])
    _llama.serve_worker(endpoint, threads)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
