"""Checks the accessibility of the page: ``python -m bench.axe FILE``. FILE is axe.min.js of the npm package
axe-core.

It brings the page of a daemon into each of its states in Chromium, including those while an answer is
streamed, a model is downloaded and a model is loaded. axe-core checks each state in light and dark, and at
the width of a phone. The exit status is 1 if there is a serious or critical violation.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import trustme

from bench.quiet import family
from inferd.store.models import Manifest, ModelStore, Provenance
from tests.browser import Browser
from tests.daemon_process import until
from tests.http_bridge import BridgeProcess
from tests.tiny_llama import random_llama
from tests.tiny_model import stock
from tests.tls_server import stall, tls_server, trusted

FAULTS = ("serious", "critical")
SIZES = ((1200, 800), (400, 800))
THEMES = ("light", "dark")
ANSWER = (
    "## Rivers\n\nSome **bold** text, `code` and a [link](https://example.org).\n\n",
    "| a | b |\n|---|--:|\n| 1 | 2 |\n\n```python\nif a < b:\n    pass\n```\n",
    "> quoted\n\n1. first\n2. second\n",
)
IDLE = "return document.querySelector('#send').textContent === 'Send'"


class Check:
    """axe-core in a browser. ``state`` checks what the page shows now and prints a row."""

    def __init__(self, browser: Browser, axe: str) -> None:
        self._browser = browser
        self._axe = axe
        self.faults = 0

    def state(self, name: str) -> None:
        for size in SIZES:
            self._browser.resize(*size)
            for theme in THEMES:
                self._set_theme(theme)
                found = self._violations()
                bad = [each for each in found if each["impact"] in FAULTS]
                self.faults += len(bad)
                told = "; ".join(f"{each['id']} ({each['impact']}): {each['nodes']}" for each in found)
                print(f"| {name} | {size[0]} px | {theme} | {told or 'none'} |", flush=True)
        self._browser.resize(*SIZES[0])

    def _set_theme(self, theme: str) -> None:
        # A click of the button, which a dialog would cover.
        while self._browser.js("return document.documentElement.dataset.theme") != theme:
            self._browser.js("document.querySelector('#theme').click()")

    def _violations(self) -> list[dict[str, Any]]:
        if not self._browser.js("return typeof window.axe === 'object'"):
            self._browser.js(self._axe)
        found: list[dict[str, Any]] = self._browser.js(
            "return axe.run().then(({ violations }) => violations.map(({ id, impact, nodes }) =>"
            " ({ id, impact, nodes: nodes.map((node) => node.target.join(' ')).join(', ') })))"
        )
        return found


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[BridgeProcess]:
    """A daemon with a gated mock. Its store has a model ``talker``, and knows a model ``far``, whose download
    stops halfway."""
    authority = trustme.CA()
    near, far = (random_llama(layers).read_bytes() for layers in (2, 3))
    store = ModelStore(folder)
    stock(store, "talker", near)
    with tls_server(far, authority) as server:
        server.plan = [stall(len(far) // 2)]
        source = Provenance(registry="https", repo=server.base.removeprefix("https://"), filename="m.gguf")
        digest = hashlib.sha256(far).hexdigest()
        store.write_manifest(
            Manifest(name="far", blob=f"sha256:{digest}", size_bytes=len(far), source=source)
        )
        options: dict[str, Any] = {"MODELS_HOME": folder, "threads": 1, "n_ctx": 256}
        mock = {"gate": True, "tape": ANSWER, "repeat": 1}
        with BridgeProcess(mock=mock, **options, **trusted(authority, folder)) as process:
            yield process.wait_ready()


@contextlib.contextmanager
def stopped_load(browser: Browser, process: BridgeProcess) -> Iterator[None]:
    """Loads ``talker``, whose new engine process is stopped meanwhile."""
    before = set(family(process.process.pid))
    browser.click("[data-model=talker]")
    engines: set[int] = set()

    def begun() -> bool:
        engines.update(set(family(process.process.pid)) - before)
        return bool(engines)

    until(begun)
    for pid in engines:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in engines:
            os.kill(pid, signal.SIGCONT)


def walk(check: Check, browser: Browser, process: BridgeProcess) -> None:
    """Every state of the page."""
    browser.open(process.base)
    browser.until("return document.querySelector('#model').value")
    check.state("chat, empty")
    browser.type("#prompt", "hello\ue007")
    process.release(1)
    browser.until("return document.querySelector('.message.assistant .text h3')")
    check.state("chat, an answer is streamed")
    browser.click("nav a[data-view=live]")
    browser.until("return document.querySelector('#request-rows').innerText.includes('runs')")
    check.state("live, a request runs")
    browser.click("nav a[data-view=chat]")
    process.release(9)
    browser.until(IDLE)
    browser.click("#settings-button")
    browser.type("#set-schema", "{")
    browser.type("#prompt", "again\ue007")
    browser.until("return document.querySelector('#notice').textContent")
    check.state("chat, an answer, the settings and an error")

    browser.click("nav a[data-view=models]")
    browser.until("return document.querySelector('[data-model=talker]')")
    check.state("models")
    browser.type("#pull-name", "far\ue007")
    browser.until("return document.querySelector('#pull-step').textContent.includes(' % of ')")
    check.state("models, a download runs")
    with stopped_load(browser, process):
        browser.until("return document.querySelector('#model-rows').textContent.includes('loading')")
        check.state("models, a download runs and a model is loaded")
        for view in ("live", "chat"):
            browser.click(f"nav a[data-view={view}]")
            check.state(f"{view}, a download runs and a model is loaded")
    browser.click("nav a[data-view=models]")
    browser.until("return document.querySelector('[data-model=talker]')?.textContent === 'Unload'")
    browser.click("#pull-stop")
    browser.until("return document.querySelector('#pull-step').textContent.includes('stopped')")
    check.state("models, one loaded and a download stopped")
    browser.type("#pull-name", "\ue009a\ue000none\ue007")
    browser.until("return !document.querySelector('#pull-step').textContent.includes('stopped')")
    browser.until("return !document.querySelector('#pull-start').disabled")
    check.state("models, a download failed")
    browser.js("document.querySelector('#key-dialog').showModal()")
    check.state("the dialog for a key")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("axe", type=Path, help="axe.min.js of the package axe-core")
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="i", dir="/tmp") as folder,
        serving(Path(folder)) as process,
        Browser() as browser,
    ):
        check = Check(browser, given.axe.read_text("utf-8"))
        walk(check, browser, process)
    print(f"{check.faults} violations are serious or critical")
    return 1 if check.faults else 0


if __name__ == "__main__":
    sys.exit(main())
