"""Measures answers constrained to a JSON Schema: the cost of the schema, and the gain from text that the
schema forces.

Each contestant answers one prompt in four ways: freely, with a schema of six strings, with a schema of twelve
strings, and with twelve fields of a typical program: a few texts, and numbers, dates, flags and choices.
Sampling is greedy, with one stream and without a prompt cache. Answers end after 128 tokens, free answers
after 64, so that five rounds on two cores take less than three minutes. Two daemons take part, one of them
without drafts.

The processor time of an answer includes its prompt; on a shared machine it is more reliable than the tokens
per second. The masks are computed separately, for each token of one answer after the other.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import random
import time
from collections.abc import Callable
from typing import Any

from bench import prompts, quiet, servers
from bench.clients import NdjsonStream, SseStream, Stream, ask
from bench.report import Report, main, quantile

N_CTX = 2048
N_PREDICT = 128
N_FREE = 64
NAMES = (
    "first_name", "last_name", "street_address", "postal_code", "city_of_residence", "country",
    "phone_number", "email_address", "date_of_birth", "favourite_colour", "occupation", "employer_name",
)  # fmt: skip
FIELDS: dict[str, dict[str, Any]] = {
    "customer_number": {"type": "integer", "minimum": 1, "maximum": 99999},
    "first_name": {"type": "string", "maxLength": 24},
    "last_name": {"type": "string", "maxLength": 24},
    "date_of_birth": {"type": "string", "format": "date"},
    "preferred_language": {"enum": ["english", "french", "german", "spanish"]},
    "country_of_residence": {"type": "string", "maxLength": 24},
    "number_of_orders": {"type": "integer", "minimum": 0, "maximum": 999},
    "account_balance": {"type": "integer", "minimum": 0, "maximum": 9999},
    "is_active": {"type": "boolean"},
    "has_newsletter": {"type": "boolean"},
    "membership_level": {"enum": ["basic", "silver", "gold"]},
    "last_contact": {"type": "string", "format": "date"},
}


def object_of(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def strings(count: int) -> dict[str, Any]:
    return object_of({name: {"type": "string", "maxLength": 24} for name in NAMES[:count]})


WAYS = {"freely": None, "6 strings": strings(6), "12 strings": strings(12), "12 fields": object_of(FIELDS)}


def stream_of(
    server: servers.Server, messages: list[dict[str, str]], schema: dict[str, Any] | None
) -> Stream:
    """A request for an answer that follows the schema, or for free text without a schema."""
    budget = N_FREE if schema is None else N_PREDICT
    if isinstance(server, servers.Inferd):
        ours = {"cache": False} | ({"json_schema": schema} if schema else {})
        return NdjsonStream(server.address, messages, budget, ours)
    extra: dict[str, Any] = {"cache_prompt": False}
    if schema:
        extra["response_format"] = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    return SseStream(server.address, messages, budget, extra)


def turn(report: Report, server: servers.Server, way: str, rng: random.Random) -> None:
    asked = f"{prompts.words(rng, 4)}. Invent a person and tell all about them."
    messages = [{"role": "user", "content": asked}]
    before = server.cpu_seconds()
    stream = ask(stream_of(server, messages, WAYS[way]))
    used = server.cpu_seconds() - before
    report.add(server.name, f"decode, {way}", "tokens/s", stream.tokens_per_second)
    report.add(server.name, f"processor time, {way}", "ms a token", used * 1e3 / stream.tokens)
    if WAYS[way] and stream.tokens < N_PREDICT:
        json.loads("".join(stream.text))


def masks(report: Report, options: argparse.Namespace) -> None:
    """The time to compute the mask at each token of answers that follow the schemas."""
    from inferd.engine.local import _llama
    from inferd.engine.local.schema.guides import Guides

    path = servers.model_file(options)
    with path.open("rb") as file:
        model = _llama.Model(file.fileno(), path=str(path), n_gpu_layers=0, report=lambda fraction: True)
    guides = Guides(model)
    for count in (6, 12):
        times: list[float] = []
        for number in range(20):
            guide = guides.value(guides.answer(json.dumps(strings(count)), lenient=False))
            value = {name: f"{name} {number}, é"[:24] for name in NAMES[:count]}
            for token in model.tokens(json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()):
                start = time.thread_time()
                guide.choices()
                times.append((time.thread_time() - start) * 1e6)
                if not guide.accept(token):
                    raise RuntimeError("the answer does not fit its schema")
        for share in (0.5, 0.99, 1.0):
            name = "most" if share == 1.0 else f"p{share * 100:.0f}"
            report.add(f"{count} strings", f"mask, {name}", "µs", quantile(times, share))


def ways(contestant: str) -> list[str]:
    """llama-server takes part where it is compared: with twelve."""
    return [way for way in WAYS if contestant != "llama-server" or way.startswith("12")]


def run(options: argparse.Namespace, report: Report) -> None:
    model = servers.model_file(options)
    report.settings |= {
        "model": model.name,
        "n_ctx": N_CTX,
        "n_predict": N_PREDICT,
        "n_free": N_FREE,
        "flash_attention": "off",
    }
    masks(report, options)
    kept = list(report.samples)
    watch = quiet.Watch(report, options.patience)
    room = {"threads": options.threads, "n_ctx": N_CTX}
    contestants: dict[str, Callable[[], servers.Server]] = {
        "inferd": functools.partial(servers.Inferd, model, **room),
        **servers.earlier(options, model, **room),
        "inferd, no drafts": functools.partial(
            servers.Inferd, model, **room, name="inferd, no drafts", drafts="off"
        ),
        "llama-server": functools.partial(servers.LlamaServer, options.peer_python, model, **room),
    }
    with contextlib.ExitStack() as stack:
        running = servers.started(stack, contestants, report.missing)
        rng = random.Random(options.seed)
        for server in running:
            turn(report, server, "12 strings", rng)  # warms caches and is not counted
        report.samples[:] = kept
        for number in range(options.repeats):
            seed = rng.random()
            for server in servers.in_turn(running, number):
                for way in ways(server.name):
                    again = random.Random(seed)
                    watch.undisturbed(functools.partial(turn, report, server, way, again))
    ours, plain = "inferd", "inferd, no drafts"
    for measure in ("decode", "processor time"):
        free, six, twelve, fields = (f"{measure}, {way}" for way in WAYS)
        report.paired((plain, six), (plain, free))
        report.paired((ours, six), (plain, free))
        report.paired((ours, twelve), (plain, free))
        report.paired((ours, twelve), (plain, twelve))
        report.paired((ours, twelve), ("llama-server", twelve))
        report.paired((ours, fields), (plain, free))
        report.paired((ours, fields), (plain, fields))
        report.paired((ours, fields), ("llama-server", fields))
        report.paired((ours, free), (plain, free))
        report.paired((ours, twelve), (servers.EARLIER, twelve))


if __name__ == "__main__":
    main("schema", __doc__ or "", run)
