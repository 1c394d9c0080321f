"""Parses and checks the config file.

The msgspec type of the whole file is built from the option table and, for the backends, from the tables of
keys (:mod:`inferd.config.keys`). msgspec checks the types and bounds of values. The classes in
:mod:`inferd.config.kinds` check strings. If the config file cannot be read or is invalid, a ConfigError names
the file, the key and the reason. An unknown key is only a warning, since a newer inferd may know this key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NoReturn, Union

import msgspec

from inferd.config.entries import Adapter, ModelSpec
from inferd.config.keys import BACKEND_KEYS, LORA_KEYS, MODEL_KEYS, TAKES_MODEL, Key
from inferd.config.kinds import FilePath, Kind
from inferd.config.nearest import nearest
from inferd.config.option import ConfigFile
from inferd.config.settings import OPTIONS
from inferd.errors import ConfigError
from inferd.private import written_by_others

MAX_FILE_BYTES = 1024 * 1024
"""No real config file is nearly as large. Because of this limit, a wrong path, such as the path of a model,
fails at once."""

_SURROGATE = re.compile("[\ud800-\udfff]")


def _struct(name: str, fields: list[tuple[str, Any, bool]], **options: Any) -> Any:
    """Returns a msgspec struct type with the given fields, each as (name, type, required)."""
    rows = [(key, kind) if needed else (key, Union[kind, None], None) for key, kind, needed in fields]  # noqa: UP007
    return msgspec.defstruct(name, rows, kw_only=True, **options)


def _rows(keys: tuple[Key, ...]) -> list[tuple[str, Any, bool]]:
    return [(key.name, _documented(key.kind, key.doc), key.required) for key in keys]


def _documented(kind: Kind, doc: str) -> Any:
    """Returns the msgspec type of a value, with the description that an editor shows for the value's key."""
    return Annotated[kind.file_type, msgspec.Meta(description=doc)]


@cache
def shape() -> tuple[Any, dict[str, Any]]:
    """Returns the msgspec type of the whole config file, and the known keys as nested dictionaries.

    The type is built only if a config file exists, since building it takes longer than anything else in this
    package.
    """
    projector: Any = Union[FilePath().file_type, _struct("Projector", _rows(MODEL_KEYS))]  # noqa: UP007
    model = _struct("Model", [*_rows(MODEL_KEYS), ("mmproj", projector, False)])
    adapters: Any = list[_struct("Adapter", _rows(LORA_KEYS))]  # type: ignore[misc]
    entries = [
        _struct(
            f"Backend_{kind}",
            _rows(keys)
            + ([("model", model, False), ("lora", adapters, False)] if kind in TAKES_MODEL else []),
            tag_field="kind",
            tag=kind,
        )
        for kind, keys in BACKEND_KEYS.items()
    ]
    top: list[tuple[str, Any, bool]] = [
        ("model", model, False),
        ("backends", list[Union[tuple(entries)]], False),  # type: ignore[misc]  # noqa: UP007
    ]
    known: dict[str, Any] = {"model": None, "backends": None, "$schema": None}  # the last is for editors
    sections: dict[str, list[tuple[str, Any, bool]]] = {}
    for option in OPTIONS:
        if option.key is not None:
            section, _, leaf = option.key.rpartition(".")
            rows = sections.setdefault(section, []) if section else top
            rows.append((leaf, _documented(option.kind, option.doc), False))
            (known.setdefault(section, {}) if section else known)[leaf] = None
    top.extend((name, _struct(name.capitalize(), rows), False) for name, rows in sections.items())
    return _struct("Config", top), known


def read_file(path: Path) -> ConfigFile:
    """Reads and checks the config file at ``path``. Raises ConfigError."""

    def fail(reason: str) -> NoReturn:
        raise ConfigError(f"config file {path}: {reason}")

    try:
        with path.open("rb") as stream:
            danger = written_by_others(path, stream.fileno())
            if danger is not None:
                fail(f"is refused: {danger}, who could redirect your prompts")
            data = stream.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        fail("there is no such file")
    except OSError as error:
        fail(f"cannot be read: {error.strerror}")
    if len(data) > MAX_FILE_BYTES:
        fail(f"is larger than {MAX_FILE_BYTES} bytes, so it is not a config file")
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
    """Returns the JSON object with the keys and values in ``pairs``. Raises ValueError for a repeated key, or
    for a lone surrogate in a string."""
    result = dict(pairs)
    for name, value in pairs:
        if any(_SURROGATE.search(text) for text in (name, value) if isinstance(text, str)):
            raise ValueError(f"`{_shown(name)}` holds half of a character (\\ud800 to \\udfff)")
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"`{_shown(next(name for name in names if names.count(name) > 1))}` is given twice")
    return result


