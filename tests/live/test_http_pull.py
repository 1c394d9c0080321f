"""Downloads over HTTP: the steps of a pull, its end with the client, and who may start one."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from inferd.store.models import Manifest, ModelStore, Provenance
from tests.browser import Browser, needs_browser
from tests.daemon_process import until
from tests.http_bridge import BridgeProcess
from tests.lazy import Lazy
from tests.tiny_llama import random_llama
from tests.tls_server import TlsServer, serve, stall, status, tls_server, trusted

ollama = Lazy("ollama")

KEY = "sk-1f2e3d4c5b6a7988"


@pytest.fixture(scope="module")
def content() -> bytes:
    return random_llama().read_bytes()


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextlib.contextmanager
def pulling(short_dir: Path, content: bytes, **options: Any) -> Iterator[tuple[BridgeProcess, TlsServer]]:
    """A daemon whose store knows the model ``far`` and its source, but does not hold its file."""
    ca = trustme.CA()
    with tls_server(content, ca) as server:
        host = server.base.removeprefix("https://")
        source = Provenance(registry="https", repo=host, filename="m.gguf")
        known = Manifest(
            name="far", blob=f"sha256:{digest_of(content)}", size_bytes=len(content), source=source
        )
        ModelStore(short_dir).write_manifest(known)
        given = {"MODELS_HOME": short_dir, "threads": 1, "n_ctx": 256, **trusted(ca, short_dir), **options}
        with BridgeProcess(mock={}, **given) as process:
            yield process, server


def test_a_pull_ends_with_its_client_and_a_later_one_resumes_it(short_dir: Path, content: bytes) -> None:
    half = len(content) // 2
    with pulling(short_dir, content) as (process, server), ollama.Client(process.base) as client:
        assert [model.model for model in client.list().models] == ["mock"]  # the file is not there
        server.plan = [stall(half)]
        part = ModelStore(short_dir).partial_dir(digest_of(content)) / "data.tmp"
        with httpx.stream("POST", f"{process.base}/api/pull", json={"name": "far"}, timeout=60) as answer:
            assert answer.headers["content-type"] == "application/x-ndjson"
            told = answer.iter_lines()
            assert "pulling manifest" in next(told)
            until(lambda: part.exists() and part.stat().st_size == half)
        until(lambda: any(event["gone"] for event in process.events("http_request")))
        steps = list(client.pull("far", stream=True))
        assert server.ranges == [None, f"bytes={half}-"]
        assert (steps[0].status, steps[-1].status) == ("pulling manifest", "success")
        last = [step for step in steps if step.total][-1]
        assert (last.digest, last.completed) == (f"sha256:{digest_of(content)}", len(content))
        assert client.pull("far").status == "success"  # it is there
        answer = client.chat("far", [{"role": "user", "content": "hi"}], options={"num_predict": 1})
        assert answer.eval_count == 1


def test_a_pull_that_fails_or_is_not_allowed(short_dir: Path, content: bytes) -> None:
    keys = short_dir / "keys"
    keys.write_text(f"ada {KEY}\nops {KEY}-o scopes=admin\n")
    keys.chmod(0o600)
    with pulling(short_dir, content, http_key_file=keys) as (process, server):
        server.plan = [status(404)]

        def pull(name: str, key: str = f"{KEY}-o", **more: object) -> httpx.Response:
            body = {"model": name, **more}
            headers = {"x-api-key": key}
            return httpx.post(f"{process.base}/api/pull", json=body, headers=headers, timeout=60)

        answer = pull("far")
        assert answer.status_code == 200  # the first step came before the failure
        assert "404" in answer.text.splitlines()[-1]
        assert pull("far", KEY).status_code == 403
        assert pull("mock", KEY).status_code == 200  # what is there needs no download
        assert pull("none").status_code == 404
        for source in (f"{server.base}/m.gguf", "file:/etc/hostname"):
            refused = pull(source)
            assert refused.status_code == 400
            assert "inferd pull" in refused.json()["error"]


@needs_browser
def test_a_model_is_pulled_on_the_page(short_dir: Path, content: bytes) -> None:
    with pulling(short_dir, content) as (process, server), Browser() as browser:
        server.plan = [stall(len(content) // 2), status(404), serve]
        browser.open(process.base)
        browser.click("nav a[data-view=models]")
        browser.type("#pull-name", "far\ue007")
        browser.until("return document.querySelector('#pull-step').innerText.includes(' % of ')")
        browser.click("#pull-stop")
        browser.until("return document.querySelector('#pull-step').innerText.includes('stopped')")
        browser.click("#pull-start")
        browser.until("return document.querySelector('#pull-step').innerText.includes('404')")
        browser.click("#pull-start")
        browser.until("return document.querySelector('#pull-step').innerText.includes('in the store')")
        browser.until("return document.querySelector('[data-model=far]')?.textContent === 'Load'")
