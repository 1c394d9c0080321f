"""Images and sounds from bytes to the tokens of an answer, on a model and projectors with random weights.

Their output is meaningless; the tests check that media arrive, are counted, and are bounded.
"""

from __future__ import annotations

import array
import asyncio
import io
import random
import resource
import threading
import wave
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from inferd.engine.events import Done
from inferd.engine.local import _llama, media
from inferd.engine.local.llamacpp import LlamaCpp
from inferd.engine.local.media import MAX_SIDE, to_item
from inferd.engine.requests import GenerateRequest, Media, Message
from inferd.errors import AttachmentUnsupported, InvalidRequest, ModelError
from tests.daemon_process import PATIENCE_SECS
from tests.requests import generate_request
from tests.tiny_llama import RANDOM_WIDTH
from tests.tiny_projector import (
    IMAGE_TOKENS,
    SAMPLE_RATE,
    write_audio_projector,
    write_vision_projector,
)
from tests.unit.test_llamacpp import backend


@asynccontextmanager
async def seeing(tmp_path: Path) -> AsyncIterator[LlamaCpp]:
    async with backend(projector=write_vision_projector(tmp_path / "projector.gguf", RANDOM_WIDTH)) as engine:
        yield engine


def picture(seed: int, side: int = 32) -> Image.Image:
    """Noise, or plain black for seed 0."""
    pixels = random.Random(seed).randbytes(side * side * 3) if seed else bytes(side * side * 3)
    return Image.frombytes("RGB", (side, side), pixels)


def raw(image: Image.Image) -> Media:
    return Media("image", image.tobytes(), width=image.width, height=image.height)


def png(image: Image.Image) -> Media:
    file = io.BytesIO()
    image.save(file, "PNG")
    return Media("image", file.getvalue(), mime="image/png")


def noise(seconds: float, rate: int = SAMPLE_RATE) -> Media:
    samples = random.Random(1).randbytes(int(seconds * rate))
    data = array.array("f", [byte / 128 - 1 for byte in samples]).tobytes()
    return Media("audio", data, sample_rate=rate)


def wav(seconds: float) -> Media:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(SAMPLE_RATE)
        out.writeframes(random.Random(1).randbytes(int(seconds * SAMPLE_RATE) * 2))
    return Media("audio", file.getvalue(), mime="audio/wav")


def ask(*parts: str | Media, max_tokens: int = 16) -> GenerateRequest:
    return generate_request(
        messages=(Message("user", parts),),
        max_tokens=max_tokens,
        temperature=0.0,
        top_p=1.0,
        top_k=0,
        typed=True,
    )


async def answer(engine: LlamaCpp, *parts: str | Media, max_tokens: int = 16) -> Done:
    async for event in await engine.generate(ask(*parts, max_tokens=max_tokens)):
        if isinstance(event, Done):
            return event
    raise AssertionError("the stream ended without Done")


async def test_a_picture_is_counted_and_changes_the_answer(tmp_path: Path) -> None:
    async with seeing(tmp_path) as engine:
        assert engine.capabilities().vision
        assert not engine.capabilities().audio
        blind = await answer(engine, "What is this? ")
        one = await answer(engine, "What is this? ", raw(picture(3)))
        other = await answer(engine, "What is this? ", raw(picture(0)))
        assert one.usage.prompt_tokens >= blind.usage.prompt_tokens + IMAGE_TOKENS
        assert one.usage.prompt_tokens == other.usage.prompt_tokens
        assert len({blind.content, one.content, other.content}) == 3


async def test_pictures_keep_their_places(tmp_path: Path) -> None:
    async with seeing(tmp_path) as engine:
        a, b = raw(picture(3)), raw(picture(0))
        there = await answer(engine, "First: ", a, " second: ", b, max_tokens=64)
        back = await answer(engine, "First: ", b, " second: ", a, max_tokens=64)
        assert there.usage.prompt_tokens == back.usage.prompt_tokens
        assert there.content != back.content


