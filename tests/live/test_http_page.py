"""The page at `/`: its responses without a browser, and its behaviour in a real one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from inferd.store.models import ModelStore
from tests.browser import Browser, needs_browser
from tests.daemon_process import until
from tests.http_bridge import BridgeProcess, web
from tests.tiny_llama import random_llama
from tests.tiny_model import stock

KEY = "sk-inferd-0123456789abcdef"
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
HTML = {"Accept": "text/html,application/xhtml+xml"}
ENTER, ESCAPE = "\ue007", "\ue00c"
LAST = "[...document.querySelectorAll('.message.assistant .text')].at(-1)"
IDLE = "return document.querySelector('#send').textContent === 'Send'"

Start = Callable[..., BridgeProcess]


@pytest.fixture
def bridge() -> Iterator[Start]:
    started: list[BridgeProcess] = []

    def start(mock: dict[str, object] | None = None, **options: object) -> BridgeProcess:
        started.append(BridgeProcess(mock={} if mock is None else mock, **options))
        return started[-1].wait_ready()

    yield start
    for process in started:
        process.end()


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    with Browser() as browser:
        yield browser


@pytest.fixture
def browser(window: Browser) -> Iterator[Browser]:
    """The window; its log must be empty at the end."""
    yield window
    complaints = [entry for entry in window.log() if entry["source"] in ("javascript", "security")]
    assert not complaints


def chat(browser: Browser, process: BridgeProcess) -> None:
    """Opens the page with no conversation and a model chosen."""
    browser.open(process.base)
    browser.until("return document.querySelector('#model').value")


def send(browser: Browser, text: str) -> None:
    before = browser.js("return document.querySelectorAll('.message.assistant').length")
    browser.type("#prompt", text + ENTER)
    browser.until("return document.querySelectorAll('.message.assistant').length > arguments[0]", before)


# Without a browser.


def test_a_browser_gets_the_page_and_other_clients_ollamas_sentence(bridge: Start) -> None:
    base = bridge().base
    assert web.get(base).text == "Ollama is running"
    page = web.get(base, headers=HTML)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    for name in ("app.js", "page.css", "icon.svg"):
        assert web.get(f"{base}/page/{name}").headers["x-content-type-options"] == "nosniff"
    for name in ("../app.py", "%2e%2e%2fapp.py", "page_endpoints.py", "nothing.js"):
        assert web.get(f"{base}/page/{name}").status_code == 404


def test_the_page_is_small_and_loads_nothing_from_elsewhere() -> None:
    folder = Path(__file__).parents[2] / "src" / "inferd" / "http" / "page"
    comments = re.compile(r"/\*\*.*?\*/|^\s*//.*$", re.DOTALL | re.MULTILINE)
    code = "".join(comments.sub("", file.read_text()) for file in folder.glob("*.js"))
    assert len(code.encode()) < 40_000
    for file in folder.iterdir():
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "://" not in text.replace(":\\/\\/", ""), file
        assert "innerHTML" not in text, file


def test_the_state_hides_callers_from_other_users(bridge: Start, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"ada {KEY}\nops {KEY}-o scopes=generate,admin\n")
    file.chmod(0o600)
    process = bridge({"gate": True}, http_key_file=file)
    assert web.get(f"{process.base}/", headers=HTML).status_code == 200
    assert web.get(f"{process.base}/page/app.js").status_code == 200
    assert web.get(f"{process.base}/status").status_code == 401
    body = {"model": "mock", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    ada = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=process.base, timeout=60, verify=False) as client:
        process.release(1)
        with client.stream("POST", "/v1/chat/completions", json=body, headers=ada):
            process.wait_running(1)
            hidden = web.get(f"{process.base}/status", headers=ada).json()
            shown = web.get(f"{process.base}/status", headers={"x-api-key": f"{KEY}-o"}).json()
    assert "caller" not in hidden["running"][0]
    assert "ada" not in json.dumps(hidden)
    assert shown["running"][0]["caller"] == "key:ada"
    assert shown["models"][0]["id"] == "mock"


# In a browser.


@needs_browser
def test_a_chat_streams_stops_and_survives_a_reload(bridge: Start, browser: Browser) -> None:
    process = bridge({"gate": True, "tape": ["one ", "two ", "three"]})
    chat(browser, process)
    send(browser, "hello")
    process.release(2)
    browser.until(f"return {LAST}.innerText.trim() === 'one two'")
    assert browser.js("return document.querySelector('#log').getAttribute('aria-busy')") == "true"
    browser.type("#prompt", ESCAPE)
    browser.until(IDLE)
    process.wait_idle()  # the slot is free although the gate is shut
    assert "Stopped." in browser.text(".assistant .foot")

    send(browser, "again")
    process.release(9)
    browser.until(IDLE)
    assert browser.js(f"return {LAST}.innerText") == "one two three"
    assert "token" in browser.js("return [...document.querySelectorAll('.foot')].at(-1).innerText")

    chat(browser, process)
    browser.click("#conversations .line")
    texts = browser.js("return [...document.querySelectorAll('.message .body')].map(each => each.innerText)")
    assert [text.strip() for text in texts] == ["hello", "one two", "again", "one two three"]
    # "Again" requests the last answer again, "Edit" moves a message back to the prompt.
    browser.click("[aria-label=Model]:last-child .act:last-child")
    process.release(9)
    browser.until(f"{IDLE} && document.querySelectorAll('.message').length === 4")
    browser.click("[aria-label=You] .act")
    assert browser.js("return document.querySelector('#prompt').value") == "hello"
    assert browser.js("return document.querySelectorAll('.message').length") == 0
    loaded = browser.js("return performance.getEntriesByType('resource').map(each => each.name)")
    assert loaded
    assert all(url.startswith(process.base) for url in loaded)


DROP = """
const bytes = Uint8Array.from(atob(arguments[0]), (each) => each.charCodeAt(0));
const data = new DataTransfer();
data.items.add(new File([bytes], "dot.png", { type: "image/png" }));
document.querySelector("#log").dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true }));
"""


@needs_browser
def test_a_picture_is_dropped_and_the_model_is_switched(
    bridge: Start, browser: Browser, tmp_path: Path
) -> None:
    stock(ModelStore(tmp_path), "talker", random_llama().read_bytes())
    process = bridge(MODELS_HOME=tmp_path, threads=1, n_ctx=256)
    chat(browser, process)
    browser.js(DROP, PNG)
    browser.until("return document.querySelector('.pictures img')")
    send(browser, "what is this?")
    browser.until(f"{IDLE} && {LAST}.innerText === 'mock-response'")
    assert browser.js("return document.querySelector('.message.user img').src.startsWith('data:image/png')")

    browser.until("return document.querySelector('#model [value=talker]')")
    browser.click("#model [value=talker]")
    browser.js(DROP, PNG)
    browser.until("return document.querySelector('#notice').innerText.includes('does not take pictures')")
    browser.click("#fresh")
    browser.click("#settings-button")
    browser.type("#set-max_tokens", "2")
    send(browser, "hello")

    def models() -> list[str]:
        events = process.events("http_request")
        return [event["model"] for event in events if event["path"].endswith("/completions")]

    until(lambda: len(models()) == 2)  # the model is loaded first
    assert models() == ["mock", "talker"]
    chat(browser, process)
    assert browser.js("return document.querySelector('#model').value") == "talker"


INJECTIONS = (
    "<script>window.owned = 1</script>",
    "<img src=x onerror='window.owned = 1'>",
    "<svg onload='window.owned = 1'></svg><iframe srcdoc='<script>parent.owned = 1</script>'></iframe>",
    "[link](javascript:window.owned=1) ![picture](http://127.0.0.1:9/pixel.png)",
    "[data](data:text/html,<script>1</script>) <style>body { display: none }</style>",
    "```html\n<script>window.owned = 1</script>\n```",
    "> <b onclick='window.owned = 1'>quoted</b>\n\n- <script>window.owned = 1</script>",
    "| <img src=x onerror='window.owned = 1'> | b |\n|---|---|\n| <script>window.owned = 1</script> | c |",
    '```"><script>window.owned = 1</script>\nunclosed',
)


@needs_browser
def test_model_output_is_never_executed(bridge: Start, browser: Browser) -> None:
    text = "\n\n".join(INJECTIONS)
    process = bridge(
        {"tape": [text[:40], *text[40:].partition("iframe"), "<details open ontoggle='owned=1'>"]}
    )
    chat(browser, process)
    send(browser, "<img src=x onerror='window.owned = 1'>")
    browser.until(IDLE)
    foreign = ".message :is(script, img, iframe, svg, style, details[open], [onclick])"
    assert browser.js("return document.querySelectorAll(arguments[0]).length", foreign) == 0
    assert browser.js("return window.owned") is None
    links = browser.js("return [...document.querySelectorAll('.text a')].map(each => each.href)")
    assert links == ["http://127.0.0.1:9/pixel.png"]
    # All of it appears, as text.
    shown = browser.js(f"return {LAST}.textContent")
    assert shown.count("window.owned = 1") == text.count("window.owned = 1")
    # The policy holds even where the page itself would make HTML of it.
    with pytest.raises(AssertionError, match="TrustedHTML"):
        browser.js("document.querySelector('#log').innerHTML = '<img src=x onerror=\"owned=1\">'")
    browser.log()


MARKDOWN = """# Title

