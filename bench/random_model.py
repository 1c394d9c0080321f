"""Writes a model with random weights of the size of a real one: ``python -m bench.random_model FILE``.

By default it is a llama with 1.2 billion parameters, and with the tokenizer and chat template of the default
model. It is as fast as a trained model of its size, but its text means nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gguf
import numpy as np

from tests.demo_model import demo_model
from tests.gguf_files import copy_keys, write_file

WIDTH, FEED_FORWARD, HEADS, KV_HEADS = 2048, 5632, 32, 4
TYPES = {name: gguf.GGMLQuantizationType[name] for name in ("Q4_0", "Q8_0")}


def write(path: Path, layers: int = 22, kind: str = "Q8_0") -> None:
    """Writes the model to ``path``. All layers have equal matrices of the quantisation ``kind``."""
    random = np.random.default_rng(7)
    reader = gguf.GGUFReader(demo_model())
    kinds = reader.fields["tokenizer.ggml.token_type"].contents()
    control = np.array(kinds) == gguf.TokenType.CONTROL
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(8192)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(control))
    copy_keys(reader, writer, "tokenizer.")

    def add(name: str, rows: int, columns: int, blank: np.ndarray | None = None) -> np.ndarray:
        matrix = random.standard_normal((rows, columns), dtype=np.float32) / np.sqrt(columns)
        if blank is not None:
            matrix[blank] = 0.0
        return gguf.quants.quantize(matrix, TYPES[kind])

    shapes = {
        "attn_q": (WIDTH, WIDTH),
        "attn_k": (WIDTH // HEADS * KV_HEADS, WIDTH),
        "attn_v": (WIDTH // HEADS * KV_HEADS, WIDTH),
        "attn_output": (WIDTH, WIDTH),
        "ffn_gate": (FEED_FORWARD, WIDTH),
        "ffn_up": (FEED_FORWARD, WIDTH),
        "ffn_down": (WIDTH, FEED_FORWARD),
    }
    matrices = {name: add(name, *shape) for name, shape in shapes.items()}
    ones = np.ones(WIDTH, dtype=np.float32)
    for name in ("token_embd", "output"):
        data = add(name, len(control), WIDTH, control if name == "output" else None)
        writer.add_tensor(f"{name}.weight", data, raw_dtype=TYPES[kind])
    writer.add_tensor("output_norm.weight", ones)
    for layer in range(layers):
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", ones)
        for name, data in matrices.items():
            writer.add_tensor(f"blk.{layer}.{name}.weight", data, raw_dtype=TYPES[kind])
    write_file(writer)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("path", type=Path)
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--type", choices=TYPES, default="Q8_0")
    options = parser.parse_args()
    write(options.path, options.layers, options.type)