async def test_a_file_and_its_pixels_are_the_same_picture(tmp_path: Path) -> None:
    async with seeing(tmp_path) as engine:
        image = picture(3, side=48)
        assert (await answer(engine, png(image), "?")).content == (
            await answer(engine, raw(image), "?")
        ).content


async def test_an_answer_about_a_picture_does_not_depend_on_its_neighbours(tmp_path: Path) -> None:
    async with seeing(tmp_path) as engine:
        alone = await answer(engine, "What is this? ", raw(picture(3)), max_tokens=24)
        beside, *_ = await asyncio.gather(
            answer(engine, "What is this? ", raw(picture(3)), max_tokens=24),
            answer(engine, "Tell me a story.", max_tokens=40),
            answer(engine, "And this? ", raw(picture(9)), max_tokens=40),
        )
        assert beside.content == alone.content


async def test_leaving_in_the_middle_of_pictures_frees_the_slot(tmp_path: Path) -> None:
    async with seeing(tmp_path) as engine:
        expected = await answer(engine, "What is this? ", raw(picture(3)))
        for _ in range(5):
            stream = await engine.generate(ask(*[raw(picture(n)) for n in range(1, 9)], "What are these?"))
            stream.close()
        assert (await answer(engine, "What is this? ", raw(picture(3)))).content == expected.content


NO_PICTURES = [
    (Media("image", b"\0" * 12, width=2, height=1), "6 bytes of RGB, not 12"),
    (Media("image", b"", width=0, height=5), "out of bounds"),
    (Media("image", b"", width=MAX_SIDE + 1, height=1), "out of bounds"),
    (Media("image", b"", width=MAX_SIDE, height=MAX_SIDE), "out of bounds"),
    (Media("image", b"not a picture", mime="image/png"), "not image/png or is damaged"),
    (Media("image", bytes(png(picture(3)).data)[:-40], mime="image/png"), "damaged"),
    (Media("image", bytes(png(picture(3)).data), mime="image/jpeg"), "not image/jpeg"),
]


async def test_no_more_pictures_are_unpacked_for_a_client_that_has_left(tmp_path: Path) -> None:
    async with seeing(tmp_path) as engine:
        left = _llama.Cancellation()
        with left:
            assert to_item(png(picture(1)), engine._family.projector)
            left.cancel()
            with pytest.raises(InvalidRequest, match="its client has left"):
                to_item(png(picture(1)), engine._family.projector)


async def test_a_picture_that_waits_for_the_encoder_stops_waiting_when_its_client_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = threading.Event()

    def item(*args: Any) -> Any:
        begun.set()
        return to_item(*args)

    monkeypatch.setattr(media, "to_item", item)
    async with seeing(tmp_path) as engine:
        assert engine._family.projector is not None
        with _llama.BusyProjector(engine._family.projector):
            left = _llama.Cancellation()
            asked = asyncio.create_task(engine.generate(ask(raw(picture(1))), left))
            assert await asyncio.to_thread(begun.wait, PATIENCE_SECS)
            await asyncio.sleep(0.05)  # time to reach the encoder
            assert not asked.done()
            left.cancel()
            stopped, _ = await asyncio.wait((asked,), timeout=PATIENCE_SECS)
        with pytest.raises(InvalidRequest, match="its client has left"):
            await asked
        assert stopped
        assert (await answer(engine, raw(picture(1)))).usage.prompt_tokens > 0


async def test_a_picture_that_cannot_be_used_is_refused_with_the_reason(tmp_path: Path) -> None:
    async with seeing(tmp_path) as engine:
        for media, reason in NO_PICTURES:
            with pytest.raises(InvalidRequest, match=reason):
                await engine.generate(ask(media))


