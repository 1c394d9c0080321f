"""Small random models with other kinds of memory: recurrent, hybrid, and with a sliding window.

Each token depends on the tokens before it, and none is a control token, as in ``random_llama``.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

from tests.tiny_llama import Floats, control_tokens, write_model

WIDTH = 64
WINDOW = 32  # tokens of the sliding window
_INNER, _STATE, _CONV, _RANK = 2 * WIDTH, 8, 4, 8


@cache
def random_model(architecture: str) -> Path:
    """The path of a model that lasts as long as this process: ``mamba``, ``jamba`` (a recurrent layer and one
    with attention) or ``cohere2`` (a layer with a sliding window and one without)."""
    directory = Path(tempfile.mkdtemp(prefix="inferd-tests-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    random = np.random.default_rng(11)

    def some(*shape: int) -> Floats:
        return random.standard_normal(shape, dtype=np.float32) / np.float32(8)

    control = control_tokens()
    embeddings = some(len(control), WIDTH) * 8
    if architecture == "cohere2":
        embeddings[control] = 0.0  # they are the output, too
    ones = np.ones(WIDTH, dtype=np.float32)
    tensors = {"token_embd.weight": embeddings, "output_norm.weight": ones}
    if architecture != "cohere2":
        tensors["output.weight"] = some(len(control), WIDTH) * 8
        tensors["output.weight"][control] = 0.0
    for layer in range(2):
        named = {"attn_norm.weight": ones}
        if architecture == "mamba" or (architecture == "jamba" and layer == 0):
            named |= {
                "ssm_in.weight": some(2 * _INNER, WIDTH) * 2,
                "ssm_conv1d.weight": some(_INNER, _CONV) * 8,
                "ssm_conv1d.bias": some(_INNER),
                "ssm_x.weight": some(_RANK + 2 * _STATE, _INNER) * 4,
                "ssm_dt.weight": some(_INNER, _RANK),
                "ssm_dt.bias": some(_INNER) - 4,
                "ssm_a": -np.exp(some(_INNER, _STATE)),
                "ssm_d": some(_INNER),
                "ssm_out.weight": some(WIDTH, _INNER) * 4,
            }
        else:
            named |= {f"attn_{name}.weight": some(WIDTH, WIDTH) for name in ("q", "k", "v")}
            named["attn_output.weight"] = some(WIDTH, WIDTH) * 6
        if architecture == "jamba" and layer == 0:
            norms = {"ssm_dt_norm": _RANK, "ssm_b_norm": _STATE, "ssm_c_norm": _STATE}
            named |= {f"{name}.weight": np.ones(size, dtype=np.float32) for name, size in norms.items()}
        if architecture == "jamba":
            named["ffn_norm.weight"] = ones
        if architecture != "mamba":
            named |= {f"ffn_{name}.weight": some(WIDTH, WIDTH) for name in ("gate", "up", "down")}
        tensors |= {f"blk.{layer}.{name}": tensor for name, tensor in named.items()}
    keys: dict[str, str | int | float | list[int]] = {
        "context_length": 8192,
        "embedding_length": WIDTH,
        "block_count": 2,
        "feed_forward_length": 0 if architecture == "mamba" else WIDTH,
        "vocab_size": len(control),
        "attention.head_count": 0 if architecture == "mamba" else 2,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }
    if architecture == "cohere2":
        window = {"attention.sliding_window": WINDOW, "attention.sliding_window_pattern": 2}
        keys |= {
            "attention.layer_norm_epsilon": 1e-5,
            "logit_scale": 1.0,
            "rope.dimension_count": 32,
            **window,
        }
    else:
        keys |= {"ssm.conv_kernel": _CONV, "ssm.inner_size": _INNER, "ssm.state_size": _STATE}
        keys["ssm.time_step_rank"] = _RANK
    if architecture == "jamba":
        keys["attention.head_count_kv"] = [0, 2]
    named_keys = {f"{architecture}.{name}": value for name, value in keys.items()}
    return write_model(
        directory / f"{architecture}.gguf", {"general.architecture": architecture, **named_keys}, tensors
    )
