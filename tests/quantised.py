"""The random model with quantised layers, for code that F32 weights do not reach."""

from __future__ import annotations

from pathlib import Path

import gguf

from tests.gguf_files import copy_keys, write_file
from tests.tiny_llama import random_llama


def quantised_llama(path: Path, kind: str = "Q4_0") -> Path:
    """Writes the random model to ``path``, with ``kind`` as the type of its layers' matrices; returns the
    path."""
    reader, writer = gguf.GGUFReader(random_llama()), gguf.GGUFWriter(path, "llama")
    copy_keys(reader, writer)
    for tensor in reader.tensors:
        is_matrix = tensor.name.startswith("blk.") and tensor.data.ndim == 2
        into = gguf.GGMLQuantizationType[kind if is_matrix else "F32"]
        writer.add_tensor(tensor.name, gguf.quants.quantize(tensor.data, into), raw_dtype=into)
    write_file(writer)
    return path