def _number(text: str) -> int | float:
    """Parses a number.

    A very long integer becomes a float, so that the error about its value names the key. ``int`` would raise
    an error that names no key.
    """
    return int(text) if len(text) <= 20 else float(text)


def _shown(key: str) -> str:
    return key if key.isprintable() else ascii(key)[1:-1]


def _converted(raw: Any) -> Any:
    """Converts ``raw`` to the msgspec type of the config file. The error message also lists the unknown keys,
    because a required key that seems to be missing may be misspelt."""
    try:
        return msgspec.convert(raw, shape()[0])
    except msgspec.ValidationError as error:
        raise ValueError("; ".join((str(error), *_unknown(raw)))) from None


def _check_kinds(raw: Any) -> None:
    """Raises ValueError for an unknown kind of backend. The message suggests the most similar known kind.
    msgspec, which checks everything else, suggests nothing."""
    listed = raw.get("backends") if isinstance(raw, dict) else None
    for position, entry in enumerate(listed if isinstance(listed, list) else ()):
        kind = entry.get("kind") if isinstance(entry, dict) else None
        if isinstance(kind, str) and kind not in BACKEND_KEYS:
            near = nearest(kind, BACKEND_KEYS)
            hint = f"the nearest is {near!r}" if near else f"known are {', '.join(BACKEND_KEYS)}"
            raise ValueError(f"`backends[{position}].kind` {kind!r} is not known; {hint}")


def _unknown(raw: Any) -> Iterator[str]:
    """Yields one warning for each unknown key. ``raw`` may be invalid in other ways."""
    if not isinstance(raw, dict):
        return
    yield from _unknown_in(raw, shape()[1], "")
    names = dict.fromkeys(key.name for key in MODEL_KEYS)
    model = {**names, "mmproj": names}
    yield from _unknown_in(raw.get("model"), model, "model.")
    listed = raw.get("backends")
    for position, entry in enumerate(listed if isinstance(listed, list) else ()):
        kind = entry.get("kind") if isinstance(entry, dict) else None
        if isinstance(kind, str) and kind in BACKEND_KEYS:
            known: dict[str, Any] = dict.fromkeys(["kind", *(key.name for key in BACKEND_KEYS[kind])])
            if kind in TAKES_MODEL:
                known |= {"model": model, "lora": None}
            yield from _unknown_in(entry, known, f"backends[{position}].")
            lora = entry.get("lora")
            for number, adapter in enumerate(lora if isinstance(lora, list) else ()):
                names = dict.fromkeys(key.name for key in LORA_KEYS)
                yield from _unknown_in(adapter, names, f"backends[{position}].lora[{number}].")


def _unknown_in(raw: Any, known: Mapping[str, Any], where: str) -> Iterator[str]:
    for key, value in raw.items() if isinstance(raw, dict) else ():
        if key not in known:
            near = _nearest(key, known, where)
            hint = "" if near is None else f"; the nearest known key is `{near}`"
            yield f"unknown key `{where}{_shown(key)}` is ignored{hint}"
        elif known[key] is not None:
            yield from _unknown_in(value, known[key], f"{where}{key}.")


def _nearest(key: str, known: Mapping[str, Any], where: str) -> str | None:
    """Returns the known key that is most similar to ``key``: a key of the same section or, if none is
    similar, of another section. Returns ``None`` if no known key is similar."""
    if (beside := nearest(key, known)) is not None:
        return where + beside
    elsewhere = {leaf: f"{name}.{leaf}" for name, leaves in shape()[1].items() for leaf in leaves or ()}
    leaf = nearest(key, elsewhere)
    return None if leaf is None else elsewhere[leaf]


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
        if {"draft", "draft_path"} <= set(entry):
            raise ValueError(f"`{where}.draft` and `{where}.draft_path` exclude each other")
        if "draft_path" in entry:
            entry["draft"] = entry.pop("draft_path")
        elif "draft" in entry:
            entry["draft"] = ModelSpec(name=entry["draft"])
        if node.lora:
            entry["lora"] = _adapters(node.lora, f"{where}.lora")
    return entry


def _adapters(nodes: Sequence[Any], where: str) -> tuple[Adapter, ...]:
    made: dict[str, Adapter] = {}
    for position, node in enumerate(nodes):
        adapter = Adapter(**_fields(node, LORA_KEYS, f"{where}[{position}]."))
        if adapter.name in made:
            raise ValueError(f"`{where}[{position}].name` {adapter.name!r} is taken by an adapter before it")
        made[adapter.name] = adapter
    return tuple(made.values())


def _model(node: Any, where: str) -> dict[str, Any]:
    """Returns those fields of a config entry that are set by the object ``model`` in the config file."""
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
