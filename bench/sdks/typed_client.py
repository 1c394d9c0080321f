"""Ten Pydantic models, each answered through three SDKs, as a tool and by inferd's own client:
``typed_client.py BASE MODEL``, with the address of the daemon in ``INFERD_ADDRESS``.

Writes one JSON object on each line, as ``python_client.py`` does. Pydantic itself validates each answer. An
eleventh model has a keyword that cannot be enforced. The request must be refused, and the error must name the
keyword and its place.
"""

from __future__ import annotations

import datetime
import decimal
import enum
import sys
import uuid
from ipaddress import IPv4Address
from typing import Annotated, Any, Literal

import anthropic
import ollama
import openai
from checked import CUT, check
from pydantic import AnyUrl, BaseModel, ConfigDict, Field

from inferd import Client, RequestFailed

BASE, MODEL = sys.argv[1:3]
MAX_TOKENS = 500
Word = Annotated[str, Field(max_length=16)]


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")  # a small model may write other properties without end


class Person(Closed):
    name: Word
    age: int = Field(ge=0, le=120)
    code: str = Field(pattern=r"^[A-Z]{2}-\d{4}$")


class Level(enum.Enum):
    LOW = "low"
    HIGH = "high"


class Ticket(Closed):
    level: Level
    state: Literal["open", "closed", 3]
    title: Word | None = None
    votes: int = Field(default=0, ge=0, lt=1000)


class Line(Closed):
    product: Word
    count: int = Field(gt=0, le=99)
    price: float = Field(ge=0, le=1000, multiple_of=0.01)


class Invoice(Closed):
    lines: list[Line] = Field(min_length=1, max_length=3)
    total: decimal.Decimal  # a limit of its digits would be missing in Pydantic's schema


class Cat(Closed):
    kind: Literal["cat"]
    lives: int = Field(ge=1, le=9)


class Dog(Closed):
    kind: Literal["dog"]
    barks: bool


class Owner(Closed):
    pets: list[Annotated[Cat | Dog, Field(discriminator="kind")]] = Field(min_length=1, max_length=3)


class Node(Closed):
    value: int = Field(ge=-9, le=9)
    next: Node | None


class Event(Closed):
    id: uuid.UUID
    at: datetime.datetime
    day: datetime.date


class Server(Closed):
    host: IPv4Address
    port: int = Field(ge=1, le=65535)
    page: AnyUrl = Field(max_length=40)


class Pair(Closed):
    place: tuple[float, float]
    named: tuple[Word, Literal["n", "s"]]


class Scores(Closed):
    scores: dict[Literal["a", "b"], int]
    ratio: float = Field(gt=0, lt=1)


class Union(Closed):
    value: int | bool | Word | list[bool] = Field(union_mode="left_to_right")
    größe: Literal["klein", "groß"] = Field(description="how large it is")
    any_of_them: Cat | Dog | None


class Tags(Closed):
    tags: set[Word]


KINDS: list[type[BaseModel]] = [
    *(Person, Ticket, Invoice, Owner, Node, Event, Server, Pair, Scores, Union),
]


def unless_cut(ask: Any) -> Any:
    try:
        return ask()
    except openai.LengthFinishReasonError:
        return CUT


def refusal(run: Any, *kinds: type[Exception]) -> bool:
    """Whether it is refused with the keyword and the place of the model that cannot be enforced."""
    try:
        run()
    except kinds as error:
        return "/properties/tags/uniqueItems" in str(error)
    return False


def run() -> None:
    to_openai = openai.OpenAI(base_url=f"{BASE}/v1", api_key="any", timeout=600, max_retries=0)
    to_anthropic = anthropic.Anthropic(base_url=BASE, api_key="any", timeout=600, max_retries=0)
    to_ollama = ollama.Client(BASE, timeout=600)
    client = Client()

    def asked(kind: type[BaseModel]) -> list[Any]:
        return [{"role": "user", "content": f"Invent an example of: {kind.__name__}"}]

    def parsed(kind: type[BaseModel]) -> Any:
        chosen = to_openai.chat.completions.parse(
            model=MODEL, messages=asked(kind), response_format=kind, max_tokens=MAX_TOKENS
        ).choices[0]
        return isinstance(chosen.message.parsed, kind)

    def called(kind: type[BaseModel]) -> Any:
        chosen = to_openai.chat.completions.parse(
            model=MODEL,
            messages=asked(kind),
            tools=[openai.pydantic_function_tool(kind)],
            tool_choice="required",
            max_tokens=MAX_TOKENS,
        ).choices[0]
        assert chosen.message.tool_calls is not None
        return isinstance(chosen.message.tool_calls[0].function.parsed_arguments, kind)

    def formatted(kind: type[BaseModel]) -> Any:
        # `parse` would move patterns and bounds into descriptions.
        form = {"type": "json_schema", "schema": kind.model_json_schema()}
        found = to_anthropic.messages.create(
            model=MODEL, messages=asked(kind), max_tokens=MAX_TOKENS, output_config={"format": form}
        )
        return CUT if found.stop_reason == "max_tokens" else kind.model_validate_json(found.content[0].text)

    def chatted(kind: type[BaseModel]) -> Any:
        options = {"num_predict": MAX_TOKENS}
        found = to_ollama.chat(MODEL, asked(kind), format=kind.model_json_schema(), options=options)
        text = found.message.content or ""
        return CUT if found.done_reason == "length" else kind.model_validate_json(text)

    def generated(kind: type[BaseModel]) -> Any:
        schema = kind.model_json_schema()
        reply = client.generate(asked(kind)[0]["content"], json_schema=schema, max_tokens=MAX_TOKENS).result()
        return CUT if reply.stop_reason == "length" else kind.model_validate_json(reply.content)

    for kind in KINDS:
        name = kind.__name__
        for package, way, ask in (
            ("openai", "parse", parsed),
            ("openai", "tool", called),
            ("anthropic", "output_config", formatted),
            ("ollama", "format", chatted),
            ("inferd", "json_schema", generated),
        ):
            check(package, f"{name}, {way}", lambda ask=ask, kind=kind: unless_cut(lambda: ask(kind)))
    check("openai", "refusal", lambda: refusal(lambda: parsed(Tags), openai.BadRequestError))
    check("anthropic", "refusal", lambda: refusal(lambda: formatted(Tags), anthropic.BadRequestError))
    check("ollama", "refusal", lambda: refusal(lambda: chatted(Tags), ollama.ResponseError))
    check("inferd", "refusal", lambda: refusal(lambda: generated(Tags), RequestFailed))
    client.close()


if __name__ == "__main__":
    run()
