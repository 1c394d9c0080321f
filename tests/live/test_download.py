"""A daemon that downloads its model over https while it boots."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from inferd.store.models import ModelStore
from tests.daemon_process import DaemonProcess, until
from tests.tiny_model import CONTENT, DIGEST, load, tiny
from tests.tls_server import stall, tls_server, trusted

HALF = len(CONTENT) // 2


def test_a_signal_ends_a_download_which_resumes_later(
    daemon: Callable[..., DaemonProcess], short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ca = trustme.CA()
    environment = trusted(ca, short_dir)
    store = ModelStore(short_dir / "models")
    config = short_dir / "config.json"
    with tls_server(CONTENT, ca) as server:
        model = {"name": "tiny", "sha256": DIGEST, "source_url": server.url, "size_bytes": len(CONTENT)}
        config.write_text(json.dumps({"backends": [{"kind": "llamacpp", "name": "m", "model": model}]}))
        server.plan = [stall(HALF)]
        process = daemon(config=config, backend="", MODELS_HOME=store.home, **environment)
        with process.subscribe() as admin:
            frame = admin.frame()
            while "downloaded_bytes" not in frame:
                frame = admin.frame()
            assert frame == {
                "id": "admin",
                "type": "status",
                "status": "loading_model",
                "phase": "download",
                "downloaded_bytes": 0,
                "total_bytes": len(CONTENT),
                "source_url": server.url,
            }
            part = store.partial_dir(DIGEST) / "data.tmp"
            until(lambda: part.stat().st_size == HALF)
            process.signal(signal.SIGTERM)
            assert process.wait() == 0
        assert not process.uds.exists()
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        load(store, tiny(server.url), auto_pull=True).close()
        assert server.ranges == [None, f"bytes={HALF}-"]
