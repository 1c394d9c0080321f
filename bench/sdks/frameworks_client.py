"""The checks of the frameworks, run by the Python of their environment: ``frameworks_client.py BASE MODEL``.

Writes one JSON object a line, as ``python_client.py`` does: text, a stream, a tool call and structured
output, if the framework supports them. The model is small, so the checks examine only the form of an answer.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from functools import partial
from typing import Any

import more_frameworks
from checked import check

BASE, MODEL = sys.argv[1:3]
HELLO = "Say hello."
CITY = {"type": "string", "maxLength": 12}


def place() -> Any:
    """A pydantic model of a city with a short name."""
    import pydantic

    return pydantic.create_model("Place", city=(str, pydantic.Field(max_length=12)))


def weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


def with_langchain(package: str, model: Any) -> None:
    check(package, "text", lambda: model.invoke(HELLO).content)
    check(package, "stream", lambda: "".join(part.content for part in model.stream(HELLO)))
    forced = {"tool_choice": "required"} if package == "langchain-openai" else {}
    if forced:
        bound = model.bind_tools([weather], **forced)
        check(package, "tool", lambda: bound.invoke("Weather in Oslo?").tool_calls[0]["args"]["city"])
    structured = model.with_structured_output(place(), method="json_schema")
    check(package, "schema", lambda: structured.invoke("Invent a city.").city)


def with_langchain_openai() -> None:
    from langchain_openai import ChatOpenAI

    options: dict[str, Any] = {"base_url": f"{BASE}/v1", "api_key": "any", "model": MODEL, "max_tokens": 24}
    with_langchain("langchain-openai", ChatOpenAI(**options))
    told = ChatOpenAI(**options, logprobs=True, top_logprobs=2).invoke(HELLO).response_metadata["logprobs"]
    check("langchain-openai", "logprobs", lambda: told["content"][0]["top_logprobs"][1]["token"] is not None)


def with_langchain_ollama() -> None:
    from langchain_ollama import ChatOllama

    with_langchain("langchain-ollama", ChatOllama(base_url=BASE, model=MODEL, num_predict=24))


def with_pydantic_ai() -> None:
    from pydantic_ai import Agent, NativeOutput
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=f"{BASE}/v1", api_key="any")
    settings: Any = {"max_tokens": 32}
    for name, kind in (("chat", OpenAIChatModel), ("responses", OpenAIResponsesModel)):
        model = kind(MODEL, provider=provider)
        plain = Agent(model, model_settings=settings)
        check("pydantic-ai-slim", f"text, {name}", lambda plain=plain: plain.run_sync(HELLO).output)
        for how, output in (("tool", place()), ("native", NativeOutput(place()))):
            agent = Agent(model, output_type=output, model_settings=settings)
            check(
                "pydantic-ai-slim",
                f"output by {how}, {name}",
                lambda agent=agent: agent.run_sync("Invent a city.").output.city,
            )


RUNS = {
    "langchain-openai": with_langchain_openai,
    "langchain-ollama": with_langchain_ollama,
    "pydantic-ai-slim": with_pydantic_ai,
    **{name: partial(run, BASE, MODEL, place) for name, run in more_frameworks.RUNS.items()},
}

for package, run in RUNS.items():
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        continue
    try:
        run()
    except Exception as error:
        wrong = f"{type(error).__name__}: {error}"[:200]
        print(json.dumps({"sdk": package, "check": "", "wrong": wrong}), flush=True)
