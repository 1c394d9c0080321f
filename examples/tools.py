"""Let the model call local functions until it can answer.

python examples/tools.py "What is the weather in Paris?"
"""

import json
import sys
from collections.abc import Callable
from typing import Any

from inferd import Client, MessageDone, ToolUse, tool_result

MOST_ROUNDS = 4


def get_weather(city: str = "") -> str:
    return f"18 degrees and rain in {city}"


FUNCTIONS: dict[str, Callable[..., str]] = {"get_weather": get_weather}
TOOLS = [
    {
        "name": "get_weather",
        "description": "The weather of a city",
        "input_schema": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 40}},
            "required": ["city"],
        },
    }
]


def call(use: ToolUse) -> str:
    """The model chose the function and its arguments, so both can be wrong."""
    try:
        return FUNCTIONS[use.name](**use.input)
    except (KeyError, TypeError) as error:
        return f"this call is not possible: {error}"


def main() -> None:
    question = sys.argv[1] if len(sys.argv) > 1 else "What is the weather in Paris?"
    with Client() as client:
        chat = client.chat(tools=TOOLS, max_tokens=200, temperature=0)
        content: Any = question
        for _ in range(MOST_ROUNDS):
            results = []
            with chat.ask(content) as answer:
                for event in answer:
                    if isinstance(event, ToolUse):
                        result = call(event)
                        print(f"{event.name}({json.dumps(event.input)}) -> {result}")
                        results.append(tool_result(event, result))
                    elif isinstance(event, MessageDone) and not results:
                        print(*(block["text"] for block in event.content if block["type"] == "text"))
            if not results:
                return
            content = results


if __name__ == "__main__":
    main()
