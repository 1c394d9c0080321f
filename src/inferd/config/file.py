"""The config file: its shape, and the reading of one.

The shape is made from the option table for the single values and from the tables here for the backends;
msgspec checks the types and bounds, the kinds the form of strings. A file that cannot be read, parsed or
validated raises ConfigError with file, key and reason; a key that the shape does not know is a warning,
since a newer inferd may have written it.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NoReturn, Union

import msgspec

from inferd.config.addresses import DaemonAddress, Endpoint, HttpsUrl, ServerUrl
from inferd.config.entries import MAX_REQUESTS, ModelSpec
from inferd.config.kinds import (
    Boolean,
    Choice,
    FilePath,
    Integer,
    Kind,
    Name,
    Paragraphs,
    Sha256,
    Text,
    Words,
)
from inferd.config.settings import OPTIONS
from inferd.errors import ConfigError
from inferd.private import written_by_others

MAX_FILE_BYTES = 1024 * 1024
"""Far above any real config, so that a wrong path (a model, a device) fails at once."""

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Key:
    """One key of an object in the file."""

    name: str
    kind: Kind
    doc: str
    required: bool = False


_KINDS = {option.name: option.kind for option in OPTIONS}
_NAME = Key("name", Name(), "The name of the entry, unique in the file.", required=True)

MODEL_KEYS = (
    Key("name", Name(), "The model's name in the store or the catalogue.", required=True),
    Key(
        "sha256",
        Sha256(),
        "The hash of the file; without it inferd looks the name up in the store and the catalogue.",
    ),
    Key("source_url", HttpsUrl(), "The address of the file; empty if it is in the store."),
    Key("size_bytes", Integer(1, 2**63 - 1), "The size of the file."),
    Key("license", Text(), "The licence, stored with the file."),
)

_SERVES = Key(
    "serves",
    Name(),
    "Another name by which requests may ask for the entry; entries that serve one name form a pool "
    "(docs/scale.md). The name of its model when absent.",
)
_MAX_REQUESTS = Key(
    "max_requests",
    Integer(1, 1_000_000),
    f"Requests that the entry gets at once in its pool; {MAX_REQUESTS} when absent.",
)

BACKEND_KEYS: dict[str, tuple[Key, ...]] = {
    "llamacpp": (
        _NAME,
        Key("model_path", FilePath(), "A GGUF file; excludes `model`."),
        Key("aliases", Words("NAME"), "More names by which a request may ask for the entry."),
        Key(
            "preload",
            Boolean(),
            "Load the model at the start and keep it loaded; the default. With `false` it is loaded "
            "when a request names it.",
        ),
        Key("pin", Boolean(), "Keep the model loaded once a request has loaded it."),
        Key("system", Paragraphs(), "The system prompt of requests without one."),
        Key("chat_template_file", FilePath(), "A Jinja template to use instead of the model's own."),
        Key("n_ctx", _KINDS["n_ctx"], "Context of one request; the top-level `n_ctx` when absent."),
        Key("n_gpu_layers", _KINDS["n_gpu_layers"], "The top-level `n_gpu_layers` when absent."),
        Key("mmproj", FilePath(), "The GGUF file of the projector for pictures or sounds."),
        Key("embed", Boolean(), "The model makes embeddings, or ranks documents, instead of text."),
        Key(
            "embed_pooling",
            Choice(("mean", "cls", "last", "rank"), numbers={1: "mean", 2: "cls", 3: "last", 4: "rank"}),
            "How the vectors of the tokens are pooled, `rank` for a ranking model; llama.cpp's "
            "numbers 1 to 4 mean the same. The model file's value when absent.",
        ),
        Key("embed_n_ctx", Integer(1), "Tokens of the longest input to embed; 2048 when absent."),
        _SERVES,
    ),
    "openai-compat": (
        _NAME,
        Key("base_url", ServerUrl(), "The server, without the `/v1` of its API.", required=True),
        Key("model", _KINDS["openai_model"], "The server's name of the model.", required=True),
        Key("api_key_env", Name(), "The variable that holds the key; see below for the default."),
        Key(
            "timeout_secs",
            _KINDS["openai_timeout_secs"],
            "The longest silence of the server; 300 when absent.",
        ),
        Key("embed", Boolean(), "The server makes embeddings; as the option `embed` says when absent."),
        Key("rerank", Boolean(), "The server ranks documents; as the option `rerank` says when absent."),
        Key("top_k", Boolean(), "The server accepts `top_k`; OpenAI refuses it. Not sent when absent."),
        _SERVES,
        _MAX_REQUESTS,
    ),
    "bedrock-invoke": (
        _NAME,
        Key("region", _KINDS["bedrock_region"], "The AWS region of the model.", required=True),
        Key("model_id", _KINDS["bedrock_model_id"], "The id of the model.", required=True),
        Key("bearer_token_env", Name(), "The variable that holds a bearer token; see below."),
        Key("endpoint", Endpoint(), "A server to use instead of AWS's own."),
        Key(
            "timeout_secs",
            _KINDS["bedrock_timeout_secs"],
            "The longest silence of the server; 300 when absent.",
        ),
        _SERVES,
        _MAX_REQUESTS,
    ),
    "inferd": (
        _NAME,
        Key("address", DaemonAddress(), "The v2 surface of another daemon, for text."),
        Key("embed_address", DaemonAddress(), "Its embed surface, for embeddings."),
        Key("rerank_address", DaemonAddress(), "Its rerank surface, for rankings."),
        Key("model", Name(), "The model to ask for; the other daemon's first model when absent."),
        Key("api_key_env", Name(), "The variable that holds its key, which TCP requires."),
        Key(
            "timeout_secs",
            _KINDS["openai_timeout_secs"],
            "The longest silence of the server; 300 when absent.",
        ),
        _SERVES,
        _MAX_REQUESTS,
    ),
    "mock": (_NAME, _SERVES),
}

TAKES_MODEL = frozenset({"llamacpp"})
"""The kinds of backend that have a ``model`` object."""


@dataclass(frozen=True)
class ConfigFile:
    """What a file says: option name → (key, value), the backends' fields in order, and warnings."""

    values: Mapping[str, tuple[str, Any]] = field(default_factory=dict)
    backends: tuple[dict[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()


def _struct(name: str, fields: list[tuple[str, Any, bool]], **options: Any) -> Any:
    """A msgspec struct of (name, type, required) fields."""
    rows = [(key, kind) if needed else (key, Union[kind, None], None) for key, kind, needed in fields]  # noqa: UP007
    return msgspec.defstruct(name, rows, kw_only=True, **options)


def _rows(keys: tuple[Key, ...]) -> list[tuple[str, Any, bool]]:
    return [(key.name, _documented(key.kind, key.doc), key.required) for key in keys]


def _documented(kind: Kind, doc: str) -> Any:
    """The type of a value, with the sentence that an editor shows for its key."""
    return Annotated[kind.file_type, msgspec.Meta(description=doc)]


def _shape() -> tuple[Any, dict[str, Any]]:
    """The whole file as a msgspec type, and its known keys as nested dictionaries."""
    projector: Any = Union[FilePath().file_type, _struct("Projector", _rows(MODEL_KEYS))]  # noqa: UP007
    model = _struct("Model", [*_rows(MODEL_KEYS), ("mmproj", projector, False)])
    entries = [
        _struct(
            f"Backend_{kind}",
            _rows(keys) + ([("model", model, False)] if kind in TAKES_MODEL else []),
            tag_field="kind",
            tag=kind,
        )
        for kind, keys in BACKEND_KEYS.items()
    ]
    top: list[tuple[str, Any, bool]] = [
        ("model", model, False),
        ("backends", list[Union[tuple(entries)]], False),  # type: ignore[misc]  # noqa: UP007
    ]
    known: dict[str, Any] = {"model": None, "backends": None, "$schema": None}  # the last is an editor's
    sections: dict[str, list[tuple[str, Any, bool]]] = {}
    for option in OPTIONS:
        if option.key is not None:
            section, _, leaf = option.key.rpartition(".")
            rows = sections.setdefault(section, []) if section else top
            rows.append((leaf, _documented(option.kind, option.doc), False))
            (known.setdefault(section, {}) if section else known)[leaf] = None
    top.extend((name, _struct(name.capitalize(), rows), False) for name, rows in sections.items())
    return _struct("Config", top), known


FILE_TYPE, _KNOWN = _shape()


def read_file(path: Path, *, required: bool) -> ConfigFile:
    """Reads and checks the file at ``path``; an absent one is empty unless it is ``required``."""

    def fail(reason: str) -> NoReturn:
        raise ConfigError(f"config file {path}: {reason}")

    try:
        with path.open("rb") as stream:
            danger = written_by_others(path, stream.fileno())
            if danger is not None:
                fail(f"is refused: {danger}, who could send your prompts elsewhere")
            data = stream.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        if required:
            fail("there is no such file")
        return ConfigFile()
    except OSError as error:
        fail(f"cannot be read: {error.strerror}")
    if len(data) > MAX_FILE_BYTES:
        fail(f"is larger than {MAX_FILE_BYTES} bytes, so it is no config file")
    try:
        raw = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_sound, parse_int=_number)
        _check_kinds(raw)
        checked = _converted(raw)
        warnings = tuple(f"config file {path}: {text}" for text in _unknown(raw))
        return ConfigFile(_values(checked), _backends(checked), warnings)
    except UnicodeDecodeError:
        fail("is not UTF-8 text")
    except RecursionError:
        fail("is nested too deeply")
    except json.JSONDecodeError as error:
        fail(f"is not JSON: {error.msg} in line {error.lineno}, column {error.colno}")
    except ValueError as error:
        fail(str(error))


def _sound(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of ``pairs``, whose keys differ, and whose texts a system call or a terminal can take."""
    result = dict(pairs)
    for name, value in pairs:
        if any(_SURROGATE.search(text) for text in (name, value) if isinstance(text, str)):
            raise ValueError(f"`{_shown(name)}` holds half of a character (\\ud800 to \\udfff)")
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"`{_shown(next(name for name in names if names.count(name) > 1))}` is given twice")
    return result


def _number(text: str) -> int | float:
    """A number; Python refuses one of thousands of digits in words of its own, a bound refuses it by key."""
    return int(text) if len(text) <= 20 else float(text)


def _shown(key: str) -> str:
    return key if key.isprintable() else ascii(key)[1:-1]


def _converted(raw: Any) -> Any:
    """``raw`` as FILE_TYPE; what is missing may be there under a name that is spelt wrong."""
    try:
        return msgspec.convert(raw, FILE_TYPE)
    except msgspec.ValidationError as error:
        raise ValueError("; ".join((str(error), *_unknown(raw)))) from None


def _check_kinds(raw: Any) -> None:
    """Names the nearest kind for an unknown one; msgspec checks the rest of the shape."""
    listed = raw.get("backends") if isinstance(raw, dict) else None
    for position, entry in enumerate(listed if isinstance(listed, list) else ()):
        kind = entry.get("kind") if isinstance(entry, dict) else None
        if isinstance(kind, str) and kind not in BACKEND_KEYS:
            near = difflib.get_close_matches(kind, BACKEND_KEYS, n=1)
            hint = f"the nearest is {near[0]!r}" if near else f"known are {', '.join(BACKEND_KEYS)}"
            raise ValueError(f"`backends[{position}].kind` {kind!r} is not known; {hint}")


def _unknown(raw: Any) -> Iterator[str]:
    """A sentence for each key that the shape does not know; ``raw`` need not have the shape otherwise."""
    if not isinstance(raw, dict):
        return
    yield from _unknown_in(raw, _KNOWN, "")
    names = dict.fromkeys(key.name for key in MODEL_KEYS)
    model = {**names, "mmproj": names}
    yield from _unknown_in(raw.get("model"), model, "model.")
    listed = raw.get("backends")
    for position, entry in enumerate(listed if isinstance(listed, list) else ()):
        kind = entry.get("kind") if isinstance(entry, dict) else None
        if isinstance(kind, str) and kind in BACKEND_KEYS:
            known: dict[str, Any] = dict.fromkeys(["kind", *(key.name for key in BACKEND_KEYS[kind])])
            if kind in TAKES_MODEL:
                known["model"] = model
            yield from _unknown_in(entry, known, f"backends[{position}].")


def _unknown_in(raw: Any, known: Mapping[str, Any], where: str) -> Iterator[str]:
    for key, value in raw.items() if isinstance(raw, dict) else ():
        if key not in known:
            near = _nearest(key, known, where)
            hint = "" if near is None else f"; the nearest known key is `{near}`"
            yield f"unknown key `{where}{_shown(key)}` is ignored{hint}"
        elif known[key] is not None:
            yield from _unknown_in(value, known[key], f"{where}{key}.")


def _nearest(key: str, known: Mapping[str, Any], where: str) -> str | None:
    """The key beside it that looks like it, or one of another section that does; ``None`` without either."""
    beside = difflib.get_close_matches(key, known, n=1)
    elsewhere = {leaf: f"{name}.{leaf}" for name, leaves in _KNOWN.items() for leaf in leaves or ()}
    if not beside and (leaf := difflib.get_close_matches(key, elsewhere, n=1)):
        return elsewhere[leaf[0]]
    return where + beside[0] if beside else None


def _parse(kind: Kind, value: Any, key: str) -> Any:
    try:
        return kind.of_file(value)
    except ValueError as reason:
        raise ValueError(f"`{key}` must be {reason}") from None


def _values(checked: Any) -> dict[str, tuple[str, Any]]:
    values: dict[str, tuple[str, Any]] = {}
    for option in OPTIONS:
        if option.key is None:
            continue
        node = checked
        for part in option.key.split("."):
            node = getattr(node, part) if node is not None else None
        if node is not None:
            values[option.name] = (option.key, _parse(option.kind, node, option.key))
    return values


def _fields(node: Any, keys: tuple[Key, ...], where: str) -> dict[str, Any]:
    given = ((key, getattr(node, key.name)) for key in keys)
    return {key.name: _parse(key.kind, value, where + key.name) for key, value in given if value is not None}


def _backends(checked: Any) -> tuple[dict[str, Any], ...]:
    if checked.model is not None and checked.backends is not None:
        raise ValueError("`model` and `backends` exclude each other; keep one of them")
    if checked.model is not None:
        return ({"kind": "llamacpp", "name": checked.model.name, **_model(checked.model, "model")},)
    if checked.backends is None:
        return ()
    if not checked.backends:
        raise ValueError("`backends` must list at least one backend")
    entries = [_entry(node, f"backends[{position}]") for position, node in enumerate(checked.backends)]
    taken: set[str] = set()
    for position, entry in enumerate(entries):
        for key, name in (
            ("name", entry["name"]),
            *(("aliases", alias) for alias in entry.get("aliases", ())),
        ):
            if name in taken:
                raise ValueError(f"`backends[{position}].{key}` {name!r} is taken by an entry before it")
            taken.add(name)
    if not any(entry.get("preload", True) for entry in entries):
        raise ValueError("one of `backends` must be loaded at the start: leave out its `preload`")
    return tuple(entries)


def _entry(node: Any, where: str) -> dict[str, Any]:
    kind: str = node.__struct_config__.tag
    entry = {"kind": kind, **_fields(node, BACKEND_KEYS[kind], f"{where}.")}
    if kind in TAKES_MODEL:
        if (node.model is None) == (node.model_path is None):
            raise ValueError(f"`{where}` needs one of `model` and `model_path`")
        if node.model is not None:
            made = _model(node.model, f"{where}.model")
            if {"mmproj"} & set(entry) & set(made):
                raise ValueError(f"`{where}.mmproj` and `{where}.model.mmproj` exclude each other")
            entry.update(made)
    return entry


def _model(node: Any, where: str) -> dict[str, Any]:
    """The fields of an entry that a model object gives."""
    fields: dict[str, Any] = {"model": _spec(node, where)}
    if isinstance(node.mmproj, str):
        fields["mmproj"] = _parse(FilePath(), node.mmproj, f"{where}.mmproj")
    elif node.mmproj is not None:
        fields["mmproj"] = _spec(node.mmproj, f"{where}.mmproj")
    return fields


def _spec(node: Any, where: str) -> ModelSpec:
    return _checked_model(ModelSpec(**_fields(node, MODEL_KEYS, f"{where}.")), where)


def _checked_model(spec: ModelSpec, where: str) -> ModelSpec:
    if spec.source_url and spec.sha256 is None:
        raise ValueError(f"`{where}.sha256` is missing; a file that is fetched must be checked against it")
    return spec
