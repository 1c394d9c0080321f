"""Products with quantized matrices, whose kernel `patches/q4_1.patch` adds to llama.cpp."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from inferd.engine.local import _llama
from tests.tiny_bert import CONTEXT, WIDTH, write_bert

Q4_1 = gguf.GGMLQuantizationType.Q4_1
F32 = gguf.GGMLQuantizationType.F32


def test_a_q4_1_matrix_gives_the_products_of_the_values_that_it_holds(tmp_path: Path) -> None:
    # A row of 49 blocks does not fit the kernel's panel of 48. Three threads split 32 rows into parts that
    # are no multiple of the panel's 8. Texts of one to ten words are batches of every rest of its 4 columns.
    texts = [" ".join("abcdefghij"[:words]).encode() for words in range(1, 11)]
    exact, quantized = (
        vectors(
            write_bert(tmp_path / matrices.name, feed_forward=49 * 32, matrices=matrices, rounded_to=Q4_1),
            texts,
        )
        for matrices in (F32, Q4_1)
    )
    assert np.abs(exact).max() > 1.5
    # The only difference allowed: the kernel rounds the other side of the product to 8 bits.
    assert np.abs(exact - quantized).max() < 0.15


def vectors(path: Path, texts: list[bytes]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    with path.open("rb") as file:
        model = _llama.Model(file.fileno(), path=str(path), n_gpu_layers=0, report=lambda fraction: True)
    embedder = _llama.Embedder(
        model, n_ctx=CONTEXT, n_seq=1, pooling="unspecified", threads=3, flash_attention="auto"
    )
    rows = []
    for text in texts:
        made = embedder.compute([embedder.text(text)])
        assert made is not None
        rows.append(np.frombuffer(made, "<f4"))
    return np.stack(rows).reshape(len(texts), WIDTH)
