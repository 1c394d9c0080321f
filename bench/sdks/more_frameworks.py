"""The checks of further frameworks for ``frameworks_client.py``. ``place`` makes the type of an output."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from checked import check

HELLO = "Say hello."
CITY = "Invent a city."
FEW, ENOUGH = 32, 400
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}},
            "required": ["city"],
        },
    },
}


def with_instructor(base: str, model: str, place: Callable[[], Any]) -> None:
    import instructor
    import openai

    sdk = openai.OpenAI(base_url=f"{base}/v1", api_key="any", timeout=300)
    for name in ("TOOLS", "JSON_SCHEMA"):
        client = instructor.from_openai(sdk, mode=instructor.Mode[name])

        def create(client: Any = client) -> Any:
            asked = [{"role": "user", "content": CITY}]
            return client.chat.completions.create(
                model=model, messages=asked, response_model=place(), max_tokens=FEW, max_retries=0
            ).city

        check("instructor", name.lower(), create)


def with_openai_agents(base: str, model: str, place: Callable[[], Any]) -> None:
    import agents
    import openai

    agents.set_tracing_disabled(True)
    sdk = openai.AsyncOpenAI(base_url=f"{base}/v1", api_key="any", timeout=300)
    # It raises for a response that ends at its limit.
    settings = agents.ModelSettings(max_tokens=ENOUGH, temperature=0)
    for kind in (agents.OpenAIChatCompletionsModel, agents.OpenAIResponsesModel):
        name = "chat" if kind is agents.OpenAIChatCompletionsModel else "responses"
        options: dict[str, Any] = {
            "name": "one",
            "model": kind(model=model, openai_client=sdk),
            "model_settings": settings,
        }
        plain, typed = agents.Agent(**options), agents.Agent(**options, output_type=place())
        run: Callable[..., Any] = agents.Runner.run_sync
        check("openai-agents", f"text, {name}", lambda plain=plain, run=run: run(plain, HELLO).final_output)
        check(
            "openai-agents",
            f"output, {name}",
            lambda typed=typed, run=run: run(typed, CITY).final_output.city,
        )


def with_smolagents(base: str, model: str, place: Callable[[], Any]) -> None:
    import smolagents

    class Weather(smolagents.Tool):  # type: ignore[misc]
        name, description, output_type = "weather", "The weather in a city.", "string"
        inputs = {"city": {"type": "string", "description": "a city"}}  # noqa: RUF012

        def forward(self, city: str) -> str:
            return f"sunny in {city}"

    llm = smolagents.OpenAIServerModel(model, api_base=f"{base}/v1", api_key="any", max_tokens=FEW)
    asked = [smolagents.ChatMessage(role="user", content=[{"type": "text", "text": HELLO}])]
    check("smolagents", "text", lambda: llm.generate(asked).content)
    check("smolagents", "stream", lambda: "".join(d.content or "" for d in llm.generate_stream(asked)))
    check(
        "smolagents",
        "tool",
        lambda: llm.generate(asked, tools_to_call_from=[Weather()]).tool_calls is not None,
    )


def with_llm(base: str, model: str, place: Callable[[], Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LLM_USER_PATH"] = folder
        entry = {"model_id": "local", "model_name": model, "api_base": f"{base}/v1", "supports_schema": True}
        Path(folder, "extra-openai-models.yaml").write_text(json.dumps([entry]))
        import llm

        local = llm.get_model("local")
        check("llm", "text", lambda: local.prompt(HELLO, max_tokens=FEW, stream=False).text())
        check("llm", "stream", lambda: "".join(local.prompt(HELLO, max_tokens=FEW)))
        check("llm", "schema", lambda: json.loads(local.prompt(CITY, schema=place()).text())["city"])


def with_litellm(base: str, model: str, place: Callable[[], Any]) -> None:
    import litellm

    litellm.suppress_debug_info = True
    asked = [{"role": "user", "content": HELLO}]
    roots = {"openai": f"{base}/v1", "hosted_vllm": f"{base}/v1"}
    for provider in ("openai", "hosted_vllm", "anthropic", "ollama", "ollama_chat"):

        def complete(provider: str = provider, **more: Any) -> Any:
            return litellm.completion(
                model=f"{provider}/{model}",
                api_base=roots.get(provider, base),
                api_key="any",
                messages=asked,
                max_tokens=FEW,
                **more,
            )

        def streamed(complete: Any = complete) -> str:
            return "".join(part.choices[0].delta.content or "" for part in complete(stream=True))

        def text(complete: Any = complete) -> Any:
            answer = complete()
            return answer.usage.prompt_tokens and answer.choices[0].message.content

        check("litellm", f"text, {provider}", text)
        check("litellm", f"stream, {provider}", streamed)
        if provider in ("openai", "anthropic"):
            check(
                "litellm",
                f"tool, {provider}",
                lambda complete=complete: (
                    complete(tools=[TOOL], tool_choice="required")
                    .choices[0]
                    .message.tool_calls[0]
                    .function.arguments
                ),
            )
    check(
        "litellm",
        "responses",
        lambda: (
            litellm.responses(
                model=f"openai/{model}",
                input=HELLO,
                api_base=f"{base}/v1",
                api_key="any",
                max_output_tokens=FEW,
            ).output
        ),
    )


def with_llama_index(base: str, model: str, place: Callable[[], Any]) -> None:
    from llama_index.llms.ollama import Ollama
    from llama_index.llms.openai_like import OpenAILike

    few = {"num_predict": FEW}
    local = Ollama(model=model, base_url=base, request_timeout=300, additional_kwargs=few)
    check("llama-index-llms-ollama", "text", lambda: local.complete(HELLO).text)
    check("llama-index-llms-ollama", "stream", lambda: [*local.stream_complete(HELLO)][-1].text)
    check(
        "llama-index-llms-ollama",
        "schema",
        lambda: local.as_structured_llm(place()).complete(CITY).raw.city,
    )
    options: dict[str, Any] = {"model": model, "api_base": f"{base}/v1", "api_key": "any", "max_tokens": FEW}
    for chat, name in ((True, "chat"), (False, "completions")):
        like = OpenAILike(**options, is_chat_model=chat)
        check("llama-index-llms-openai-like", f"text, {name}", lambda like=like: like.complete(HELLO).text)
        check(
            "llama-index-llms-openai-like",
            f"stream, {name}",
            lambda like=like: [*like.stream_complete(HELLO)][-1].text,
        )


RUNS: dict[str, Callable[[str, str, Callable[[], Any]], None]] = {
    "instructor": with_instructor,
    "openai-agents": with_openai_agents,
    "smolagents": with_smolagents,
    "llm": with_llm,
    "litellm": with_litellm,
    "llama-index-llms-openai-like": with_llama_index,
}
