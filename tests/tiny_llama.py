"""A model whose next token depends on nothing, with the vocabulary of the demo model.

Each token has a fixed logit. Those that end something are likely and all others are equally unlikely, so that
a constrained answer is random, and comes to its end.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter

from tests.demo_model import demo_model

WIDTH = 32
LIKELY = 7.0
ENDS = frozenset('"}],')


def write_llama(path: Path) -> Path:
    """Writes the GGUF file and returns its path."""
    reader = GGUFReader(demo_model())
    writer = GGUFWriter(path, "llama")
    for name, field in reader.fields.items():
        if name.startswith("tokenizer."):
            kind = field.types[0]
            sub = field.types[-1] if kind == GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), kind, sub_type=sub)
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    writer.add_context_length(4096)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    ones = np.ones(WIDTH, dtype=np.float32)
    nothing = np.zeros((WIDTH, WIDTH), dtype=np.float32)
    output = np.zeros((len(tokens), WIDTH), dtype=np.float32)
    output[:, 0] = [LIKELY if text[:1] in ENDS else 0.0 for text in tokens]
    writer.add_tensor("token_embd.weight", np.ones((len(tokens), WIDTH), dtype=np.float32))
    writer.add_tensor("output_norm.weight", ones)
    writer.add_tensor("output.weight", output)
    for name in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.0.{name}.weight", ones)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        writer.add_tensor(f"blk.0.{name}.weight", nothing)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
