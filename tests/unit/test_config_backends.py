"""The backend entries from flags, environment and config file together, and their secrets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from inferd.config import sources
from inferd.config.entries import BedrockEntry, InferdEntry, LlamaCppEntry, OpenAICompatEntry, surfaces_of
from inferd.config.kinds import Secret
from inferd.errors import ConfigError
from tests.cases import cases

ENV = {"HOME": "/home/ada"}
OPENAI = {"kind": "openai-compat", "name": "far", "base_url": "https://a.example/v1/", "model": "m:8b"}
BEDROCK = {"kind": "bedrock-invoke", "name": "aws", "region": "eu-central-1", "model_id": "anthropic.c:0"}
AWS = {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "s3cret"}


def load(
    tmp_path: Path, *entries: dict[str, Any], env: dict[str, str] | None = None, **flags: object
) -> tuple[Any, list[str]]:
    """The first backend of a file with these entries, and the notes."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"backends": entries}))
    settings, notes = sources.load({"config": path, **flags}, ENV | (env or {}))
    return settings.backends[0], notes


def problem(**env: str) -> str:
    with pytest.raises(ConfigError) as caught:
        sources.load({}, ENV | env)
    return str(caught.value)


# Entries of remote kinds.


def test_an_entry_of_the_file_is_complete(tmp_path: Path) -> None:
    entry, notes = load(tmp_path, OPENAI, {**BEDROCK, "endpoint": "vpc.example"}, env=AWS)
    assert entry == OpenAICompatEntry(name="far", base_url="https://a.example", model="m:8b")
    assert notes == []
    entry, _ = load(tmp_path, {**BEDROCK, "endpoint": "vpc.example", "timeout_secs": 7}, env=AWS)
    assert entry == BedrockEntry(
        name="aws",
        region="eu-central-1",
        model_id="anthropic.c:0",
        endpoint="https://vpc.example",
        timeout_secs=7.0,
        access_key_id="AKIDEXAMPLE",
        secret_access_key=Secret("s3cret"),
    )


@cases(
    "entry, reason",
    [
        ({**OPENAI, "base_url": "ftp://a"}, "`backends[0].base_url` must be an http:// or https://"),
        ({**OPENAI, "base_url": "https://u:p@a"}, "`backends[0].base_url` must be"),
        ({**OPENAI, "model": " "}, "`backends[0].model` must be"),
        ({**OPENAI, "timeout_secs": 0}, "backends[0].timeout_secs"),
        ({**OPENAI, "embed": 1}, "backends[0].embed"),
        ({key: value for key, value in OPENAI.items() if key != "base_url"}, "base_url"),
        ({**BEDROCK, "region": "a/b"}, "`backends[0].region` must be"),
        ({**BEDROCK, "endpoint": "a b"}, "`backends[0].endpoint` must be a host"),
        ({key: value for key, value in BEDROCK.items() if key != "model_id"}, "model_id"),
    ],
)
def test_a_bad_entry_is_named(tmp_path: Path, entry: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, entry)
    assert reason in str(caught.value)


def test_llama_cpps_numbers_name_a_pooling(tmp_path: Path) -> None:
    entry = {"kind": "llamacpp", "name": "e", "model_path": "/m", "embed": True}
    for number, name in ((1, "mean"), (2, "cls"), (3, "last"), (4, "rank")):
        built, _ = load(tmp_path, {**entry, "embed_pooling": number})
        assert built.embed_pooling == name
    with pytest.raises(ConfigError, match="embed_pooling"):
        load(tmp_path, {**entry, "embed_pooling": 0})


# Options without a file.


def test_options_alone_make_an_openai_entry() -> None:
    env = {
        "INFERD_BACKEND": "openai-compat",
        "INFERD_OPENAI_BASE_URL": "http://127.0.0.1:11434",
        "INFERD_OPENAI_MODEL": "llama3.1:8b",
        "INFERD_OPENAI_TIMEOUT_SECS": "12",
        "INFERD_OPENAI_API_KEY": "k",
    }
    settings, notes = sources.load({}, ENV | env)
    assert settings.backends == (
        OpenAICompatEntry(
            name="openai-compat",
            base_url="http://127.0.0.1:11434",
            model="llama3.1:8b",
            api_key=Secret("k"),
            timeout_secs=12.0,
        ),
    )
    assert notes == []


def test_options_alone_make_a_bedrock_entry() -> None:
    flags = {"backend": "bedrock-invoke", "bedrock_region": "r", "bedrock_model_id": "m"}
    settings, notes = sources.load(flags, ENV | {"AWS_BEARER_TOKEN_BEDROCK": "t"})
    assert settings.backends == (
        BedrockEntry(name="bedrock-invoke", region="r", model_id="m", bearer_token=Secret("t")),
    )
    assert notes == []


