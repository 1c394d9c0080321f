"""kill -9 during downloads: the store stays valid, and the next process resumes.

The processes are forked from a process that has imported everything, so each costs only milliseconds. Each is
killed after a random number of reported steps, or a little later.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from inferd.store.models import ModelStore
from inferd.store.partial import read_mark
from inferd.store.upkeep import remove
from tests.tiny_model import CONTENT, DIGEST, load, tiny
from tests.tls_server import TlsServer, tls_server, trusted

ROOT = Path(__file__).parents[2]
KILLS = 50
STEPS = 22  # a few more reports than one undisturbed download makes

NURSERY = """
import json, os, signal, ssl, sys, threading, time
from pathlib import Path

import httpx, truststore

from inferd.store import source
from inferd.store.models import ModelStore
from tests.tiny_model import load, tiny

source.REPORT_SECS = 0
home, url = Path(sys.argv[1]), sys.argv[2]
httpx.Client().close()  # what it imports is there for all children

def fetch(reports):
    load(ModelStore(home), tiny(url), lambda *_: os.write(reports, b"x"), auto_pull=True).close()

for line in sys.stdin:
    steps, later = json.loads(line)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        fetch(writer)
        os._exit(0)
    os.close(writer)
    for _ in range(steps):
        if not os.read(reader, 1):
            break
    time.sleep(later)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(reader)
    print(status, flush=True)
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TlsServer]:
    ca = trustme.CA()
    environment = trusted(ca, tmp_path)
    with tls_server(CONTENT, ca) as server, pytest.MonkeyPatch.context() as patch:
        server.pause = 0.001
        for name, value in environment.items():
            patch.setenv(name, value)
        yield server


def check(store: ModelStore) -> None:
    """Every name has its complete file, and every file has the content that its path names."""
    for path in store.home.glob("manifests/*.json"):
        manifest = store.manifest(path.stem)
        assert manifest is not None
        assert store.blob_size(manifest.sha256) == manifest.size_bytes
    for path in store.home.glob("blobs/sha256/*/*/data"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.parent.name


def held(store: ModelStore) -> int:
    """The number of bytes that a dead process has left for the next one."""
    partial = store.partial_dir(DIGEST)
    path = partial / "data.tmp"
    return path.stat().st_size if path.exists() and read_mark(partial) is not None else 0


def test_killed_at_fifty_random_points(tmp_path: Path, server: TlsServer) -> None:
    store = ModelStore(tmp_path / "home")
    chance = random.Random(9)
    killed = resumed = completed = 0
    nursery = subprocess.Popen(
        [sys.executable, "-c", NURSERY, str(store.home), server.url],
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), *sys.path))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert nursery.stdin is not None
    assert nursery.stdout is not None
    try:
        while killed < KILLS:
            before = held(store)
            asked = len(server.requests)
            nursery.stdin.write(json.dumps((chance.randrange(STEPS), chance.random() * 0.002)) + "\n")
            nursery.stdin.flush()
            status = int(nursery.stdout.readline())
            assert status in (0, signal.SIGKILL)
            killed += status == signal.SIGKILL
            check(store)
            expected = f"bytes={before}-" if before else None
            assert server.ranges[asked:] in ([], [expected])
            assert held(store) >= before or store.blob_size(DIGEST) is not None
            resumed += bool(before and server.ranges[asked:])
            if store.manifest("tiny") is not None:
                completed += 1
                remove(store, "tiny")
    finally:
        nursery.stdin.close()
        nursery.wait()
        nursery.stdout.close()
    assert resumed >= 5
    assert completed >= 1
    load(store, tiny(server.url), auto_pull=True).close()
    assert store.blob_path(DIGEST).read_bytes() == CONTENT
