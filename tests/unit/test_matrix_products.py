"""Matrix products with the quantisation types whose kernels the patches of llama.cpp change, and
attention."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from tests.cases import cases
from tests.tiny_bert import WIDTH, WORDS, write_bert
from tests.unit.test_embedding import raw

Type = gguf.GGMLQuantizationType


@cases("matrices", [Type.Q4_1, Type.Q8_0, Type.F16])
def test_a_matrix_gives_the_products_of_the_values_that_it_holds(
    tmp_path: Path, matrices: gguf.GGMLQuantizationType
) -> None:
    # A row of 49 blocks does not fit a panel. Three threads split 32 rows into parts that are no multiple of
    # a panel; for q8_0 they are too few for panels. One to ten words are batches of every rest of the 4
    # columns, and 38 exceed the limit of 32.
    texts = [" ".join(WORDS[:words]).encode() for words in (*range(1, 11), 38)]
    floats, quantized = (
        write_bert(tmp_path / kind.name, feed_forward=49 * 32, matrices=kind, rounded_to=matrices)
        for kind in (Type.F32, matrices)
    )
    exact = vectors(floats, texts, threads=1)
    assert np.abs(exact).max() > 1.5
    for threads in (1, 3):
        # The only allowed difference: a kernel rounds the other factor to 8 bits.
        assert np.abs(exact - vectors(quantized, texts, threads=threads)).max() < 0.15


def vectors(
    path: Path, texts: list[bytes], *, threads: int
) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    embedder = raw(path, threads=threads)
    rows = []
    for text in texts:
        made = embedder.compute([embedder.text(text)])
        assert made is not None
        rows.append(np.frombuffer(made, "<f4"))
    return np.stack(rows).reshape(len(texts), WIDTH)
