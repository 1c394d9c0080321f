#!/usr/bin/env bash
# Two libraries meet: ollama-python reads a stream of JSON lines through httpx's iter_lines.
#
# Guess before the run: a line of NDJSON ends at "\n" alone, so a string may hold U+0085 (next line), U+2028 or
#   U+2029 as they are, which JSON allows.
# Seen: with ollama 0.6.3 and httpx 0.28.1 the line ends at each of the three, as with str.splitlines, and the client
#   raises JSONDecodeError in the middle of a stream. Escaped, the same strings arrive. Without a stream both forms do.
# Meant for: servers of Ollama's API. Go's encoder escapes U+2028 and U+2029 by itself, but not U+0085; orjson,
#   msgspec and json.dumps(ensure_ascii=False) escape none of them.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q ollama==0.6.3 httpx==0.28.1
"$dir/venv/bin/python" - <<'PYTHON'
import http.server
import json
import threading

import ollama


class Server(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        mark, escaped = asked["messages"][0]["content"]
        answer = [
            {"model": "m", "message": {"role": "assistant", "content": f"one{mark}two"}, "done": not asked["stream"]}
        ]
        if asked["stream"]:
            answer.append({"model": "m", "message": {"role": "assistant", "content": ""}, "done": True})
        body = b"".join(json.dumps(each, ensure_ascii=escaped == "1").encode() + b"\n" for each in answer)
        self.send_response(200)
        self.send_header("content-type", "application/x-ndjson")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


server = http.server.HTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = ollama.Client(f"http://127.0.0.1:{server.server_port}")


def streamed(mark, escaped):
    try:
        parts = client.chat("m", [{"role": "user", "content": mark + escaped}], stream=True)
        return "".join(part.message.content for part in parts)
    except json.JSONDecodeError as error:
        return type(error).__name__


def whole(mark, escaped):
    return client.chat("m", [{"role": "user", "content": mark + escaped}]).message.content


for mark in "\x85\u2028\u2029":
    seen = [streamed(mark, "0"), streamed(mark, "1"), whole(mark, "0"), whole(mark, "1")]
    print(f"U+{ord(mark):04X}: streamed raw {seen[0]!a}, streamed escaped {seen[1]!a}, whole raw {seen[2]!a}")
    assert seen == ["JSONDecodeError", *[f"one{mark}two"] * 3], seen
print("as written at the top")
PYTHON
