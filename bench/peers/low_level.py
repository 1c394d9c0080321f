"""A bare token loop on the low-level API of llama-cpp-python. The Python of the peers runs this file.

Arguments: model, threads, n_ctx. Each line of stdin is ``n_predict HEX``, the prompt's text in hex; each line
of stdout is a JSON object with ``prefill_ms`` and ``times`` (seconds of the clock at each token).
"""

import ctypes
import json
import sys
import time

import llama_cpp as ll

path, threads, n_ctx = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
quiet = ll.llama_log_callback(lambda level, text, data: None)
ll.llama_log_set(quiet, ctypes.c_void_p(0))
ll.llama_backend_init()
model = ll.llama_model_load_from_file(path.encode(), ll.llama_model_default_params())
params = ll.llama_context_default_params()
params.n_ctx = n_ctx
params.n_batch = 512
params.n_threads = params.n_threads_batch = threads
params.flash_attn_type = 0
ctx = ll.llama_init_from_model(model, params)
vocab = ll.llama_model_get_vocab(model)
memory = ll.llama_get_memory(ctx)
sampler = ll.llama_sampler_init_greedy()
piece = ctypes.create_string_buffer(256)
print("ready", flush=True)

for line in sys.stdin:
    n_predict, text = int(line.split()[0]), bytes.fromhex(line.split()[1])
    ids = (ll.llama_token * n_ctx)()
    prompt = ids[: ll.llama_tokenize(vocab, text, len(text), ids, n_ctx, True, True)]
    ll.llama_memory_clear(memory, True)
    start = time.perf_counter()
    for at in range(0, len(prompt), 512):
        chunk = (ll.llama_token * len(prompt[at : at + 512]))(*prompt[at : at + 512])
        assert ll.llama_decode(ctx, ll.llama_batch_get_one(chunk, len(chunk))) == 0
    token = ll.llama_sampler_sample(sampler, ctx, -1)
    times = [time.perf_counter()]
    one = (ll.llama_token * 1)(token)
    while len(times) < n_predict and not ll.llama_vocab_is_eog(vocab, token):
        ll.llama_token_to_piece(vocab, token, piece, 256, 0, False)
        one[0] = token
        assert ll.llama_decode(ctx, ll.llama_batch_get_one(one, 1)) == 0
        token = ll.llama_sampler_sample(sampler, ctx, -1)
        times.append(time.perf_counter())
    print(json.dumps({"prefill_ms": (times[0] - start) * 1e3, "times": times}), flush=True)