async def test_a_small_file_of_a_huge_picture_is_not_unpacked(tmp_path: Path) -> None:
    async with seeing(tmp_path) as engine:
        for size in (7000, 6000), (MAX_SIDE + 1, 1), (MAX_SIDE, MAX_SIDE):
            file = io.BytesIO()
            Image.new("1", size).save(file, "PNG")
            assert len(file.getvalue()) < 100_000
            with pytest.raises(InvalidRequest, match="out of bounds"):
                await engine.generate(ask(Media("image", file.getvalue(), mime="image/png")))


async def test_media_that_the_model_cannot_take_are_unsupported(tmp_path: Path) -> None:
    async with seeing(tmp_path) as engine:
        for media in Media("audio", b"\0" * 4, sample_rate=16000), Media("image", b"", mime="image/tiff"):
            with pytest.raises(AttachmentUnsupported):
                await engine.generate(ask(media))


async def test_a_model_without_a_projector_takes_no_pictures() -> None:
    async with backend() as engine:
        assert not engine.capabilities().vision
        with pytest.raises(AttachmentUnsupported, match="image"):
            await engine.generate(ask(raw(picture(3))))


async def test_a_projector_of_another_model_is_refused(tmp_path: Path) -> None:
    path = write_vision_projector(tmp_path / "other.gguf", 2 * RANDOM_WIDTH)
    with pytest.raises(ModelError, match=r"other\.gguf"):
        async with backend(projector=path):
            pass


async def test_sounds_are_heard_and_counted(tmp_path: Path) -> None:
    async with backend(projector=write_audio_projector(tmp_path / "ears.gguf", RANDOM_WIDTH)) as engine:
        able = engine.capabilities()
        assert (able.audio, able.vision, able.audio_sample_rate) == (True, False, SAMPLE_RATE)
        deaf = await answer(engine, "What is this? ", max_tokens=1)
        for sound in (noise(0.5), wav(0.5)):
            heard = await answer(engine, "What is this? ", sound, max_tokens=1)
            assert heard.usage.prompt_tokens > deaf.usage.prompt_tokens + 100


async def test_a_small_file_of_a_long_sound_is_not_unpacked(tmp_path: Path) -> None:
    rate, seconds = 100, 10_000
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(1)
        out.setframerate(rate)
        out.writeframes(bytes(rate * seconds))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with backend(projector=write_audio_projector(tmp_path / "ears.gguf", RANDOM_WIDTH)) as engine:
        with pytest.raises(InvalidRequest, match="at most 600 s"):
            await engine.generate(ask(Media("audio", file.getvalue(), mime="audio/wav")))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10  # of 640 MB


NO_SOUNDS = [
    (noise(0.5, rate=8000), "16000 Hz, not at 8000 Hz"),
    (noise(0.05), "at least 0.1 s"),
    (Media("audio", b"\0" * 6401, sample_rate=SAMPLE_RATE), "float32"),
    (wav(0.01), "shorter than 0.1 s"),
    (Media("audio", b"RIFF but no sound", mime="audio/wav"), "not audio/wav"),
    (Media("audio", b"RIFF...", mime="audio/wav"), "not audio/wav"),
    (Media("audio", b"RIFF....WAVE but no sound", mime="audio/wav"), "cannot be decoded"),
    (Media("audio", b"\xff\xfb no sound either", mime="audio/mpeg"), "cannot be decoded"),
    # Bytes that are not a sound would reach a decoder of pictures, which has no bounds.
    (Media("audio", bytes(png(picture(3)).data), mime="audio/mpeg"), "not audio/mpeg"),
    (Media("audio", b"", mime="audio/mpeg"), "has 1 to"),
]


async def test_a_sound_that_cannot_be_used_is_refused_with_the_reason(tmp_path: Path) -> None:
    async with backend(projector=write_audio_projector(tmp_path / "ears.gguf", RANDOM_WIDTH)) as engine:
        for media, reason in NO_SOUNDS:
            with pytest.raises(InvalidRequest, match=reason):
                await engine.generate(ask(media))
