"""The checks of the Python SDKs, run by the Python of their environment: ``python_client.py BASE MODEL``.

Writes one JSON object a line: the SDK with its version, the check, and an empty text or the error.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Callable
from typing import Any

from checked import check

BASE, MODEL = sys.argv[1:3]
HI = [{"role": "user", "content": "Say hello."}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}},
    "required": ["city"],
    "additionalProperties": False,
}


def raises(kind: type[Exception], run: Callable[[], Any]) -> bool:
    try:
        run()
    except kind:
        return True
    return False


def with_openai() -> None:
    import openai

    sdk = openai.OpenAI(base_url=f"{BASE}/v1", api_key="any", timeout=300)
    tool = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA, "strict": True}}

    def create(**more: Any) -> Any:
        return sdk.chat.completions.create(model=MODEL, messages=HI, max_tokens=24, **more)

    def called() -> Any:
        call = create(tools=[tool], tool_choice="required").choices[0].message.tool_calls[0]
        return json.loads(call.function.arguments)["city"]

    def streamed() -> Any:
        chunks = [*create(stream=True, stream_options={"include_usage": True})]
        return chunks[-1].usage and "".join(c.choices[0].delta.content or "" for c in chunks[:-1])

    def responded(**more: Any) -> Any:
        return sdk.responses.create(model=MODEL, input="Say hello.", max_output_tokens=16, **more)

    check("openai", "text", lambda: create().choices[0].message.content)
    check("openai", "stream", streamed)
    check("openai", "tool", called)
    check("openai", "schema", lambda: "city" in create(response_format=form).choices[0].message.content)
    check("openai", "responses", lambda: responded().output_text)
    check("openai", "responses, stream", lambda: [*responded(stream=True)][-1].response.usage)
    check("openai", "models", lambda: MODEL in [model.id for model in sdk.models.list()])
    check("openai", "404", lambda: raises(openai.NotFoundError, lambda: sdk.models.retrieve("none")))
    check("openai", "400", lambda: raises(openai.BadRequestError, lambda: create(n=3)))


def with_anthropic() -> None:
    import anthropic

    sdk = anthropic.Anthropic(base_url=BASE, api_key="any", timeout=300)
    tool = {"name": "weather", "input_schema": SCHEMA}

    def create(**more: Any) -> Any:
        return sdk.messages.create(model=MODEL, messages=HI, max_tokens=24, **more)

    def streamed() -> Any:
        with sdk.messages.stream(model=MODEL, messages=HI, max_tokens=16) as stream:
            text = "".join(stream.text_stream)
            return text and stream.get_final_message().usage.output_tokens

    def called() -> Any:
        blocks = create(tools=[tool], tool_choice={"type": "any"}).content
        return next(block.input for block in blocks if block.type == "tool_use")["city"]

    check("anthropic", "text", lambda: create().content[0].text)
    check("anthropic", "stream", streamed)
    check("anthropic", "tool", called)
    check("anthropic", "count", lambda: sdk.messages.count_tokens(model=MODEL, messages=HI).input_tokens)
    check("anthropic", "models", lambda: MODEL in [model.id for model in sdk.models.list()])
    check("anthropic", "404", lambda: raises(anthropic.NotFoundError, lambda: sdk.models.retrieve("none")))


def with_ollama() -> None:
    import ollama

    sdk = ollama.Client(BASE, timeout=300)
    tool = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
    few = {"num_predict": 8}
    check("ollama", "text", lambda: sdk.chat(MODEL, HI, options=few).message.content)
    check("ollama", "stream", lambda: [*sdk.chat(MODEL, HI, stream=True, options=few)][-1].eval_count)
    check("ollama", "tool", lambda: sdk.chat(MODEL, HI, tools=[tool], options=few).done)
    check("ollama", "schema", lambda: "city" in sdk.chat(MODEL, HI, format=SCHEMA).message.content)
    check("ollama", "generate", lambda: sdk.generate(MODEL, "Say hello.", options=few).response)
    check("ollama", "show", lambda: sdk.show(MODEL).modelinfo)
    check("ollama", "list", lambda: sdk.list().models[0].digest)
    check("ollama", "404", lambda: raises(ollama.ResponseError, lambda: sdk.chat("none", HI)))


if __name__ == "__main__":
    for package, run in (("openai", with_openai), ("anthropic", with_anthropic), ("ollama", with_ollama)):
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        run()
