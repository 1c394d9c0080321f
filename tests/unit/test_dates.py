"""The date in a prompt: a conversation keeps its first date for a day, and so its cached prefix."""

from __future__ import annotations

import time

import orjson
import pytest
from msgspec.structs import replace

from inferd.engine.local import _llama
from inferd.engine.local.past.dates import LONGEST_SECS, MOST_CONVERSATIONS, Dates
from inferd.engine.requests import GenerateRequest, Message
from tests.requests import generate_request
from tests.unit.test_llamacpp import ask, backend, load_model, read

BEGAN = 1_800_000_000
HOUR = 3600
TEMPLATE = (
    "<|im_start|>system\n{{ strftime_now('%Y-%m-%d %H:%M:%S') }}, {{ date_string }}\n"
    "{%- for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)
HEAD = (Message("system", "You are brief. " * 20), Message("user", "What is new? " * 20))


def asked(*more: Message, head: tuple[Message, ...] = HEAD, scope: str = "") -> GenerateRequest:
    return generate_request(messages=(*head, *more), scope=scope)


def continued(**options: object) -> GenerateRequest:
    return asked(Message("assistant", "Nothing."), Message("user", "And now?"), **options)  # type: ignore[arg-type]


def test_a_conversation_keeps_its_time_for_a_day() -> None:
    dates = Dates()
    assert dates.of(asked(), BEGAN) == BEGAN
    assert dates.of(continued(), BEGAN + 23 * HOUR) == BEGAN
    later = BEGAN + LONGEST_SECS
    assert [dates.of(continued(), later + n * HOUR) for n in (0, 1, 23)] == [later] * 3
    assert dates.of(continued(), BEGAN - HOUR) == BEGAN - HOUR  # the clock was put back


def test_the_beginning_and_the_caller_tell_conversations_apart() -> None:
    dates, later = Dates(), BEGAN + HOUR
    dates.of(asked(), BEGAN)
    assert dates.of(continued(scope="another user"), later) == later
    assert dates.of(continued(head=(HEAD[0], Message("user", "Another question."))), later) == later
    assert dates.of(continued(), later) == BEGAN
    assert dates.of(asked(), later) == later  # asked anew, without an answer
    assert dates.of(continued(), later + HOUR) == later


def test_the_number_of_conversations_is_bounded() -> None:
    dates = Dates()
    dates.of(asked(), BEGAN)
    for number in range(MOST_CONVERSATIONS):
        dates.of(asked(head=(Message("user", str(number)),)), BEGAN)
    assert dates.of(continued(), BEGAN + HOUR) == BEGAN + HOUR


def test_a_template_sees_the_given_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model()
    templates = _llama.Templates(model, TEMPLATE)

    def rendered(**more: object) -> str:
        request = {"messages": [{"role": "user", "content": "Hi"}], "text_only": True, **more}
        return model.text(templates.render(orjson.dumps(request)).tokens).decode()

    local = time.localtime(BEGAN)
    said = time.strftime("%Y-%m-%d %H:%M:%S", local) + ", " + time.strftime("%d %b %Y", local)
    assert said in rendered(now=BEGAN)
    assert said not in rendered()


async def test_a_prompt_stays_cached_when_the_date_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = BEGAN
    monkeypatch.setattr("inferd.engine.local.llamacpp.clock", lambda: now)
    first, second = ask("", 4), ask("", 4)
    async with backend(n_parallel=1, chat_template=TEMPLATE, drafts="off") as engine:
        _, done = await read(await engine.generate(replace(first, messages=asked().messages)))
        for hours, cached in ((23, True), (24, False)):
            now = BEGAN + hours * HOUR
            _, again = await read(await engine.generate(replace(second, messages=continued().messages)))
            assert (again.usage.cached_tokens >= done.usage.prompt_tokens - 4) == cached
