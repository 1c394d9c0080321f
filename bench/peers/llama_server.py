"""Runs llama-server from the xllamacpp wheel. The Python of the peers runs this file in a process of its own.

Arguments: one JSON object with ``model``, ``port``, ``threads``, ``n_ctx`` (of one slot), ``slots``,
``flash_attention`` (``auto``, ``on`` or ``off``), ``embedding`` to serve embeddings instead of text, and
``n_grams`` to draft from n-grams. Prints one line once it listens, and ends on SIGTERM.
"""

import json
import signal
import sys

import xllamacpp

settings = json.loads(sys.argv[1])
flash = xllamacpp.llama_flash_attn_type
params = xllamacpp.CommonParams()
params.model.path = settings["model"]
params.port = settings["port"]
params.cpuparams.n_threads = settings["threads"]
params.cpuparams_batch.n_threads = settings["threads"]
params.n_parallel = settings["slots"]
params.n_ctx = settings["n_ctx"] * settings["slots"]
params.kv_unified = False
params.flash_attn_type = {
    "auto": flash.LLAMA_FLASH_ATTN_TYPE_AUTO,
    "on": flash.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    "off": flash.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}[settings["flash_attention"]]
if settings.get("embedding"):
    params.embedding = True
    params.n_batch = params.n_ubatch = settings["n_ctx"]  # an input has to fit into one batch
if settings.get("n_grams"):
    params.speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE]
params.ui = False
params.verbosity = 0

signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
signal.pause()
