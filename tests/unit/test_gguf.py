"""The header of a GGUF file, read without llama.cpp and without trust in its numbers."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import gguf
import pytest

from inferd.errors import ModelError
from inferd.store.gguf import ModelCard, read_card
from tests.cases import cases
from tests.demo_model import demo_model
from tests.tiny_bert import CONTEXT, LAYERS, write_bert


def card_of(path: Path) -> ModelCard:
    fd = os.open(path, os.O_RDONLY)
    try:
        return read_card(fd, path)
    finally:
        os.close(fd)


def test_the_card_of_a_chat_model() -> None:
    card = card_of(demo_model())
    assert (card.architecture, card.quantisation, card.layers) == ("llama", "Q4_1", 30)
    assert (card.context, card.vocabulary, card.parameters) == (8192, 49152, 134_515_008)
    assert card.kv_bytes_per_token == 2 * 30 * 3 * (64 + 64)
    assert card.chat_template
    assert not card.pooling
    assert card.memory_bytes(8192, 4) > card.memory_bytes(2048, 4) > card.file_bytes


@pytest.mark.parametrize(
    ("pooling", "embeds", "ranks"),
    [(gguf.PoolingType.MEAN, True, False), (gguf.PoolingType.RANK, False, True), (None, False, False)],
)
def test_embedding_and_ranking_models_are_recognised(
    pooling: gguf.PoolingType | None, embeds: bool, ranks: bool, tmp_path: Path
) -> None:
    card = card_of(write_bert(tmp_path / "bert", pooling=pooling))
    assert (card.pooling, card.ranks) == (embeds, ranks)
    assert (card.context, card.layers) == (CONTEXT, LAYERS)


def test_a_file_cut_anywhere_in_its_header_is_refused(tmp_path: Path) -> None:
    whole = write_bert(tmp_path / "bert").read_bytes()
    path = tmp_path / "cut"
    for size in (0, 3, 4, 20, 24, 100, 1000, 3000):
        path.write_bytes(whole[:size])
        with pytest.raises(ModelError):
            card_of(path)


def test_a_file_that_ends_before_its_last_tensor_is_cut_short(tmp_path: Path) -> None:
    whole = demo_model().read_bytes()
    path = tmp_path / "cut"
    for size, cut_short in ((len(whole), False), (len(whole) - 1, False), (len(whole) // 2, True)):
        path.write_bytes(whole[:size])
        assert card_of(path).cut_short is cut_short


def header(n_tensors: int, n_keys: int, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_keys) + rest


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


HUGE = 2**63


@cases(
    "data",
    [
        b"not a model at all, but long enough",
        header(0, HUGE),
        header(HUGE, 0),
        header(0, 1, struct.pack("<Q", HUGE)),
        header(0, 1, text(b"k") + struct.pack("<IQ", 8, HUGE)),
        header(0, 1, text(b"k") + struct.pack("<IIQ", 9, 4, HUGE)),
        header(0, 1, text(b"k") + struct.pack("<IIQ", 9, 8, HUGE)),
        header(0, 1, text(b"k") + struct.pack("<IIQ", 9, 9, 1)),
        header(0, 1, text(b"k") + struct.pack("<I", 99)),
        header(1, 0, text(b"t") + struct.pack("<I", 99)),
    ],
)
def test_an_impossible_number_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(data)
    with pytest.raises(ModelError, match="GGUF"):
        card_of(path)
