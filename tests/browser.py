"""A real browser for tests: Chromium without a window, controlled over WebDriver. It is closed at the end."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import pytest

PATIENCE_SECS = 30.0
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
_ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--window-size=1200,800",
)

DRIVER = shutil.which("chromedriver")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

needs_browser = pytest.mark.skipif(
    DRIVER is None or CHROMIUM is None, reason="no chromium and chromedriver on this machine"
)


class Browser:
    """One window. ``js`` runs a function body and returns its result; ``until`` waits until that is true."""

    def __init__(self) -> None:
        self._dir = tempfile.TemporaryDirectory(prefix="inferd-browser-")
        self._driver = subprocess.Popen(
            [str(DRIVER), "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._driver.stdout is not None
        port = None
        while port is None:
            line = self._driver.stdout.readline()
            assert line, "chromedriver has ended"
            port = re.search(r"started successfully on port (\d+)", line)
        # No connection outlives its request, since the window outlives a test.
        self._http = httpx.Client(
            base_url=f"http://127.0.0.1:{port[1]}",
            timeout=PATIENCE_SECS,
            limits=httpx.Limits(max_keepalive_connections=0),
        )
        options = {"binary": CHROMIUM, "args": [*_ARGUMENTS, f"--user-data-dir={self._dir.name}"]}
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        made = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"/session/{made['sessionId']}"

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        answer = self._http.request(method, path, json=body)
        value = answer.json()["value"]
        assert answer.status_code == 200, value
        return value

    def _do(self, path: str, body: dict[str, Any]) -> Any:
        return self._ask("POST", f"{self._session}{path}", body)

    def open(self, url: str) -> None:
        self._do("/url", {"url": url})

    def js(self, script: str, *arguments: object) -> Any:
        return self._do("/execute/sync", {"script": script, "args": [*arguments]})

    def until(self, script: str, *arguments: object) -> Any:
        deadline = time.monotonic() + PATIENCE_SECS
        while not (value := self.js(script, *arguments)):
            assert time.monotonic() < deadline, f"waited in vain for: {script}\n{self.log()}"
            time.sleep(0.02)
        return value

    def _element(self, selector: str) -> str:
        found = self._do("/element", {"using": "css selector", "value": selector})
        return f"/element/{found[_ELEMENT]}"

    def click(self, selector: str) -> None:
        self._do(f"{self._element(selector)}/click", {})

    def type(self, selector: str, text: str) -> None:
        """Types into an element; ``\\ue007`` is Enter, ``\\ue00c`` Escape."""
        self._do(f"{self._element(selector)}/value", {"text": text})

    def text(self, selector: str) -> str:
        return str(self.js("return document.querySelector(arguments[0]).innerText", selector))

    def resize(self, width: int, height: int) -> None:
        self._do("/window/rect", {"width": width, "height": height})

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._ask("GET", f"{self._session}/screenshot")))

    def log(self) -> list[dict[str, Any]]:
        """The browser's log since the last call: script errors, and violations of the content policy."""
        entries: list[dict[str, Any]] = self._do("/se/log", {"type": "browser"})
        return entries

    def close(self) -> None:
        try:
            self._ask("DELETE", self._session)
        finally:
            self._http.close()
            self._driver.terminate()
            self._driver.wait()
            assert self._driver.stdout is not None
            self._driver.stdout.close()
            self._dir.cleanup()

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
