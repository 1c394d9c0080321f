"""Checks that 30,000 requests with an unread stderr produce 30,000 records in the activity log.

``python -m bench.bars.unread_stderr`` ends with exit status 1 if a record is missing.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.daemon_process import Wire, until

REQUESTS = 30_000
BATCH = 100


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="i", dir="/tmp") as directory:
        home = Path(directory)
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(sys.path),
            "HOME": directory,
            "XDG_RUNTIME_DIR": directory,
            "INFERD_BACKEND": "mock",
        }
        command = [sys.executable, "-m", "inferd", "serve"]
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as daemon:
            sock = home / "inferd" / "infer.sock"
            until(sock.exists)
            line = b'{"id":"q","stream":false,"messages":[{"role":"user","content":"hi"}]}\n'
            with Wire(sock) as wire:
                for _ in range(REQUESTS // BATCH):
                    wire.send(line * BATCH)
                    for _ in range(BATCH):
                        assert wire.frame()["type"] == "done"
            daemon.send_signal(signal.SIGTERM)
            code = daemon.wait(60)
        logs = (home / ".inferd" / "logs").glob("inferd*.ndjson*")
        lines = [line for log in logs for line in log.read_text().splitlines()]
    done = sum(json.loads(line)["msg"] == "request_done" for line in lines)
    sys.stdout.write(f"{done} records of {REQUESTS} requests, exit status {code}\n")
    return int(done != REQUESTS or code != 0)


if __name__ == "__main__":
    sys.exit(main())