def test_missing_options_of_a_remote_backend_are_named() -> None:
    both = problem(INFERD_BACKEND="openai-compat")
    assert "--openai-base-url (or INFERD_OPENAI_BASE_URL) and --openai-model" in both
    one = problem(INFERD_BACKEND="bedrock-invoke", INFERD_BEDROCK_REGION="r")
    assert "--bedrock-model-id (or INFERD_BEDROCK_MODEL_ID)" in one
    assert "--bedrock-region" not in one


def test_the_daemon_still_learns_its_sockets_from_such_options() -> None:
    result = sources.read({}, ENV | {"INFERD_BACKEND": "openai-compat", "INFERD_LOCK": "/l"})
    assert result.problem is not None
    assert result.settings.lock == Path("/l")
    assert result.settings.backends == ()


# Options over a file.


def test_an_option_overrides_the_first_entry_of_its_kind(tmp_path: Path) -> None:
    second = {**OPENAI, "name": "second"}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"backends": [{"kind": "mock", "name": "m"}, OPENAI, second]}))
    settings, notes = sources.load({"config": path, "openai_model": "other"}, ENV)
    _, first, last = settings.backends
    assert isinstance(first, OpenAICompatEntry)
    assert isinstance(last, OpenAICompatEntry)
    assert (first.model, first.base_url, last.model) == ("other", "https://a.example", "m:8b")
    assert notes == ["--openai-model overrides the entry 'far' of the config file"]


def test_an_option_of_a_kind_that_is_not_served_is_noted(tmp_path: Path) -> None:
    entry, notes = load(tmp_path, OPENAI, n_ctx=64)
    assert isinstance(entry, OpenAICompatEntry)
    assert notes == ["--n-ctx has no effect without a backend of the kind llamacpp"]
    entry, notes = load(tmp_path, OPENAI, backend="llamacpp", n_ctx=64)
    assert isinstance(entry, LlamaCppEntry)
    assert entry.n_ctx == 64


# Keys.


def test_the_key_of_an_openai_entry_is_the_first_set_variable(tmp_path: Path) -> None:
    named = {**OPENAI, "api_key_env": "FAR_KEY"}
    env = {"FAR_KEY": "a", "INFERD_OPENAI_API_KEY": "b", "OPENAI_API_KEY": "c"}
    assert load(tmp_path, named, env=env, openai_api_key=Secret("f"))[0].api_key == Secret("f")
    assert load(tmp_path, named, env=env)[0].api_key == Secret("a")
    assert load(tmp_path, OPENAI, env=env)[0].api_key == Secret("b")
    assert load(tmp_path, OPENAI, env={"OPENAI_API_KEY": "c"})[0].api_key == Secret("c")
    assert load(tmp_path, OPENAI)[0].api_key is None
    assert load(tmp_path, named, env=env, openai_api_key=Secret(""))[0].api_key is None


def test_the_key_of_a_flag_is_for_the_first_entry_alone(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"backends": [OPENAI, {**OPENAI, "name": "b", "base_url": "https://b"}]}))
    settings, notes = sources.load({"config": path, "openai_api_key": Secret("f")}, ENV)
    first, second = settings.backends
    assert isinstance(first, OpenAICompatEntry)
    assert isinstance(second, OpenAICompatEntry)
    assert (first.api_key, second.api_key) == (Secret("f"), None)
    assert any("--openai-api-key shows the key" in note and "INFERD_OPENAI_API_KEY" in note for note in notes)


def test_a_named_variable_that_is_not_set_is_noted(tmp_path: Path) -> None:
    named = {**OPENAI, "api_key_env": "FAR_KEY"}
    entry, notes = load(tmp_path, named, env={"OPENAI_API_KEY": "c"})
    assert entry.api_key == Secret("c")
    assert notes == [
        "backend 'far' names the variable FAR_KEY, which is not set; OPENAI_API_KEY is used instead"
    ]
    _, notes = load(tmp_path, named)
    assert notes == ["backend 'far' names the variable FAR_KEY, which is not set; no key is sent"]


@cases(
    "url, told",
    [
        ("http://a.example", True),
        ("https://a.example", False),
        ("http://localhost:1", False),
        ("http://127.0.0.1:1", False),
        ("http://[::1]:1", False),
        ("http://127.example", True),
    ],
)
def test_a_key_that_leaves_the_machine_unencrypted_is_noted(tmp_path: Path, url: str, told: bool) -> None:
    _, notes = load(tmp_path, {**OPENAI, "base_url": url}, env={"OPENAI_API_KEY": "c"})
    assert any("unencrypted" in note for note in notes) == told
    assert not any("unencrypted" in note for note in load(tmp_path, {**OPENAI, "base_url": url})[1])
    bedrock = {**BEDROCK, "endpoint": url}
    _, notes = load(tmp_path, bedrock, env={"AWS_BEARER_TOKEN_BEDROCK": "t"})
    assert any("unencrypted" in note for note in notes) == told
    signed = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}  # to which no secret is sent
    assert not any("unencrypted" in note for note in load(tmp_path, bedrock, env=signed)[1])


