"""Writes docs/config.md and docs/config.schema.json from the option table.

``python -m inferd.config.docs`` writes both files in the folder ``docs`` of the current directory. With
``--check``, the command writes nothing, and exits with 1 if one of the two files is outdated.
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

A value can come from four places. A flag of `inferd serve` has precedence over the environment, the
environment over the config file, and the config file over the default. An empty variable counts as not set.
The log notes each flag and each variable that overrides the config file. For each unknown variable that
begins with `INFERD_`, the log notes the most similar known name. Secrets never appear in `--help`, in logs or
in errors. `inferd config show --origin` prints every value with its source.

*Live* marks an option that can change while the daemon runs. To apply such a change, run `inferd reload` or
send SIGHUP to the daemon, which then reads its configuration again. To change any other option, restart the
daemon.

The *runtime directory* is `$XDG_RUNTIME_DIR/inferd`, else `~/.inferd/run`, else `/tmp/inferd-UID`; on macOS
it is `$TMPDIR/inferd`. `--config` or `INFERD_CONFIG` names the config file. The default is
`~/.inferd/config.json`, if that file exists. inferd refuses a config file if another user owns it, can write
to it or can replace it.
"""

_FILE_HEAD = """\
## The config file

The config file is one JSON object. If the file has an error, the daemon does not start, and the message names
the file, the key and the reason. For an unknown key, the log has a warning with the most similar known name.
A config file has either `backends` or `model`. `backends` is a list of config entries, one for each backend,
in order of priority. `model` is a model object, and means the same as a list with one `llamacpp` config
entry. Without `backends` and `model`, the daemon serves the model of `--model`, or else the default model.
The config file contains no secrets, only the names of environment variables that hold secrets. The sections
above give the config key of each option. A dot in a key means an object inside an object:
`limits.max_connections` is the key `max_connections` of the object `limits`. docs/config.schema.json
describes the file as a JSON Schema.

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
The API key of a config entry is the first of these that is set: `--openai-api-key` (for the first config
entry of this kind), the variable that `api_key_env` names, `INFERD_OPENAI_API_KEY`, `OPENAI_API_KEY`. If none
of them is set, inferd sends no key.
""",
    "bedrock-invoke": """
The bearer token of a config entry is the first of these that is set: `--bedrock-bearer-token` (for the first
config entry of this kind), the variable that `bearer_token_env` names, `AWS_BEARER_TOKEN_BEDROCK`. If none of
them is set, inferd signs each request with `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, and with
`AWS_SESSION_TOKEN` if this variable is set. Without a bearer token and without these keys, the daemon does
not start.
""",
}


DIALECT = "https://json-schema.org/draft/2020-12/schema"


def markdown() -> str:
    """Returns the content of docs/config.md."""
    return "\n".join([_HEAD, *_options(), _FILE_HEAD, *_backends()]) + "\n"


def schema() -> str:
    """Returns the JSON Schema of the config file."""
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
    named = (("flag", option.flag), ("variable", option.env), ("config key", option.key))
    names = [f"{what} `{name}`" for what, name in named if name is not None]
    live = " *Live.*" if option.reload else ""
    return (
        f"### {option.name}\n\n{option.doc}\n\n"
        f"- Set by: {', '.join(names)}.\n"
        f"- Value: {option.kind.description}. Default: {_default(option)}.{live}\n"
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
            yield "- `model`: a model object. Cannot be combined with `model_path`."
            yield "- `lora`: a list of adapter objects. These are the LoRA adapters that a request may name."
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
    """Writes or checks both files. Returns the exit status."""
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
