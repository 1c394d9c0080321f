"""Combines flags, environment variables and the config file into the list of configured backends.

The config file lists config entries, one for each backend. A flag or variable for a kind of backend overrides
the first config entry of that kind. If the config file has no list, the flags and variables define the only
config entry. Secrets come from environment variables or flags. The config file never contains a secret, only
the names of variables that hold secrets.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from inferd.config.entries import (
    BackendEntry,
    BedrockEntry,
    InferdEntry,
    LlamaCppEntry,
    MockEntry,
    ModelSpec,
    OpenAICompatEntry,
)
from inferd.config.kinds import Secret, SecretText
from inferd.config.option import OptionValue, variable
from inferd.config.settings import OPTIONS, Settings
from inferd.errors import ConfigError

Env = Mapping[str, str]
Fields = dict[str, Any]
"""An unfinished config entry: its kind, and the fields known so far."""

_REMOTE = {"openai-compat": "openai_", "bedrock-invoke": "bedrock_"}
"""The prefix of a kind's options. The rest of an option's name is the name of a config entry's field."""

_OPTIONS: dict[str, tuple[str, ...]] = {
    "llamacpp": ("model", "model_path", "model_sha256", "n_ctx", "n_gpu_layers"),
    **{
        kind: tuple(option.name for option in OPTIONS if option.name.startswith(prefix))
        for kind, prefix in _REMOTE.items()
    },
}
_BY_NAME = {option.name: option for option in OPTIONS}


def entries(
    settings: Settings,
    chosen: Mapping[str, OptionValue],
    listed: Sequence[Mapping[str, Any]],
    env: Env,
    notes: list[str],
) -> tuple[BackendEntry, ...]:
    """Returns the complete config entries, at least one, in order of priority.

    ``settings`` has the values of all options. ``chosen`` has only the options that are set explicitly.
    ``listed`` has the config entries of the config file. Raises ConfigError if a backend lacks a required
    value.
    """
    found: list[Fields] = [dict(fields) for fields in listed]
    if "backend" in chosen and listed:
        kept = [fields for fields in found if fields["kind"] == settings.backend]
        if len(kept) < len(listed):
            notes.append(f"{chosen['backend'].origin} overrides `backends` of the config file")
        found = kept
    made = not found
    if made:
        found = [{"kind": settings.backend, "name": settings.backend}]
    for kind, names in _OPTIONS.items():
        given = [name for name in names if name in chosen and _is_explicit(name, chosen[name])]
        first = next((fields for fields in found if fields["kind"] == kind), None)
        origins = ", ".join(chosen[name].origin for name in given)
        if first is None and given:
            notes.append(f"{origins} has no effect without a backend of the kind {kind}")
        elif first is not None and made:
            _lay_over(first, settings, [name for name in names if not _BY_NAME[name].secret or name in given])
        elif first is not None and given:
            notes.append(f"{origins} overrides the entry {first['name']!r} of the config file")
            _lay_over(first, settings, given)
    return tuple(_complete(fields, settings, env, notes) for fields in found)


def _is_explicit(name: str, given: OptionValue) -> bool:
    """Whether the option overrides the value in a config entry. A secret in an environment variable is used
    only if the config entry has no secret of its own."""
    return given.place == "flag" or (given.place == "env" and not _BY_NAME[name].secret)


def _lay_over(fields: Fields, settings: Settings, names: list[str]) -> None:
    """Overrides the fields of a config entry with the values of the options ``names``. These options must be
    for the kind of the config entry."""
    kind = fields["kind"]
    if kind != "llamacpp":
        for name in names:
            value = getattr(settings, name)
            if value is not None:
                fields[name.removeprefix(_REMOTE[kind])] = value
        return
    fields.update({name: getattr(settings, name) for name in names if name in ("n_ctx", "n_gpu_layers")})
    sha256 = settings.model_sha256
    if {"model", "model_path"} & set(names):
        for name in ("mmproj", "lora", "draft"):  # these fit only the replaced model
            fields.pop(name, None)
    if settings.model_path is not None and {"model", "model_path"} & set(names):
        fields.update(model=None, model_path=settings.model_path, model_sha256=sha256)
    elif "model" in names:
        fields.update(model=ModelSpec(name=settings.model, sha256=sha256), model_path=None, model_sha256=None)
    elif "model_sha256" in names and fields.get("model") is not None:
        fields["model"] = ModelSpec(name=fields["model"].name, sha256=sha256)
    elif "model_sha256" in names:
        fields["model_sha256"] = sha256


def _complete(fields: Fields, settings: Settings, env: Env, notes: list[str]) -> BackendEntry:
    fields = dict(fields)
    kind = fields.pop("kind")
    if kind == "mock":
        return MockEntry(**fields)
    if kind == "llamacpp":
        return LlamaCppEntry(**{"n_ctx": settings.n_ctx, "n_gpu_layers": settings.n_gpu_layers, **fields})
    if kind == "inferd":
        return _inferd(fields, env, notes)
    if kind == "openai-compat":
        _check_needed(fields, kind, ("base_url", "model"))
        return _openai(fields, env, notes)
    _check_needed(fields, kind, ("region", "model_id"))
    return _bedrock(fields, env, notes)


