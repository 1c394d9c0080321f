"""The option table, and the merge of flags, environment and file into Settings."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from inferd.config import docs, sources
from inferd.config.addresses import (
    Endpoint,
    HttpAddress,
    LocalAddress,
    ServerUrl,
    TcpAddress,
)
from inferd.config.entries import LlamaCppEntry, MockEntry, ModelSpec
from inferd.config.kinds import (
    Aliases,
    Boolean,
    Choice,
    FilePath,
    Kind,
    LogLevel,
    Name,
    Secret,
    SecretText,
    Sha256,
    Text,
    Words,
)
from inferd.config.numbers import Integer, Seconds
from inferd.config.settings import DEFAULT_MODEL, OPTIONS, Option
from inferd.errors import ConfigError, UsageError
from tests.cases import Test, cases

ENV = {"HOME": "/home/ada"}
SHA = "ab" * 32
MOCK = {"backends": [{"kind": "mock", "name": "m"}]}

TEXTS: dict[type[Kind], tuple[str, str, str]] = {
    Boolean: ("true", "false", "true"),
    FilePath: ("/a/1", "/a/2", "/a/3"),
    Integer: ("1025", "1026", "1027"),
    LogLevel: ("trace", "off", "trace"),
    Name: ("one", "two", "three"),
    Seconds: ("1.5", "2.5", "3.5"),
    SecretText: ("k1", "k2", "k3"),
    Sha256: ("11" * 32, "22" * 32, "33" * 32),
    TcpAddress: ("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"),
    LocalAddress: ("127.0.0.1:1", "[::1]:2", "/run/m.sock"),
    ServerUrl: ("https://a.example", "https://b.example:8443", "http://127.0.0.1:1/path"),
    Endpoint: ("https://a.example", "b.example", "http://127.0.0.1:1"),
    Text: ("one:0", "two/x", "three"),
    HttpAddress: ("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"),
    Words: ("one,two", "three", "four,five"),
    Aliases: ("claude-*=one", "gpt-*=two,o*=two", "x=three"),
}
"""Three valid texts of a kind: for the flag, the variable and the file."""


def texts(option: Option) -> tuple[str, str, str]:
    if isinstance(option.kind, Choice):
        return option.kind.values[-1], option.kind.values[0], option.kind.values[-1]
    if isinstance(option.kind, Integer) and option.kind.maximum < 1027:
        return "1", "2", "3"
    return TEXTS[type(option.kind)]


def write(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "config.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def with_key(option: Option, value: object) -> dict[str, Any]:
    assert option.key is not None
    content: dict[str, Any] = dict(MOCK)
    *sections, leaf = option.key.split(".")
    node = content
    for section in sections:
        node = node.setdefault(section, {})
    node[leaf] = value
    return content


def problem(tmp_path: Path, content: object) -> str:
    path = write(tmp_path, content)
    with pytest.raises(ConfigError) as caught:
        sources.load({"config": path}, ENV)
    assert str(caught.value).startswith(f"config file {path}: ")
    return str(caught.value).removeprefix(f"config file {path}: ")


REMOTE = {
    "openai_": {
        "INFERD_BACKEND": "openai-compat",
        "INFERD_OPENAI_BASE_URL": "https://x.example",
        "INFERD_OPENAI_MODEL": "x",
    },
    "bedrock_": {
        "INFERD_BACKEND": "bedrock-invoke",
        "INFERD_BEDROCK_REGION": "x",
        "INFERD_BEDROCK_MODEL_ID": "x",
        "AWS_BEARER_TOKEN_BEDROCK": "x",
    },
}


def base(option: Option) -> dict[str, str]:
    """An environment in which the option has an effect."""
    return ENV | next((env for prefix, env in REMOTE.items() if option.name.startswith(prefix)), {})


BY_NAME = {option.name: option for option in OPTIONS}


def each(options: Iterable[Option]) -> Callable[[Test], Test]:
    return cases("option", options)


# The table itself.


@each(OPTIONS)
def test_a_row_is_complete(option: Option) -> None:
    assert option.doc.endswith(".")
    assert option.flag in (None, "--" + option.name.replace("_", "-"))
    others = (None, "INFERD_LOG", "AWS_BEARER_TOKEN_BEDROCK")
    assert option.env in (f"INFERD_{option.name.upper()}", *others)
    assert option.flag or option.key or option.env
    default = option.default_for(ENV)
    if isinstance(default, bool | int | float | str) and not isinstance(default, Path):
        assert option.kind.parse(str(default)) == default


@each(option for option in OPTIONS if option.env is not None and option.name != "api_key_file")
def test_a_variable_is_read(option: Option) -> None:
    assert option.env is not None
    text = texts(option)[1]
    settings, notes = sources.load({}, {**base(option), option.env: text})
    assert getattr(settings, option.name) == option.kind.parse(text)
    assert getattr(sources.read({}, {**ENV, option.env: ""}).settings, option.name) == option.default_for(ENV)
    assert notes == []


def test_the_key_file_variable_is_read(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("first\nsecond\n")
    settings, _ = sources.load({}, {**ENV, "INFERD_API_KEY_FILE": str(file)})
    assert settings.api_key == Secret("first")


@each(option for option in OPTIONS if option.name not in ("api_key_file", "api_key_env"))
def test_a_flag_is_above_the_variable_and_the_variable_above_the_file(option: Option, tmp_path: Path) -> None:
    by_flag, by_env, by_file = (option.kind.parse(text) for text in texts(option))
    flags: dict[str, object] = {option.name: by_flag, "config": write(tmp_path, MOCK)}
    env = dict(ENV)
    if option.env is not None:
        env[option.env] = texts(option)[1]
    settings, notes = sources.load(flags, env)
    assert getattr(settings, option.name) == (by_env if option.flag is None else by_flag)
    if option.key is None:
        return
    in_file = by_file if isinstance(by_file, bool | int | float | tuple | dict) else str(by_file)
    path = write(tmp_path, with_key(option, in_file))
    assert getattr(sources.load({"config": path}, ENV)[0], option.name) == by_file
    settings, notes = sources.load({"config": path}, env)
    if option.env is not None:
        assert getattr(settings, option.name) == by_env
        assert f"{option.env} overrides `{option.key}` of the config file" in notes
    settings, notes = sources.load({**flags, "config": path}, env)
    assert getattr(settings, option.name) == by_flag
    assert f"{option.flag} overrides `{option.key}` of the config file" in notes


@each(
    option
    for option in OPTIONS
    if option.env is not None
    and not isinstance(option.kind, FilePath)
    and not option.kind.ignores_unusable_variables
)
def test_a_bad_variable_is_named(option: Option) -> None:
    assert option.env is not None
    with pytest.raises(ConfigError, match=option.env):
        sources.load({}, {**ENV, option.env: "\x07/\x07"})


@each(option for option in OPTIONS if option.key is not None and isinstance(option.kind, Integer))
def test_a_bound_holds_in_the_file_too(option: Option, tmp_path: Path) -> None:
    assert option.key is not None
    assert isinstance(option.kind, Integer)
    for beyond in (option.kind.minimum - 1, option.kind.maximum + 1, "4"):
        assert option.key in problem(tmp_path, with_key(option, beyond))


def test_docs_and_schema_show_every_option() -> None:
    markdown, schema = docs.markdown(), docs.schema()
    for option in OPTIONS:
        assert f"### {option.name}\n\n{option.doc}\n" in markdown
        if option.key is not None:
            assert f'"{option.key.rpartition(".")[2]}"' in schema


# Settings without a file.


def test_nothing_given_serves_the_default_model_on_llamacpp_over_the_default_socket() -> None:
    settings, notes = sources.load({}, ENV)
    assert settings.backends == (LlamaCppEntry(name="llamacpp", model=ModelSpec(name=DEFAULT_MODEL)),)
    assert settings.tcp is None
    assert settings.uds is not None
    assert notes == []


def test_options_make_the_one_entry() -> None:
    flags = {"model_path": Path("/m.gguf"), "model_sha256": SHA, "n_ctx": 512, "n_gpu_layers": 3}
    settings, _ = sources.load(flags, ENV)
    assert settings.backends == (
        LlamaCppEntry(
            name="llamacpp",
            model_path=Path("/m.gguf"),
            model_sha256=SHA,
            n_ctx=512,
            n_gpu_layers=3,
        ),
    )
    settings, notes = sources.load({"backend": "mock", "n_ctx": 512}, ENV)
    assert settings.backends == (MockEntry(name="mock"),)
    assert notes == ["--n-ctx has no effect without a backend of the kind llamacpp"]


def test_tcp_takes_the_place_of_the_unix_socket() -> None:
    settings, _ = sources.load({"tcp": "127.0.0.1:47321"}, ENV)
    assert (settings.tcp, settings.uds) == ("127.0.0.1:47321", None)


@pytest.mark.parametrize(
    ("first", "second"), [("tcp", "uds"), ("model", "model_path"), ("api_key", "api_key_file")]
)
def test_options_that_exclude_each_other(first: str, second: str) -> None:
    values = {name: BY_NAME[name].kind.parse(texts(BY_NAME[name])[0]) for name in (first, second)}
    with pytest.raises(
        UsageError, match=f"{BY_NAME[first].flag} and {BY_NAME[second].flag} exclude"
    ) as caught:
        sources.load(values, ENV)
    assert caught.value.exit_code == 2
    env = {str(BY_NAME[name].env): texts(BY_NAME[name])[0] for name in (first, second)}
    with pytest.raises(
        ConfigError, match=f"{BY_NAME[first].env} and {BY_NAME[second].env} exclude"
    ) as caught:
        sources.load({}, {**ENV, **env})
    assert caught.value.exit_code == 1


def test_a_flag_overrides_exclusive_options_of_lower_precedence() -> None:
    settings, _ = sources.load({"tcp": "127.0.0.1:1"}, {**ENV, "INFERD_UDS": "/s"})
    assert (settings.tcp, settings.uds) == ("127.0.0.1:1", None)
    settings, _ = sources.load({"model": "a"}, {**ENV, "INFERD_MODEL_PATH": "/m.gguf"})
    assert settings.backends[0].model == ModelSpec(name="a")


# Secrets.


def test_a_secret_is_never_shown(tmp_path: Path) -> None:
    result = sources.read({"api_key": Secret("hunter22")}, ENV)
    assert result.settings.api_key is not None
    assert result.settings.api_key.reveal() == "hunter22"
    assert "hunter22" not in repr(result)
    assert "hunter22" not in f"{result.settings.api_key}"
    assert any("--api-key-file" in note for note in result.notes)
    with pytest.raises(ConfigError) as caught:
        sources.load({}, {**ENV, "INFERD_API_KEY": "hunter22\x00"})
    assert "hunter22" not in str(caught.value)


def test_the_key_file_must_hold_a_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        sources.load({"api_key_file": tmp_path / "none"}, ENV)
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ConfigError, match="is empty"):
        sources.load({"api_key_file": tmp_path / "empty"}, ENV)
    (tmp_path / "zeros").write_bytes(bytes(16))
    with pytest.raises(ConfigError, match="zeros: its first line must be a key of printable characters"):
        sources.load({"api_key_file": tmp_path / "zeros"}, ENV)


def test_the_file_names_the_variable_of_the_key(tmp_path: Path) -> None:
    path = write(tmp_path, {**MOCK, "listen": {"tcp": "127.0.0.1:1", "api_key_env": "MY_KEY"}})
    settings, _ = sources.load({"config": path}, {**ENV, "MY_KEY": "k"})
    assert settings.api_key == Secret("k")
    with pytest.raises(ConfigError, match="MY_KEY, which is not set"):
        sources.load({"config": path}, ENV)
    settings, _ = sources.load({"config": path}, {**ENV, "INFERD_API_KEY": "other"})
    assert settings.api_key == Secret("other")


# The generated documents.


def test_the_committed_documents_are_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    assert docs.main(["--check"]) == 0


def test_a_stale_document_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    assert docs.main([]) == 0
    assert docs.main(["--check"]) == 0
    with (tmp_path / "docs" / "config.md").open("a") as file:
        file.write("more\n")
    assert docs.main(["--check"]) == 1
    assert "docs/config.md is stale" in capsys.readouterr().err
