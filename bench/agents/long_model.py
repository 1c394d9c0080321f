"""Writes a small real model for the prompts of agents: ``python -m bench.agents.long_model FILE``.

The model is the default model with a context of 32,768 tokens instead of 8,192 (YaRN), and with the chat
template of Qwen 2.5, which supports tools. The template comes from the sources of llama.cpp that the build
has downloaded. Without a penalty the model repeats itself until the context is full.
"""

from __future__ import annotations

import sys
from pathlib import Path

import gguf
from gguf.scripts.gguf_new_metadata import MetadataDetails, copy_with_new_metadata

from tests.demo_model import demo_model

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = ROOT / "vendor" / "llama.cpp" / "models" / "templates" / "Qwen-Qwen2.5-7B-Instruct.jinja"
TRAINED, FACTOR = 8192, 4
PENALTY = 1.3


def write(path: Path) -> None:
    """Writes the model to ``path``."""
    reader = gguf.GGUFReader(demo_model())
    kind = gguf.GGUFValueType
    keys = {
        "llama.context_length": MetadataDetails(kind.UINT32, TRAINED * FACTOR),
        "llama.rope.scaling.type": MetadataDetails(kind.STRING, "yarn"),
        "llama.rope.scaling.factor": MetadataDetails(kind.FLOAT32, float(FACTOR)),
        "llama.rope.scaling.original_context_length": MetadataDetails(kind.UINT32, TRAINED),
        "general.sampling.penalty_repeat": MetadataDetails(kind.FLOAT32, PENALTY),
        "tokenizer.chat_template": MetadataDetails(kind.STRING, TEMPLATE.read_text()),
    }
    writer = gguf.GGUFWriter(path, "llama")
    copy_with_new_metadata(reader, writer, keys, ())


if __name__ == "__main__":
    write(Path(sys.argv[1]))
