"""Tests the client crates 0.2.1 and 0.8.0 of the Rust inferd against this daemon.

``python -m bench.peers.rust_clients`` builds the programs in ``rust/`` with cargo, below ``--target``; cargo
downloads the crates by name and version. The programs talk to a daemon with the mock backend. The exit status
is 1 if a check fails. Without cargo the script only prints that.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.daemon_process import DaemonProcess

PROGRAMS = Path(__file__).parent / "rust"
CALL = {"id": "tc-1", "name": "weather", "arguments": '{"city":"Oslo"}'}


def build(program: str, target: Path) -> Path:
    """The compiled program; raises CalledProcessError."""
    source = target / "sources" / program  # cargo writes a lock file beside the manifest
    shutil.copytree(PROGRAMS / program, source, dirs_exist_ok=True)
    subprocess.run(
        ["cargo", "build", "--release", "-q", "-j1", "--manifest-path", source / "Cargo.toml"],
        env=os.environ | {"CARGO_TARGET_DIR": str(target)},
        check=True,
    )
    return target / "release" / program


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", type=Path, default=Path(tempfile.gettempdir()) / "inferd-rust-clients")
    options = parser.parse_args()
    if shutil.which("cargo") is None:
        sys.stdout.write("skipped: there is no cargo; install Rust from https://rustup.rs\n")
        return 0
    failed = False
    for program in ("client_0_2", "client_0_8"):
        built = build(program, options.target)
        with tempfile.TemporaryDirectory(prefix="i", dir="/tmp") as directory:
            tape = ["Hel", "lo", CALL]
            daemon = DaemonProcess(Path(directory) / "0", {"embed": 1, "rerank": 1}, {"tape": tape})
            daemon.wait_ready()
            sys.stdout.write(f"{program}\n")
            sys.stdout.flush()
            environment = {"PATH": os.environ["PATH"], "XDG_RUNTIME_DIR": str(daemon.dir)}
            failed |= subprocess.run([built], env=environment, timeout=60, check=False).returncode != 0
            failed |= daemon.end() != []
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
