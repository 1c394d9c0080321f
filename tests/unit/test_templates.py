"""Chat templates that need too much time, memory or stack: each is refused with the reason, within bounds."""

from __future__ import annotations

import json
import re
import resource
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from inferd.engine.local import _llama
from inferd.engine.local.loading import preparing_threads
from inferd.errors import InvalidRequest, ModelError
from tests.tiny_llama import write_llama
from tests.unit.test_llamacpp import load_model

MEMORY, TIME, DEPTH = "takes too much memory", "takes too long", "nests too deeply"

NAMESPACE = "{% set ns = namespace(x=[], s='x') %}"
DOUBLED = NAMESPACE + "{% for i in range(27) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
SHARED = "{% set ns = namespace(x=['x' * 1000000]) %}" + "{% set ns.x = [ns.x, ns.x] %}" * 8

# Each exceeds a bound only a little: without the bound it would end after some seconds or some hundred MB.
BEYOND = [
    # memory
    ("{% for i in range(3000000) %}x{% endfor %}", MEMORY),
    ("{{ 'a' * 200000000 }}", MEMORY),
    (NAMESPACE + "{% for i in range(28) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}", MEMORY),
    ("{% set a = 'x' * 15000 %}{{ a | replace('x', a) }}", MEMORY),
    ("{{ range(200) | join('x' * 1000000) }}", MEMORY),
    ("{{ messages | tojson(indent=150000000) }}", MEMORY),
    ("{{ ('a\\n' * 1000) | indent(1000000) }}", MEMORY),
    (SHARED + "{{ ns.x }}", MEMORY),
    (SHARED + "{{ ns.x | tojson }}", MEMORY),
    # depth, while it runs
    ("{% macro f(n) %}{% if n %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(1000) }}", DEPTH),
    (NAMESPACE + "{% for i in range(5000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | tojson }}", DEPTH),
    ("{{ " + "1+" * 6_000 + "1 }}", DEPTH),
    # depth, while it is parsed
    ("{{ " + "(" * 250 + "1" + ")" * 250 + " }}", DEPTH),
    ("{{ " + "[" * 250 + "]" * 250 + " }}", DEPTH),
    ("x" * 65_537, "longer than 64 KiB"),
    # time, without memory
    (DOUBLED + "{{ ns.x }}", TIME),
]


@pytest.fixture(scope="module")
def model() -> _llama.Model:
    return load_model()


@pytest.fixture
def preparing() -> Iterator[ThreadPoolExecutor]:
    with preparing_threads() as pool:
        yield pool


def conversation(text: str) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": text}], "text_only": True}).encode()


@pytest.mark.parametrize(("source", "reason"), BEYOND, ids=lambda text: text[:30] + text[-10:])
def test_a_template_beyond_a_bound_is_refused(
    source: str, reason: str, model: _llama.Model, preparing: ThreadPoolExecutor
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError, match=reason):
        preparing.submit(_llama.Templates, model, source).result()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 << 10


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("{{ 2 ** 3 }}", "Unexpected token: * at line 1, column 7"),
        ("é\n{% for x in %}", "Unexpected token: %} at line 2, column 13"),
        ("a\n\n{% endfor %}", "Unknown statement: endfor at line 3, column 4"),
        ("{{ 1e5 }}", "Expected }} (Got e5) at line 1, column 5"),
        ("b\né{{ 1 ! 2 }}", "unexpected character: ! after `é{{ 1 `"),
        ("{{ 'a", "unexpected end of input during consume_while after `{{ 'a`"),
    ],
)
def test_a_syntax_error_is_reported_with_its_position(
    source: str, error: str, model: _llama.Model, preparing: ThreadPoolExecutor
) -> None:
    with pytest.raises(ModelError, match=re.escape(f"cannot be parsed: {error}")):
        preparing.submit(_llama.Templates, model, source).result()


def test_a_template_that_exceeds_a_bound_later_fails_its_request_only(
    model: _llama.Model, preparing: ThreadPoolExecutor
) -> None:
    source = (
        "{% if messages[0].content == 'now' %}{{ 'a' * 200000000 }}{% endif %}"
        "{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    templates = preparing.submit(_llama.Templates, model, source).result()
    with pytest.raises(InvalidRequest, match=MEMORY):
        preparing.submit(templates.render, conversation("now")).result()
    assert len(preparing.submit(templates.render, conversation("later")).result()) > 0


def test_a_template_ends_when_its_client_has_left(model: _llama.Model, preparing: ThreadPoolExecutor) -> None:
    long = DOUBLED + "{{ ns.x }}"
    source = "{% if messages[0].content == 'now' %}" + long + "{% else %}later{% endif %}"
    templates = preparing.submit(_llama.Templates, model, source).result()
    cancellation = _llama.Cancellation()
    begun = threading.Event()

    def render() -> object:
        with cancellation:
            begun.set()
            return templates.render(conversation("now"))

    rendering = preparing.submit(render)
    begun.wait()
    cancellation.cancel()
    with pytest.raises(InvalidRequest, match="client has left"):
        rendering.result()
    # The thread still serves the next request.
    assert len(preparing.submit(templates.render, conversation("later")).result()) > 0


def test_a_long_deep_valid_expression_still_runs(model: _llama.Model, preparing: ThreadPoolExecutor) -> None:
    source = "{{ " + "not " * 15_000 + "1 }}{{ messages[0].content }}"
    templates = preparing.submit(_llama.Templates, model, source).result()
    assert len(preparing.submit(templates.render, conversation("hi")).result()) > 0


def test_a_text_answer_renders_the_conversation_once(
    model: _llama.Model, preparing: ThreadPoolExecutor
) -> None:
    """llama.cpp would render it twice more, to find the beginning of the answer."""
    source = (
        "{% if not add_generation_prompt %}{{ raise_exception('twice') }}{% endif %}{{ messages[0].content }}"
    )
    templates = preparing.submit(_llama.Templates, model, source).result()
    assert len(preparing.submit(templates.render, conversation("hi")).result()) > 0


ANALYSED = (
    "{% if messages[0].content != 'hi' %}{% for i in range(300) %}{% endfor %}{% endif %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking %}<think>{% else %}<think></think>{% endif %}{% endif %}"
)
"""A template whose analysis takes many more steps than the conversation "hi"."""


def test_a_client_that_leaves_does_not_spoil_the_analysis_for_others(
    tmp_path: Path, preparing: ThreadPoolExecutor
) -> None:
    path = write_llama(tmp_path / "model.gguf", keys={"tokenizer.chat_template.tool_use": ANALYSED})
    templates = preparing.submit(_llama.Templates, load_model(path), "").result()
    tool = {"name": "f", "description": "", "parameters": {"type": "object", "properties": {}}}
    asked = {**json.loads(conversation("hi")), "text_only": False}
    request = json.dumps({**asked, "tools": [{"type": "function", "function": tool}]}).encode()

    def render() -> None:
        with cancellation:
            templates.render(request)

    cancellation = _llama.Cancellation()
    cancellation.cancel()
    with suppress(InvalidRequest):
        preparing.submit(render).result()
    prompt = preparing.submit(templates.render, request).result()
    assert prompt.thinking == (b"<think>", [b"</think>"])