Some **bold**, *slanted*, `code` and snake_case_name at <https://example.org/a_b>.

1. first
2. second
   - inner

| a | b |
|---|--:|
| 1 | 2 |

```python
if a < b:
    pass
```
"""


@needs_browser
def test_markdown_becomes_elements(bridge: Start, browser: Browser) -> None:
    # A pattern that tries every split of these lines would not end.
    long = "\n\n".join(("#" + " " * 20_000 + "x", "-" * 20_000 + "x", "|" + "- " * 20_000, "*a " * 5_000))
    process = bridge({"tape": [MARKDOWN, long]})
    chat(browser, process)
    send(browser, "hi")
    browser.until(IDLE)
    found = browser.js(
        "return [...document.querySelectorAll(arguments[0])]"
        ".map(each => each.tagName + ' ' + each.textContent).slice(0, 17)",
        ".text :is(h2, strong, em, code, a, ol > li, li li, th, td, pre)",
    )
    expected = ["H2 Title", "STRONG bold", "EM slanted", "CODE code", "A https://example.org/a_b", "LI first"]
    assert found[:6] == expected
    assert {"LI inner", "TH b", "TD 2", "PRE if a < b:\n    pass"} <= set(found)


@needs_browser
def test_the_page_asks_once_for_a_key(bridge: Start, browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"ada {KEY}\n")
    file.chmod(0o600)
    process = bridge(http_key_file=file)
    browser.open(process.base)
    for key in ("wrong", KEY):
        browser.until("return document.querySelector('#key-dialog').open")
        browser.type("#key", key + ENTER)
    browser.until("return document.querySelector('#model').value === 'mock'")
    send(browser, "hi")
    browser.until(f"return {LAST}.innerText === 'mock-response'")
    browser.open(process.base)
    browser.until("return document.querySelector('#model').value === 'mock'")
    assert KEY not in browser.js("return JSON.stringify(localStorage)")
    assert KEY not in process.stderr


@needs_browser
def test_an_error_is_shown_and_said(bridge: Start, browser: Browser) -> None:
    process = bridge({"tape": ["a", "b", "c"], "drop_after": 1})
    chat(browser, process)
    send(browser, "hi")
    browser.until(IDLE)
    assert browser.text("#notice")
    assert browser.text("#said") == "The answer failed"
    browser.click("#settings-button")
    browser.type("#set-schema", "{")
    browser.type("#prompt", "kept" + ENTER)
    browser.until("return document.querySelector('#notice').innerText.includes('not valid JSON')")
    assert browser.js("return document.querySelector('#prompt').value") == "kept"


@needs_browser
def test_the_live_view_and_the_models(bridge: Start, browser: Browser) -> None:
    process = bridge({"gate": True, "tape": ["a"], "repeat": 50})
    chat(browser, process)
    send(browser, "hi")
    process.release(5)
    browser.click("nav a[data-view=live]")
    browser.until("return document.querySelector('#request-rows').innerText.includes('runs')")
    labels: Any = browser.until(
        "const all = [...document.querySelectorAll('.plot svg')].map(each => each.ariaLabel);"
        "return all.some(each => each && each.includes('running 1 now')) && all"
    )
    assert len(labels) == 6
    process.release(100)
    browser.until("return document.querySelector('#request-rows').innerText.includes('No request')")
    browser.click("nav a[data-view=models]")
    # The page changes the view after the click, and may have listed the models before.
    browser.until("return document.querySelector('nav a[aria-current=page]').textContent === 'Models'")
    browser.until("return document.querySelector('#model-rows').innerText.includes('mock')")
    for theme in ("light", "dark"):
        browser.click("#theme")
        assert browser.js("return document.documentElement.dataset.theme") == theme


@needs_browser
def test_no_view_is_wider_than_a_phone(bridge: Start, browser: Browser) -> None:
    process = bridge({"tape": [MARKDOWN, "word" * 50]})
    browser.resize(400, 800)
    chat(browser, process)
    send(browser, "hi " * 50 + "x" * 200)
    browser.until(IDLE)
    browser.click("#settings-button")
    for view, filled in (("chat", "#conversations"), ("models", "#model-rows"), ("live", "#plots")):
        browser.click(f"nav a[data-view={view}]")
        browser.until(f"return document.querySelector('{filled}').childElementCount")
        assert browser.js("return [document.documentElement.scrollWidth - innerWidth, innerWidth]") == [
            0,
            400,
        ]
    browser.resize(1200, 800)


@needs_browser
def test_a_model_is_loaded_and_unloaded_on_the_page(bridge: Start, browser: Browser, tmp_path: Path) -> None:
    content = random_llama().read_bytes()
    stock(ModelStore(tmp_path), "talker", content)
    stock(ModelStore(tmp_path), "broken", content[: len(content) // 2])
    process = bridge(MODELS_HOME=tmp_path, threads=1, n_ctx=256)
    browser.open(process.base)
    browser.click("nav a[data-view=models]")
    button = "return document.querySelector('[data-model=talker]')?.textContent"
    for word in ("Load", "Unload"):
        browser.until(f"{button} === '{word}'")
        browser.click("[data-model=talker]")
    browser.until(f"{button} === 'Load'")
    # The reason of a failed load stays until the next attempt, although the state is shown anew each second.
    notice = "document.querySelector('#models-notice').textContent"
    browser.click("[data-model=broken]")
    browser.until(f"return {notice}.startsWith('broken: ')")
    browser.js("document.querySelector('#models-lead').textContent = ''")
    browser.until("return document.querySelector('#models-lead').textContent")
    assert browser.js(f"return {notice}")
    for word in ("Load", "Unload"):
        browser.until(f"{button} === '{word}'")
        browser.click("[data-model=talker]")
    browser.until(f"{button} === 'Load' && !{notice}")
    assert [backend["name"] for backend in process.status().backends] == ["mock"]