def _check_needed(fields: Fields, kind: str, needed: tuple[str, ...]) -> None:
    """Raises ConfigError if a required field is missing. For a config entry of the config file, the parser of
    the file has already checked the required keys. This function checks flags and variables."""
    missing = [_BY_NAME[_REMOTE[kind] + name] for name in needed if name not in fields]
    if missing:
        flags = " and ".join(f"{option.flag} (or {option.env})" for option in missing)
        raise ConfigError(f"a backend of the kind {kind} needs {flags}")


def _openai(fields: Fields, env: Env, notes: list[str]) -> OpenAICompatEntry:
    key: Secret | None = fields.pop("api_key", None)
    named = fields.pop("api_key_env", None)
    if key is None:
        others = ("INFERD_OPENAI_API_KEY", "OPENAI_API_KEY")
        key = _first_secret(fields["name"], named, others, env, notes, otherwise="no key is sent")
    elif not key.reveal():
        key = None
    entry = OpenAICompatEntry(**fields, api_key=key)
    if key is not None:
        _note_if_seen(entry.name, entry.base_url, notes)
    return entry


def _inferd(fields: Fields, env: Env, notes: list[str]) -> InferdEntry:
    named = fields.pop("api_key_env", None)
    key = None
    if named is not None:
        key = _first_secret(fields["name"], named, (), env, notes, otherwise="no key is sent")
    entry = InferdEntry(**fields, api_key=key)
    given = [entry.address, entry.embed_address, entry.rerank_address]
    if not any(given):
        raise ConfigError(
            f"backend {entry.name!r} needs `address`, or `embed_address` or `rerank_address`, of the other"
            " daemon"
        )
    for address in given:
        if address is not None and "/" not in address and not _is_private(f"tcp://{address}"):
            notes.append(
                f"backend {entry.name!r} sends prompts to {address} unencrypted; forward a socket by ssh, or"
                " use an encrypted network"
            )
    return entry


def _note_if_seen(name: str, url: str, notes: list[str]) -> None:
    if not _is_private(url):
        notes.append(f"backend {name!r} sends its key to {url} unencrypted; use https")


def _is_private(url: str) -> bool:
    """Whether requests to ``url`` are encrypted or stay on this machine."""
    parts = urlsplit(url)
    try:
        here = ipaddress.ip_address(str(parts.hostname)).is_loopback
    except ValueError:
        here = parts.hostname == "localhost"
    return here or parts.scheme == "https"


def _bedrock(fields: Fields, env: Env, notes: list[str]) -> BedrockEntry:
    token: Secret | None = fields.pop("bearer_token", None)
    named = fields.pop("bearer_token_env", None)
    fields["endpoint"] = fields.get("endpoint") or None
    if token is None:
        others, otherwise = ("AWS_BEARER_TOKEN_BEDROCK",), "AWS_ACCESS_KEY_ID signs the requests"
        token = _first_secret(fields["name"], named, others, env, notes, otherwise=otherwise)
    entry = BedrockEntry(**fields, bearer_token=token)
    if token is not None:
        if entry.endpoint is not None:
            _note_if_seen(entry.name, entry.endpoint, notes)
        return entry
    key_id = _secret("AWS_ACCESS_KEY_ID", env)
    key = _secret("AWS_SECRET_ACCESS_KEY", env)
    if key_id is None or key is None:
        parts = (("AWS_ACCESS_KEY_ID", key_id), ("AWS_SECRET_ACCESS_KEY", key))
        missing = " and ".join(name for name, value in parts if value is None)
        raise ConfigError(
            f"backend {entry.name!r} has no credentials: set {named or 'AWS_BEARER_TOKEN_BEDROCK'} to a"
            f" bearer token, or set {missing}"
        )
    return entry._replace(
        access_key_id=key_id.reveal(),
        secret_access_key=key,
        session_token=_secret("AWS_SESSION_TOKEN", env),
    )


def _first_secret(
    entry: str, named: str | None, others: tuple[str, ...], env: Env, notes: list[str], *, otherwise: str
) -> Secret | None:
    """Returns the secret in the variable that the config file names. ``named`` is the name of this variable,
    or ``None``. If ``named`` is ``None``, or the variable is not set, returns the secret in the first
    variable of ``others`` that is set.
    """
    names = ((named,) if named is not None else ()) + others
    found = next((name for name in names if env.get(name)), None)
    if named is not None and found != named:
        instead = f"{found} is used instead" if found is not None else otherwise
        notes.append(f"backend {entry!r} names the variable {named}, which is not set; {instead}")
    return None if found is None else _secret(found, env)


def _secret(name: str, env: Env) -> Secret | None:
    text = env.get(name, "")
    return variable(name, SecretText(), text) if text else None
