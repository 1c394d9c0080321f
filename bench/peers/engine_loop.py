"""inferd's own engine with no daemon and no socket around it.

Arguments: model, threads, n_ctx. Each line of stdin is a JSON object with ``messages`` and ``n_predict``;
each line of stdout is one with ``prompt`` (token ids), ``times`` (seconds of the clock at each token) and
``prefill_ms``.
"""

from __future__ import annotations

import array
import json
import os
import select
import sys
import threading
import time

from inferd.engine import _llama

path, threads, n_ctx = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
model = _llama.Model(os.open(path, os.O_RDONLY), path=path, n_gpu_layers=0, report=lambda fraction: True)
engine = _llama.Engine(
    model,
    n_ctx=n_ctx,
    n_seq=1,
    n_batch=512,
    threads=threads,
    flash_attention="off",
    kv_type="f16",
    unified=False,
)
engine.warm_up()
threading.Thread(target=engine.run, daemon=True).start()
print("ready", flush=True)

for line in sys.stdin:
    request = json.loads(line)
    tokens, stops = model.prompt(json.dumps(request["messages"]).encode())
    job = engine.submit(
        tokens,
        max_tokens=request["n_predict"],
        temperature=0.0,
        top_p=1.0,
        top_k=0,
        min_p=0.0,
        repeat_penalty=1.0,
        presence_penalty=0.0,
        frequency_penalty=0.0,
        seed=0,
        grammar=b"",
        stops=stops,
        frame=(b'{"type":"token","id":"b","content":"', b'"}\n'),
    )
    times: list[float] = []
    result = None
    while result is None:
        select.select([engine.fileno()], [], [])
        engine.ready()
        data, result = engine.collect(job)
        times += [time.perf_counter()] * data.count(b"\n")
    _, _, _, _, completion_tokens, prefill_ms, _, _ = result
    answer = {"prompt": list(array.array("i", tokens)), "prefill_ms": prefill_ms, "times": times}
    print(json.dumps(answer | {"completion_tokens": completion_tokens}), flush=True)
os._exit(0)
