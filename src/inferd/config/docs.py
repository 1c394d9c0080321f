"""Writes docs/config.md and docs/config.schema.json from the option table.

``python -m inferd.config.docs`` writes both below the current directory; ``--check`` only compares, and exits
with 1 if one is stale.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from inferd.config.file import shape
from inferd.config.keys import BACKEND_KEYS, LORA_KEYS, MODEL_KEYS, TAKES_MODEL, Key
from inferd.config.option import Option
from inferd.config.settings import OPTIONS

_HEAD = """\
# Configuration

<!-- Made by `python -m inferd.config.docs` from the option table in src/inferd/config. -->

A flag of `inferd serve` takes precedence over the environment, the environment over the config file, and the
config file over the default. An empty variable counts as not set. The log notes a flag or a variable that
overrides the config file, and an unknown variable that begins with `INFERD_`, with the nearest known name.
Secrets never appear in `--help`, in logs or in errors. A *live* option can change while the daemon runs: the
daemon reads its configuration again on SIGHUP. `inferd config show --origin` prints every value with its
source.

The *runtime directory* is `$XDG_RUNTIME_DIR/inferd`, else `~/.inferd/run`, else `/tmp/inferd-UID`; on macOS
it is `$TMPDIR/inferd`. The config file is `~/.inferd/config.json`, or the one that `--config` or
`INFERD_CONFIG` names; the default one may be absent, a named one must exist. inferd refuses a file that
another user owns, or can write or replace.
"""

_FILE_HEAD = """\
## The config file

The file is one JSON object. An error in it names the file, the key and the reason, and the daemon does not
start. An unknown key is a warning with the nearest known name. A file has `backends`, a list in order of
priority, or `model`, a model object, which is short for a list of one `llamacpp` entry. With neither, the
daemon serves the default model or that of `--model`. The file has no secrets, only the names of the variables
that hold them. The keys of single options are given above; a dot is an object inside an object.
docs/config.schema.json describes the file as a JSON Schema.

```json
{
  "backends": [{"kind": "llamacpp", "name": "chat", "model": {"name": "smollm2-135m-instruct"}}],
  "engine": {"active_permits": 2},
  "limits": {"max_connections": 64}
}
```
"""


_KEYS = {
    "openai-compat": """
The key is that of `--openai-api-key` for the first entry of this kind, else the value of the variable in
`api_key_env`, else of `INFERD_OPENAI_API_KEY`, else of `OPENAI_API_KEY`. Without any, no key is sent.
""",
    "bedrock-invoke": """
A request carries the bearer token of `--bedrock-bearer-token` for the first entry of this kind, else of the
variable in `bearer_token_env`, else of `AWS_BEARER_TOKEN_BEDROCK`. Without one it is signed with
`AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, and `AWS_SESSION_TOKEN` where it is set. With neither the
daemon does not start.
""",
}


DIALECT = "https://json-schema.org/draft/2020-12/schema"


def markdown() -> str:
    """The whole of docs/config.md."""
    return "\n".join([_HEAD, *_options(), _FILE_HEAD, *_backends()]) + "\n"


def schema() -> str:
    """The config file's JSON Schema."""
    made = {"$schema": DIALECT, **msgspec.json.schema(shape()[0])}
    for part in made["$defs"].values():
        if "properties" in part:
            part["additionalProperties"] = (
                False  # an unknown key is a warning of the daemon, but an error in an editor
            )
    made["$defs"]["Config"]["properties"]["$schema"] = {"type": "string"}
    return json.dumps(made, indent=2, sort_keys=True) + "\n"


def _options() -> Iterator[str]:
    for group in dict.fromkeys(option.group for option in OPTIONS):
        yield f"## {group}\n"
        for option in OPTIONS:
            if option.group == group:
                yield _option(option)


def _option(option: Option) -> str:
    names = [f"`{name}`" for name in (option.flag, option.env) if name is not None]
    if option.key is not None:
        names.append(f"config `{option.key}`")
    live = "; *live*" if option.reload else ""
    return (
        f"### {option.name}\n\n{option.doc}\n\n"
        f"- {' · '.join(names)}\n- {option.kind.description}; default {_default(option)}{live}\n"
    )


def _default(option: Option) -> str:
    if option.default_doc:
        return option.default_doc
    if option.default is None:
        return "none"
    return f"`{json.dumps(option.default)}`" if isinstance(option.default, bool) else f"`{option.default}`"


def _backends() -> Iterator[str]:
    for kind, keys in BACKEND_KEYS.items():
        yield f'### backends[] of `"kind": "{kind}"`\n\n{_keys(keys)}'
        if kind in TAKES_MODEL:
            yield "- `model`: a model object; excludes `model_path`."
            yield "- `lora`: a list of adapter objects. The LoRA adapters that a request may name."
        yield _KEYS.get(kind, "")
    yield f"### a model object\n\n{_keys(MODEL_KEYS)}"
    yield "- `mmproj`: a path, or a model object without `mmproj`. The projector for pictures or sounds.\n"
    yield f"### an adapter object\n\n{_keys(LORA_KEYS)}"


def _keys(keys: tuple[Key, ...]) -> str:
    return "\n".join(
        f"- `{key.name}`{' (required)' if key.required else ''}: {key.kind.description}. {key.doc}"
        for key in keys
    )


def main(arguments: list[str]) -> int:
    """Writes or checks the files; returns the exit code."""
    status = 0
    for path, text in ((Path("docs/config.md"), markdown()), (Path("docs/config.schema.json"), schema())):
        if arguments != ["--check"]:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            print(f"{path} is stale; run: python -m inferd.config.docs", file=sys.stderr)  # noqa: T201
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
