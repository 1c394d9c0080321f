"""Chat templates that mean harm: each is refused with its reason, in bounded time, memory and stack.

Where a bound is missing, a test here does not fail: it takes the whole machine, or ends the process.
"""

from __future__ import annotations

import json
import re
import resource
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from inferd.engine.local import _llama
from inferd.engine.local.llamacpp import preparing_threads
from inferd.errors import InvalidRequest, ModelError
from tests.unit.test_llamacpp import load_model

MEMORY, TIME, DEPTH = "takes too much memory", "takes too long", "nests too deeply"

NAMESPACE = "{% set ns = namespace(x=[], s='x') %}"
DOUBLED = NAMESPACE + "{% for i in range(64) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"

HOSTILE = [
    # memory
    ("{% for i in range(1000000000) %}x{% endfor %}", MEMORY),
    ("{{ 'a' * 10000000000 }}", MEMORY),
    (NAMESPACE + "{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}", MEMORY),
    ("{% set a = 'x' * 100000 %}{{ a | replace('x', a) }}", MEMORY),
    ("{{ range(100000) | join('x' * 1000000) }}", MEMORY),
    ("{{ messages | tojson(indent=1000000000) }}", MEMORY),
    (NAMESPACE + "{% for i in range(1000000) %}{% set ns.x = [ns.x] %}{% endfor %}", MEMORY),
    # depth, while it runs
    ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", DEPTH),
    (NAMESPACE + "{% set ns.x = ns %}{{ ns | tojson }}", DEPTH),
    ("{{ " + "1+" * 30_000 + "1 }}", DEPTH),
    ("{{ a" + ".a" * 20_000 + " }}", DEPTH),
    ("{{ a" + "()" * 20_000 + " }}", DEPTH),
    # depth, while it is parsed
    ("{{ " + "(" * 10_000 + "1" + ")" * 10_000 + " }}", DEPTH),
    ("{{ " + "[" * 10_000 + "]" * 10_000 + " }}", DEPTH),
    ("{% if true %}" * 100_000 + "{% endif %}" * 100_000, "longer than 64 KiB"),
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


@pytest.mark.parametrize(("source", "reason"), HOSTILE, ids=lambda text: text[:40])
def test_a_hostile_template_is_refused(
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
def test_a_syntax_error_is_told_with_its_place(
    source: str, error: str, model: _llama.Model, preparing: ThreadPoolExecutor
) -> None:
    with pytest.raises(ModelError, match=re.escape(f"cannot be parsed: {error}")):
        preparing.submit(_llama.Templates, model, source).result()


def test_one_that_turns_hostile_later_costs_its_request_only(
    model: _llama.Model, preparing: ThreadPoolExecutor
) -> None:
    source = (
        "{% if messages[0].content == 'now' %}{{ 'a' * 10000000000 }}{% endif %}"
        "{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    templates = preparing.submit(_llama.Templates, model, source).result()
    with pytest.raises(InvalidRequest, match=MEMORY):
        preparing.submit(templates.render, conversation("now")).result()
    assert len(preparing.submit(templates.render, conversation("later")).result()) > 0


def test_one_whose_client_has_left_ends(model: _llama.Model, preparing: ThreadPoolExecutor) -> None:
    forever = DOUBLED + "{{ ns.x }}"
    source = "{% if messages[0].content == 'now' %}" + forever + "{% else %}later{% endif %}"
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
    # The thread serves the next request as if nothing had been.
    assert len(preparing.submit(templates.render, conversation("later")).result()) > 0


def test_a_long_deep_expression_that_is_sound_still_runs(
    model: _llama.Model, preparing: ThreadPoolExecutor
) -> None:
    source = "{{ " + "not " * 15_000 + "1 }}{{ messages[0].content }}"
    templates = preparing.submit(_llama.Templates, model, source).result()
    assert len(preparing.submit(templates.render, conversation("hi")).result()) > 0
