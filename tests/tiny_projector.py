"""A vision projector with random weights: no sense in it, but every step of the path from a picture to text.

In the form of Gemma 3's: pictures of 32 x 32 become 16 tokens of the text model's width.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

TOKENS = 16
_SIDE, _PATCH, _WIDTH, _HIDDEN = 32, 2, 8, 16
_PATCHES = (_SIDE // _PATCH) ** 2


def write_projector(path: Path, text_width: int) -> Path:
    """Writes the projector for a text model whose embeddings have ``text_width`` numbers."""
    random = np.random.default_rng(7)
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "gemma3")
    writer.add_bool("clip.use_gelu", True)
    vision = {
        "image_size": _SIDE,
        "patch_size": _PATCH,
        "embedding_length": _WIDTH,
        "feed_forward_length": _HIDDEN,
        "block_count": 1,
        "attention.head_count": 2,
        "projection_dim": text_width,
    }
    for key, value in vision.items():
        writer.add_uint32(f"clip.vision.{key}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-6)
    writer.add_array("clip.vision.image_mean", [0.5, 0.5, 0.5])
    writer.add_array("clip.vision.image_std", [0.5, 0.5, 0.5])

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(name, random.normal(0, 0.3, shape).astype(np.float32))

    def norm(name: str, width: int = _WIDTH) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(width, np.float32))
        writer.add_tensor(f"{name}.bias", np.zeros(width, np.float32))

    add("v.patch_embd.weight", _WIDTH, 3, _PATCH, _PATCH)
    add("v.patch_embd.bias", _WIDTH)
    add("v.position_embd.weight", _PATCHES, _WIDTH)
    norm("v.post_ln")
    for part in ("attn_q", "attn_k", "attn_v", "attn_out"):
        add(f"v.blk.0.{part}.weight", _WIDTH, _WIDTH)
        add(f"v.blk.0.{part}.bias", _WIDTH)
    norm("v.blk.0.ln1")
    norm("v.blk.0.ln2")
    add("v.blk.0.ffn_up.weight", _HIDDEN, _WIDTH)
    add("v.blk.0.ffn_up.bias", _HIDDEN)
    add("v.blk.0.ffn_down.weight", _WIDTH, _HIDDEN)
    add("v.blk.0.ffn_down.bias", _WIDTH)
    add("mm.input_projection.weight", _WIDTH, text_width)
    writer.add_tensor("mm.soft_emb_norm.weight", np.ones(_WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
