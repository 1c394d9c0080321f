"""Images in tool results: each stays after its own text, even if messages are rewritten."""

from __future__ import annotations

from functools import cache

import pytest

from inferd.engine.local import _llama
from inferd.engine.local.conversation import Family, prepare
from inferd.engine.local.schema.guides import Guides
from inferd.engine.requests import Media, Message, Tool, ToolCall
from tests.tiny_llama import RANDOM_WIDTH, random_llama
from tests.tiny_projector import write_vision_projector
from tests.unit.test_conversation import TEMPLATES, request
from tests.unit.test_family_calls import CALLS, TOOLS
from tests.unit.test_media import picture, raw

# Each has messages rewritten in another way, but for the first.
FAMILIES = (
    "Qwen-Qwen2.5-7B-Instruct",
    "meta-llama-Llama-3.1-8B-Instruct",
    "openai-gpt-oss-120b",
    "LFM2-8B-A1B",
    "HuggingFaceTB-SmolLM3-3B",
    "google-gemma-2-2b-it",
    "mistralai-Mistral-Nemo-Instruct-2407",
)
PICTURES = {f"picture{i}:": raw(picture(i, side=8)) for i in range(5)}
A, B = (ToolCall(f"abcdefgh{i}", name, '{"a":1}') for i, (name, _) in enumerate(CALLS))


def behind(*labels: str) -> tuple[str | Media, ...]:
    return tuple(part for label in labels for part in (label, PICTURES[label]))


# Two calls in one turn, and their results in the other order.
CONVERSATION = (
    Message("user", behind("picture0:")),
    Message("assistant", "I look.", tool_calls=(A, B)),
    Message("tool", behind("picture1:", "picture2:"), tool_call_id=B.id),
    Message("tool", behind("picture3:"), tool_call_id=A.id),
    Message("user", behind("picture4:")),
)


@cache
def model() -> _llama.Model:
    with random_llama().open("rb") as file:
        return _llama.Model(file.fileno(), path="test", n_gpu_layers=0, report=lambda progress: True)


@pytest.fixture(scope="module")
def projector(tmp_path_factory: pytest.TempPathFactory) -> _llama.Projector:
    path = write_vision_projector(tmp_path_factory.mktemp("projector") / "p.gguf", RANDOM_WIDTH)
    return _llama.Projector(model(), str(path), threads=1)


def seen(family: Family, messages: tuple[Message, ...], tools: tuple[Tool, ...]) -> dict[str, object]:
    """The model's view of each image: the last text before it."""
    prompt = prepare(family, request(*messages, tools=tools)).prompt
    found: dict[str, object] = {}
    for place, embeddings in prompt.media:
        text = model().text([token for token in prompt.tokens[:place] if token >= 0]).decode()
        found[max(PICTURES, key=text.rfind)] = embeddings
    return found


@pytest.mark.parametrize("tools", [TOOLS, ()], ids=["with tools", "without"])
def test_each_image_stays_after_its_text(projector: _llama.Projector, tools: tuple[Tool, ...]) -> None:
    alone = Family(_llama.Templates(model()), Guides(model()), projector, n_batch=512)
    expected = {}
    for label in PICTURES:
        expected |= seen(alone, (Message("user", behind(label)),), ())
    assert len(set(expected.values())) == len(PICTURES)
    for name in FAMILIES:
        source = (TEMPLATES / f"{name}.jinja").read_text("utf-8")
        family = Family(_llama.Templates(model(), source), alone.guides, projector, n_batch=512)
        assert seen(family, CONVERSATION, tools) == expected, name
