"""Runs sentence-transformers on the CPU. The Python of the peers runs this file in a process of its own.

Arguments: the model's directory, threads. Each line of stdin is a JSON array of texts. Each line of stdout is
a JSON object with ``seconds`` (from the texts to an array of vectors) and the ``first`` vector.
"""

import json
import os
import sys
import time

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch
from sentence_transformers import SentenceTransformer

torch.set_num_threads(int(sys.argv[2]))
model = SentenceTransformer(sys.argv[1], device="cpu")
print("ready", flush=True)

for line in sys.stdin:
    texts = json.loads(line)
    start = time.perf_counter()
    vectors = model.encode(texts, normalize_embeddings=True, show_progress_bar=False)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "first": vectors[0].tolist()}), flush=True)
