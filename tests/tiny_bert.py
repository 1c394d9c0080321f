"""A BERT with random weights and 64 words. Its results are meaningless, but it has every step from a text to
a vector or a score."""

from __future__ import annotations

import string
from pathlib import Path

import gguf
import numpy as np
from gguf.quants import dequantize, quantize

from tests.gguf_files import write_file

PAD, UNK, CLS, SEP, MASK = range(5)
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = (*string.ascii_lowercase, *string.digits, *".,:!?")
FIRST_WORD = len(SPECIAL)
CONTEXT = 48
WIDTH, HEADS, FEED_FORWARD, LAYERS = 32, 2, 64, 2


def word(text: str) -> int:
    """The token of a word in WORDS."""
    return FIRST_WORD + WORDS.index(text)


def write_bert(
    path: Path,
    *,
    pooling: gguf.PoolingType | None = gguf.PoolingType.MEAN,
    name: str = "tiny",
    template: str | None = None,
    special: bool = True,
    feed_forward: int = FEED_FORWARD,
    matrices: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    rounded_to: gguf.GGMLQuantizationType | None = None,
) -> Path:
    """Writes a model file; returns its path.

    With pooling RANK the model has a classifier head. ``template`` is for reranking. Without ``special`` the
    file does not mark its special tokens. The matrices of its layers have the type ``matrices``. Their values
    are rounded to values of the type ``rounded_to``.
    """
    random = np.random.default_rng(3)
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_name(name)
    writer.add_block_count(LAYERS)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(feed_forward)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_token_type_count(2)
    if pooling is not None:
        writer.add_pooling_type(pooling)
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([*SPECIAL, *("\u2581" + text for text in WORDS)])
    writer.add_token_types([gguf.TokenType.CONTROL] * len(SPECIAL) + [gguf.TokenType.NORMAL] * len(WORDS))
    if special:
        writer.add_bos_token_id(CLS)
        writer.add_sep_token_id(SEP)
        writer.add_unk_token_id(UNK)
        writer.add_pad_token_id(PAD)
        writer.add_mask_token_id(MASK)
    if template is not None:
        writer.add_chat_template([{"name": "rerank", "template": template}])

    def noise(tensor: str, *shape: int) -> None:
        writer.add_tensor(tensor, random.normal(0, 0.5, shape).astype(np.float32))

    def linear(tensor: str, rows: int, columns: int) -> None:
        values = random.normal(0, 0.5, (rows, columns)).astype(np.float32)
        if rounded_to is not None:
            values = dequantize(quantize(values, rounded_to), rounded_to)
        writer.add_tensor(f"{tensor}.weight", quantize(values, matrices), raw_dtype=matrices)
        noise(f"{tensor}.bias", rows)

    def norm(tensor: str) -> None:
        writer.add_tensor(f"{tensor}.weight", np.ones(WIDTH, np.float32))
        writer.add_tensor(f"{tensor}.bias", np.zeros(WIDTH, np.float32))

    noise("token_embd.weight", FIRST_WORD + len(WORDS), WIDTH)
    noise("position_embd.weight", CONTEXT, WIDTH)
    noise("token_types.weight", 2, WIDTH)
    norm("token_embd_norm")
    for layer in range(LAYERS):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            linear(f"blk.{layer}.{part}", WIDTH, WIDTH)
        linear(f"blk.{layer}.ffn_up", feed_forward, WIDTH)
        linear(f"blk.{layer}.ffn_down", WIDTH, feed_forward)
        norm(f"blk.{layer}.attn_output_norm")
        norm(f"blk.{layer}.layer_output_norm")
    if pooling == gguf.PoolingType.RANK:
        linear("cls", WIDTH, WIDTH)
        linear("cls.output", 1, WIDTH)
    write_file(writer)
    return path
