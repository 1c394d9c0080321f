"""Small models with the tokenizer and chat template of the demo model. Each is written in a moment.

The next token of ``write_llama`` is independent of the context: an answer under a grammar is random and ends.
``random_llama`` has random weights, so each token depends on all tokens before it. It never ends its turn and
writes no control token.

The models have only the first tokens of the tokenizer, of which the later ones are merged, so that they load
in an eighth of the time. With ``whole``, a model has all tokens, for tests that need the more likely ones.
"""

from __future__ import annotations

import atexit
import mmap
import shutil
import struct
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tests.demo_model import demo_model

Floats = npt.NDArray[np.float32]

RANDOM_WIDTH = 64  # of the random model's embeddings
LIKELY = 7.0
ENDS = frozenset(b'"}],')

WIDTH = 32  # of the embeddings of the model without preferences
VOCABULARY = 8192
_ALIGNMENT = 32
_UINT16, _UINT32, _INT32, _FLOAT32, _STRING, _ARRAY = 2, 4, 5, 6, 8, 9
_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_NORMAL, _CONTROL = 1, 3  # the types of a token that is text, and of one that is none


def write_llama(
    path: Path,
    *,
    files: int = 1,
    keys: Mapping[str, int | str] | None = None,
    eager: bool = False,
    whole: bool = False,
    vocabulary: int = 0,
    template: str = "",
    **sampling: float,
) -> Path:
    """Writes a model of one layer, which prefers tokens that end something; returns its path.

    An ``eager`` model ends its turn as soon as it may. Its file recommends ``sampling`` and has the further
    ``keys``. With several ``files`` the model is split, and the path is that of the first file.
    Unlikely tokens are added until there are ``vocabulary`` tokens. A ``template`` replaces the tokenizer's.
    """
    width = WIDTH
    tokenizer = _whole_tokenizer() if whole else _tokenizer()
    tokenizer = _longer(tokenizer, vocabulary)
    if template:
        tokenizer = {**tokenizer, "tokenizer.chat_template": _value(template)}
    tokens = _texts(tokenizer["tokenizer.ggml.tokens"])
    output = np.zeros((len(tokens), width), dtype=np.float32)
    output[:, 0] = [LIKELY if text[:1] and text[0] in ENDS else 0.0 for text in tokens]
    if eager:
        output[[text == b"<|im_end|>" for text in tokens], 0] = 3 * LIKELY
        output[[text.startswith((b"</", b"}\n")) for text in tokens], 0] = 2 * LIKELY  # of a tool call
    tensors = {"token_embd.weight": np.ones_like(output), "output.weight": output}
    nothing = np.zeros((width, width), dtype=np.float32)
    more: dict[str, str | float] = {f"general.sampling.{name}": value for name, value in sampling.items()}
    more |= keys or {}
    names = [path]
    if files > 1:
        names = [path.with_name(f"{path.stem}-{i:05}-of-{files:05}.gguf") for i in range(1, files + 1)]
    _write(names, tokenizer, tensors, dict.fromkeys(_LAYER, nothing), layers=1, heads=1, **more)
    return names[0]


@cache
def random_llama(layers: int = 2, seed: int = 7) -> Path:
    """The path of a model, which lasts as long as this process.

    Models of one ``seed`` form a family: they differ only in the number of their equal ``layers``.
    """
    directory = Path(tempfile.mkdtemp(prefix="inferd-tests-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    width, random = RANDOM_WIDTH, np.random.default_rng(seed)
    control = control_tokens()
    embeddings = random.standard_normal((len(control), width), dtype=np.float32)
    output = random.standard_normal((len(control), width), dtype=np.float32)
    output[control] = 0.0
    tensors = {"token_embd.weight": embeddings, "output.weight": output}
    matrices = {name: random.standard_normal((width, width), dtype=np.float32) / 8 for name in _LAYER}
    matrices["attn_output"] *= 6  # otherwise the average over a long prompt would have little effect
    _write([directory / "random.gguf"], _tokenizer(), tensors, matrices, layers=layers, heads=2)
    return directory / "random.gguf"


def write_adapter(path: Path, seed: int, width: int = RANDOM_WIDTH) -> Path:
    """Writes a LoRA adapter for the random model, or for one of another ``width``; returns its path."""
    random, rank = np.random.default_rng(seed), 4
    keys: dict[str, str | int | float] = {
        "general.architecture": "llama",
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": float(rank),
    }
    tensors = {
        f"blk.{layer}.ffn_down.weight.lora_{half}": random.standard_normal(shape, dtype=np.float32)
        for layer in range(2)
        for half, shape in (("a", (rank, width)), ("b", (width, rank)))
    }
    _write_file(path, [_text(key) + _value(value) for key, value in keys.items()], tensors)
    return path


_LAYER = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def _write(
    paths: Sequence[Path],
    tokenizer: Mapping[str, bytes],
    tensors: dict[str, Floats],
    matrices: Mapping[str, Floats],
    *,
    layers: int,
    heads: int,
    **more: str | float,
) -> None:
    """Writes the files, each with header, keys, the list of its tensors, and the tensors. Each layer has the
    same ``matrices``."""
    vocabulary, width = tensors["output.weight"].shape
    ones = np.ones(width, dtype=np.float32)
    tensors = {**tensors, "output_norm.weight": ones}
    for layer in range(layers):
        tensors |= {f"blk.{layer}.{name}.weight": ones for name in ("attn_norm", "ffn_norm")}
        tensors |= {f"blk.{layer}.{name}.weight": matrix for name, matrix in matrices.items()}
    keys: dict[str, str | int | float] = {
        "general.architecture": "llama",
        "llama.context_length": 8192,
        "llama.embedding_length": width,
        "llama.block_count": layers,
        "llama.feed_forward_length": width,
        "llama.attention.head_count": heads,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.vocab_size": vocabulary,
        **more,
    }
    entries = _entries(keys, tokenizer)
    items = list(tensors.items())
    for number, path in enumerate(paths):
        own = dict(items[number :: len(paths)])
        if len(paths) > 1:
            split = [
                _text("split.no") + struct.pack("<IH", _UINT16, number),
                _text("split.count") + struct.pack("<IH", _UINT16, len(paths)),
                _text("split.tensors.count") + struct.pack("<Ii", _INT32, len(items)),
            ]
            entries = [*(entries if number == 0 else entries[:1]), *split]
        _write_file(path, entries, own)
        entries = entries[:1]


def write_model(
    path: Path, keys: Mapping[str, str | int | float | Sequence[int]], tensors: Mapping[str, Floats]
) -> Path:
    """Writes a file with these keys in addition to the tokenizer's; returns its path."""
    _write_file(path, _entries(keys, _tokenizer()), tensors)
    return path


def control_tokens() -> npt.NDArray[np.bool_]:
    """The control tokens of the vocabulary."""
    types = _tokenizer()["tokenizer.ggml.token_type"]
    return np.frombuffer(types, dtype="<i4", offset=16) == _CONTROL  # behind two types and the count


def _entries(
    keys: Mapping[str, str | int | float | Sequence[int]], tokenizer: Mapping[str, bytes]
) -> list[bytes]:
    entries = [_text(key) + _value(value) for key, value in keys.items()]
    return entries + [_text(key) + value for key, value in tokenizer.items()]


def _write_file(path: Path, entries: Sequence[bytes], tensors: Mapping[str, Floats]) -> None:
    infos, offset = [], 0
    for name, tensor in tensors.items():
        shape = tensor.shape[::-1]
        layout = f"<I{len(shape)}QIQ"
        infos.append(_text(name) + struct.pack(layout, len(shape), *shape, 0, offset))
        offset += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries)) + b"".join(entries + infos)
    with path.open("wb") as file:
        for part in (head, *(tensor.tobytes() for tensor in tensors.values())):
            file.write(part + b"\0" * (-len(part) % _ALIGNMENT))


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: str | int | float | Sequence[int]) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    if isinstance(value, int):
        return struct.pack("<II", _UINT32, value)
    if isinstance(value, Sequence):
        return struct.pack(f"<IIQ{len(value)}I", _ARRAY, _UINT32, len(value), *value)
    return struct.pack("<If", _FLOAT32, value)