def test_a_bedrock_entry_has_a_bearer_token_or_an_access_key(tmp_path: Path) -> None:
    named = {**BEDROCK, "bearer_token_env": "TOKEN"}
    entry, _ = load(tmp_path, named, env={**AWS, "TOKEN": "t", "AWS_BEARER_TOKEN_BEDROCK": "b"})
    assert (entry.bearer_token, entry.access_key_id) == (Secret("t"), None)
    entry, _ = load(tmp_path, BEDROCK, env={**AWS, "AWS_BEARER_TOKEN_BEDROCK": "b"})
    assert entry.bearer_token == Secret("b")
    entry, notes = load(tmp_path, named, env={**AWS, "AWS_SESSION_TOKEN": "st"})
    assert (entry.bearer_token, entry.access_key_id) == (None, "AKIDEXAMPLE")
    assert (entry.secret_access_key, entry.session_token) == (Secret("s3cret"), Secret("st"))
    assert notes == [
        "backend 'aws' names the variable TOKEN, which is not set; AWS_ACCESS_KEY_ID signs the requests"
    ]


def test_a_bedrock_entry_without_credentials_names_both_ways(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"AWS_BEARER_TOKEN_BEDROCK.* or set AWS_ACCESS_KEY_ID and AWS_SECRET"
    ):
        load(tmp_path, BEDROCK)
    with pytest.raises(ConfigError, match=r"set TOKEN to a bearer token, or set AWS_SECRET_ACCESS_KEY$"):
        load(tmp_path, {**BEDROCK, "bearer_token_env": "TOKEN"}, env={"AWS_ACCESS_KEY_ID": "x"})


def test_no_secret_is_shown(tmp_path: Path) -> None:
    entry, notes = load(tmp_path, {**OPENAI, "api_key_env": "K"}, env={"K": "hunter22"})
    assert "hunter22" not in repr(entry)
    assert "hunter22" not in "".join(notes)
    entry, _ = load(tmp_path, BEDROCK, env={**AWS, "AWS_SECRET_ACCESS_KEY": "hunter22"})
    assert "hunter22" not in repr(entry)
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, {**OPENAI, "api_key_env": "K"}, env={"K": "hunter22\n"})
    assert "hunter22" not in str(caught.value)
    assert "K must be a key of printable characters" in str(caught.value)


# Unknown variables.


def test_a_misspelt_variable_is_noted() -> None:
    _, notes = sources.load({}, ENV | {"INFERD_QUEUE_DEPHT": "3"})
    assert notes == [
        "unknown variable INFERD_QUEUE_DEPHT is ignored; the nearest known one is INFERD_QUEUE_DEPTH"
    ]


# Requirements of the daemon alone.


@pytest.mark.parametrize("lack", [{"backends": [BEDROCK]}, {"listen": {"api_key_env": "K"}}])
def test_a_client_needs_no_secret_of_the_daemon(tmp_path: Path, lack: dict[str, Any]) -> None:
    path = tmp_path / "config.json"
    mock = {"backends": [{"kind": "mock", "name": "m"}]}
    path.write_text(json.dumps({**mock, "admin_addr": "/a.sock", **lack}))
    result = sources.read({"config": path}, ENV)
    assert result.problem is not None
    assert result.settings.admin_addr == Path("/a.sock")
    with pytest.raises(ConfigError, match="set"):
        sources.load({"config": path}, ENV)
    assert sources.load({"config": path}, ENV, serving=False)[0].admin_addr == Path("/a.sock")


def test_an_unreadable_file_is_reported_to_a_client(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file"):
        sources.load({"config": tmp_path / "none"}, ENV, serving=False)
    with pytest.raises(ConfigError, match="there is no such file"):
        sources.load({"config": tmp_path / "none"}, ENV | {"INFERD_BACKEND": "openai-compat"}, serving=False)


# Another daemon.


def test_an_entry_for_another_daemon(tmp_path: Path) -> None:
    entry, notes = load(
        tmp_path,
        {"kind": "inferd", "name": "up", "address": "10.0.0.5:47322", "api_key_env": "KEY", "serves": "m"},
        env={"KEY": "k"},
    )
    assert entry == InferdEntry(name="up", address="10.0.0.5:47322", api_key=Secret("k"), serves="m")
    assert ["unencrypted" in note for note in notes] == [True]
    assert surfaces_of(entry) == frozenset()
    entry, notes = load(tmp_path, {"kind": "inferd", "name": "up", "embed_address": "/run/x.sock"})
    assert notes == []
    assert surfaces_of(entry) == {"embed"}


@pytest.mark.parametrize("wrong", [{}, {"address": "far.example:1"}, {"address": "infer.sock"}])
def test_an_address_of_another_daemon_is_needed_and_literal(tmp_path: Path, wrong: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="address"):
        load(tmp_path, {"kind": "inferd", "name": "up", **wrong})
