"""Projectors with random weights. Their results are meaningless, but they have every step from an image to
text."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from tests.gguf_files import write_file

IMAGE_TOKENS = 16  # of a picture, which is scaled to 32 x 32
SAMPLE_RATE = 16_000
_WIDTH, _HIDDEN = 8, 16


class _Writer:
    """A GGUF file of one encoder, ``v`` or ``a``, with one block."""

    def __init__(self, path: Path, encoder: str, projector: str, text_width: int) -> None:
        self._random = np.random.default_rng(7)
        self._encoder = encoder
        kind = {"v": "vision", "a": "audio"}[encoder]
        self.file = gguf.GGUFWriter(path, "clip")
        self.file.add_bool(f"clip.has_{kind}_encoder", True)
        self.file.add_string("clip.projector_type", projector)
        self.file.add_bool("clip.use_gelu", True)
        self.numbers(
            kind,
            embedding_length=_WIDTH,
            feed_forward_length=_HIDDEN,
            block_count=1,
            projection_dim=text_width,
            **{"attention.head_count": 2},
        )
        self.file.add_float32(f"clip.{kind}.attention.layer_norm_epsilon", 1e-6)
        self.norm("post_ln")
        for part in ("attn_q", "attn_k", "attn_v", "attn_out"):
            self.noise(f"{encoder}.blk.0.{part}.weight", _WIDTH, _WIDTH)
            if (encoder, part) != ("a", "attn_k"):  # Whisper's keys have none
                self.noise(f"{encoder}.blk.0.{part}.bias", _WIDTH)
        self.norm("blk.0.ln1")
        self.norm("blk.0.ln2")
        self.linear(f"{encoder}.blk.0.ffn_up", _HIDDEN, _WIDTH)
        self.linear(f"{encoder}.blk.0.ffn_down", _WIDTH, _HIDDEN)

    def numbers(self, kind: str, **values: int) -> None:
        for key, value in values.items():
            self.file.add_uint32(f"clip.{kind}.{key}", value)

    def noise(self, name: str, *shape: int, dtype: type = np.float32) -> None:
        self.file.add_tensor(name, self._random.normal(0, 0.3, shape).astype(dtype))

    def linear(self, name: str, rows: int, columns: int) -> None:
        self.noise(f"{name}.weight", rows, columns)
        self.noise(f"{name}.bias", rows)

    def norm(self, name: str) -> None:
        self.file.add_tensor(f"{self._encoder}.{name}.weight", np.ones(_WIDTH, np.float32))
        self.file.add_tensor(f"{self._encoder}.{name}.bias", np.zeros(_WIDTH, np.float32))

    def close(self) -> None:
        write_file(self.file)


def write_vision_projector(path: Path, text_width: int) -> Path:
    """A projector in the form of Gemma 3's, for a text model whose embeddings have ``text_width`` numbers."""
    side, patch = 32, 2
    writer = _Writer(path, "v", "gemma3", text_width)
    writer.numbers("vision", image_size=side, patch_size=patch)
    writer.file.add_array("clip.vision.image_mean", [0.5, 0.5, 0.5])
    writer.file.add_array("clip.vision.image_std", [0.5, 0.5, 0.5])
    writer.noise("v.patch_embd.weight", _WIDTH, 3, patch, patch)
    writer.noise("v.patch_embd.bias", _WIDTH)
    writer.noise("v.position_embd.weight", (side // patch) ** 2, _WIDTH)
    writer.noise("mm.input_projection.weight", _WIDTH, text_width)
    writer.file.add_tensor("mm.soft_emb_norm.weight", np.ones(_WIDTH, np.float32))
    writer.close()
    return path


def write_audio_projector(path: Path, text_width: int) -> Path:
    """A projector in the form of Qwen2-Audio's, whose window is 30 s long."""
    mel = 128
    writer = _Writer(path, "a", "qwen2a", text_width)
    writer.numbers("audio", num_mel_bins=mel)
    writer.noise("a.conv1d.1.weight", _WIDTH, mel, 3, dtype=np.float16)
    writer.noise("a.conv1d.1.bias", _WIDTH, 1)
    writer.noise("a.conv1d.2.weight", _WIDTH, _WIDTH, 3, dtype=np.float16)
    writer.noise("a.conv1d.2.bias", _WIDTH, 1)
    writer.noise("a.position_embd.weight", 1500, _WIDTH)
    writer.linear("mm.a.fc", text_width, _WIDTH)
    writer.close()
    return path