@cache
def _whole_tokenizer() -> dict[str, bytes]:
    """The keys of the tokenizer, each with its type and value as in the file."""
    found = {}
    with demo_model().open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        (n_keys,) = struct.unpack_from("<Q", data, 16)
        at = 24
        for _ in range(n_keys):
            begin = _behind(data, _STRING, at)
            key = data[at + 8 : begin].decode()
            (kind,) = struct.unpack_from("<I", data, begin)
            at = _behind(data, kind, begin + 4)
            if key.startswith("tokenizer."):
                found[key] = data[begin:at]
    return found


@cache
def _tokenizer() -> dict[str, bytes]:
    found = dict(_whole_tokenizer())
    less = _count(found["tokenizer.ggml.tokens"]) - VOCABULARY
    for name in ("tokens", "token_type", "merges"):
        items = found[f"tokenizer.ggml.{name}"]
        found[f"tokenizer.ggml.{name}"] = _first(items, _count(items) - less)
    return found


def _longer(tokenizer: Mapping[str, bytes], vocabulary: int) -> Mapping[str, bytes]:
    """The tokenizer with at least so many tokens."""
    tokens, types = (tokenizer[f"tokenizer.ggml.{name}"] for name in ("tokens", "token_type"))
    more = range(_count(tokens), vocabulary)
    if not more:
        return tokenizer
    count = struct.pack("<Q", vocabulary)
    tokens = tokens[:8] + count + tokens[16:] + b"".join(_text(f"<more {number}>") for number in more)
    types = types[:8] + count + types[16:] + struct.pack("<i", _NORMAL) * len(more)
    return {**tokenizer, "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}


def _count(value: bytes) -> int:
    """The header of a list: its type, the type of its items and their count."""
    (count,) = struct.unpack_from("<Q", value, 8)
    return int(count)


def _first(value: bytes, count: int) -> bytes:
    """The list of the first ``count`` items."""
    head = value[:8] + struct.pack("<Q", count)
    kind, at = int.from_bytes(value[4:8], "little"), len(head)
    if kind != _STRING:
        return head + value[at : at + count * _WIDTHS[kind]]
    for _ in range(count):
        at += 8 + int.from_bytes(value[at : at + 8], "little")
    return head + value[len(head) : at]


def _behind(data: mmap.mmap, kind: int, at: int) -> int:
    """The end of the value of this type at ``at``."""
    if kind == _STRING:
        return at + 8 + int.from_bytes(data[at : at + 8], "little")
    if kind != _ARRAY:
        return at + _WIDTHS[kind]
    kind, count = struct.unpack_from("<IQ", data, at)
    at += 12
    if kind != _STRING:
        return at + count * _WIDTHS[kind]
    for _ in range(count):
        at += 8 + int.from_bytes(data[at : at + 8], "little")
    return at


def _texts(value: bytes) -> list[bytes]:
    """The items of a list of texts."""
    texts, at = [], 16
    for _ in range(_count(value)):
        end = at + 8 + int.from_bytes(value[at : at + 8], "little")
        texts.append(value[at + 8 : end])
        at = end
    return texts
