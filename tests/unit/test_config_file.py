"""Reading config.json: errors with their reasons, and the backends of its entries."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from inferd.config import docs, sources
from inferd.config.entries import BackendEntry, LlamaCppEntry, MockEntry, ModelSpec, kind_of
from inferd.errors import ConfigError
from tests.cases import cases

ENV = {"HOME": "/home/ada"}
SHA = "ab" * 32
MOCK = {"backends": [{"kind": "mock", "name": "m"}]}


def write(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "config.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def problem(tmp_path: Path, content: object) -> str:
    path = write(tmp_path, content)
    with pytest.raises(ConfigError) as caught:
        sources.load({"config": path}, ENV)
    assert str(caught.value).startswith(f"config file {path}: ")
    return str(caught.value).removeprefix(f"config file {path}: ")


# The file.


def test_only_a_named_file_must_exist(tmp_path: Path) -> None:
    assert sources.load({}, {"HOME": str(tmp_path)})[1] == []
    with pytest.raises(ConfigError, match="there is no such file"):
        sources.load({"config": tmp_path / "none.json"}, ENV)
    with pytest.raises(ConfigError, match="there is no such file"):
        sources.load({}, {**ENV, "INFERD_CONFIG": str(tmp_path / "none.json")})


def test_the_default_file_is_read(tmp_path: Path) -> None:
    (tmp_path / ".inferd").mkdir()
    (tmp_path / ".inferd" / "config.json").write_text(json.dumps({**MOCK, "limits": {"max_connections": 7}}))
    assert sources.load({}, {"HOME": str(tmp_path)})[0].max_connections == 7


@cases(
    "content, reason",
    [
        ("{", "is not JSON: .* line 1, column 2"),
        ("[]", "Expected `object`"),
        ('{"n_ctx": 1, "n_ctx": 2}', "`n_ctx` is given twice"),
        ('{"\\u001b[2J": 1, "\\u001b[2J": 2}', r"`\\x1b\[2J` is given twice"),
        ('{"models_home": "/\\ud800"}', "`models_home` holds half of a character"),
        ('{"\\udfff": 1}', r"`\\udfff` holds half of a character"),
        ('{"n_ctx": ' + "9" * 5000 + "}", "Expected `int.*n_ctx"),
        ("[" * 100_000, "is nested too deeply"),
        ({"backends": []}, "`backends` must list at least one backend"),
        ({**MOCK, "model": {"name": "x"}}, "`model` and `backends` exclude each other"),
        ({"backends": [{"kind": "mock"}]}, r"`name`.*backends\[0\]"),
        ({"backends": [{"kind": "none", "name": "m"}]}, r"`backends\[0\].kind` 'none' is not known"),
        ({"backends": [{"kind": "lamacpp", "name": "m"}]}, r"the nearest is 'llamacpp'"),
        ({"backends": [{"kind": 1, "name": "m"}]}, r"backends\[0\].kind"),
        (
            {"backends": [{"kind": "mock", "nam": "m"}]},
            r"`name`.*`backends\[0\].nam` .* is `backends\[0\].name`",
        ),
        ({"backends": {"kind": "none"}}, r"Expected `array.*backends"),
        ({"model": {"name": "x", "mmproj": {"sha256": "0"}}}, r"`name`.*model.mmproj"),
        ({"model": {"name": "x", "mmproj": {"name": "/"}}}, r"`model.mmproj.name` must be"),
        ({"model": {"name": "x", "mmproj": 1}}, r"model.mmproj"),
        (
            {
                "backends": [
                    {"kind": "llamacpp", "name": "m", "mmproj": "/p", "model": {"name": "x", "mmproj": "/q"}}
                ]
            },
            r"`backends\[0\].mmproj` and `backends\[0\].model.mmproj` exclude",
        ),
        (
            {"backends": [{"kind": "llamacpp", "name": "m", "model_path": "/m", "lora": [{"name": "a"}]}]},
            r"`path`.*backends\[0\].lora\[0\]",
        ),
        (
            {
                "backends": [
                    {
                        "kind": "llamacpp",
                        "name": "m",
                        "model_path": "/m",
                        "lora": [{"name": "a", "path": "/a"}] * 2,
                    }
                ]
            },
            r"`backends\[0\].lora\[1\].name` 'a' is taken by an adapter",
        ),
        ({"backends": [{"kind": "mock", "name": ""}]}, r"backends\[0\].name"),
        ({"backends": [{"kind": "mock", "name": "a/b"}]}, r"`backends\[0\].name` must be a name without"),
        ({"backends": MOCK["backends"] * 2}, r"`backends\[1\].name` 'm' is taken"),
        ({"backends": [{"kind": "llamacpp", "name": "m"}]}, r"`backends\[0\]` needs one of"),
        (
            {"backends": [{"kind": "llamacpp", "name": "m", "model": {"name": "x"}, "model_path": "/m"}]},
            r"`backends\[0\]` needs one of",
        ),
        ({"model": {"name": "x", "sha256": "abc"}}, r"`model.sha256` must be 64 hexadecimal digits"),
        ({"model": {"name": "x", "source_url": "http://a/m"}}, r"`model.source_url` must be an https"),
        ({"model": {"name": "x", "source_url": "https://a/m"}}, r"`model.sha256` is missing"),
        ({"model": {"name": "../x"}}, r"`model.name` must be"),
        ({**MOCK, "n_ctx": -1}, r"n_ctx"),
        ({**MOCK, "listen": {"tcp": "example.org:1"}}, r"`listen.tcp` must be a literal IP:port"),
        ({**MOCK, "limits": {"write_timeout_secs": -1}}, r"limits.write_timeout_secs"),
    ],
)
def test_an_unusable_file_names_file_key_and_reason(content: object, reason: str, tmp_path: Path) -> None:
    assert re.search(reason, problem(tmp_path, content))


def test_a_file_that_is_binary_or_too_large(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        sources.load({"config": path}, ENV)
    path.write_bytes(b" " * (1024 * 1024 + 1))
    with pytest.raises(ConfigError, match="is larger than"):
        sources.load({"config": path}, ENV)
    with pytest.raises(ConfigError, match="cannot be read"):
        sources.load({"config": tmp_path}, ENV)


def test_an_unknown_key_is_a_warning_with_the_nearest_known_one(tmp_path: Path) -> None:
    model = {"name": "x", "sha265": SHA}
    entries = [{"kind": "mock", "name": "m", "nmae": 1}, {"kind": "llamacpp", "name": "l", "model": model}]
    path = write(tmp_path, {"backends": entries, "limit": {}, "limits": {"max_connection": 3}})
    settings, notes = sources.load({"config": path}, ENV)
    assert len(settings.backends) == 2
    for unknown, near in [
        ("limit", "limits"),
        ("limits.max_connection", "limits.max_connections"),
        ("backends[0].nmae", "backends[0].name"),
        ("backends[1].model.sha265", "backends[1].model.sha256"),
    ]:
        assert (
            f"config file {path}: unknown key `{unknown}` is ignored; the nearest known key is `{near}`"
            in notes
        )


def test_a_misplaced_key_names_its_section(tmp_path: Path) -> None:
    path = write(tmp_path, {**MOCK, "max_connections": 1, "engine": {"write_timeout_sec": 1, "thread": 1}})
    assert [note.rpartition(" ")[2] for note in sources.load({"config": path}, ENV)[1]] == [
        "`limits.max_connections`",
        "`limits.write_timeout_secs`",
        "`engine.threads`",
    ]


def test_a_key_cannot_control_the_terminal(tmp_path: Path) -> None:
    path = write(tmp_path, {**MOCK, "\x1b[31m\n": 1})
    (note,) = sources.load({"config": path}, ENV)[1]
    assert note.isprintable()


def test_the_key_of_editors_is_known(tmp_path: Path) -> None:
    path = write(tmp_path, {**MOCK, "$schema": "config.schema.json"})
    assert sources.load({"config": path}, ENV)[1] == []


def test_the_schema_explains_each_key() -> None:
    limits = json.loads(docs.schema())["$defs"]["Limits"]["properties"]
    assert limits["max_connections"]["anyOf"][0] == {
        "type": "integer",
        "minimum": 1,
        "maximum": 1_000_000,
        "description": "The maximum number of open connections. A further connection is closed at once.",
    }


def test_a_file_error_keeps_flags_and_environment(tmp_path: Path) -> None:
    path = write(tmp_path, "{")
    result = sources.read({"config": path, "lock": Path("/l")}, {**ENV, "INFERD_ADMIN_ADDR": "/a"})
    assert result.problem is not None
    assert (result.settings.lock, result.settings.admin_addr) == (Path("/l"), Path("/a"))
    assert result.settings.backends


# Entries of the file.


def test_the_legacy_model_is_one_llamacpp_entry(tmp_path: Path) -> None:
    model = {"name": "x", "sha256": SHA, "source_url": "https://a/m", "size_bytes": 5, "license": "MIT"}
    path = write(tmp_path, {"model": model, "n_ctx": 100, "n_gpu_layers": 0})
    settings, _ = sources.load({"config": path}, ENV)
    spec = ModelSpec(name="x", sha256=SHA, source_url="https://a/m", size_bytes=5, license="MIT")
    assert settings.backends == (LlamaCppEntry(name=spec.name, model=spec, n_ctx=100, n_gpu_layers=0),)


def test_the_projector_of_a_model_is_a_path_or_another_model(tmp_path: Path) -> None:
    ears = {"name": "ears", "sha256": SHA}
    path = write(tmp_path, {"model": {"name": "x", "mmproj": ears}})
    (entry,) = sources.load({"config": path}, ENV)[0].backends
    spec = ModelSpec(name="ears", sha256=SHA)
    assert entry == LlamaCppEntry(name="x", model=ModelSpec(name="x"), mmproj=spec)
    path = write(tmp_path, {"model": {"name": "x", "mmproj": "/p.gguf"}})
    (entry,) = sources.load({"config": path}, ENV)[0].backends
    assert isinstance(entry, LlamaCppEntry)
    assert entry.mmproj == Path("/p.gguf")
    (entry,) = sources.load({"config": path, "model": "y"}, ENV)[0].backends
    assert entry == LlamaCppEntry(name="x", model=ModelSpec(name="y"))
    path = write(tmp_path, {"model": {"name": "x", "mmproj": {**ears, "sha265": SHA}}})
    assert any("`model.mmproj.sha265`" in note for note in sources.load({"config": path}, ENV)[1])


def test_the_adapters_of_an_entry_fit_its_model_and_no_other(tmp_path: Path) -> None:
    pirate = {"name": "pirate", "path": "/a.gguf", "scale": 0.5}
    lora = [pirate, {"name": "poet", "path": "/b.gguf", "scael": 1}]
    listed = {"kind": "llamacpp", "name": "x", "model_path": "/m.gguf", "lora": lora}
    path = write(tmp_path, {"backends": [listed]})
    settings, notes = sources.load({"config": path}, ENV)
    (entry,) = settings.backends
    assert isinstance(entry, LlamaCppEntry)
    assert [(each.name, each.path, each.scale) for each in entry.lora] == [
        ("pirate", Path("/a.gguf"), 0.5),
        ("poet", Path("/b.gguf"), 1.0),
    ]
    assert any("`backends[0].lora[1].scael`" in note for note in notes)
    (entry,) = sources.load({"config": path, "model": "y"}, ENV)[0].backends
    assert isinstance(entry, LlamaCppEntry)
    assert entry.lora == ()


def entries(tmp_path: Path, flags: dict[str, object]) -> tuple[tuple[BackendEntry, ...], list[str]]:
    listed = [
        {"kind": "mock", "name": "m"},
        {"kind": "llamacpp", "name": "big", "model_path": "/big.gguf", "n_ctx": 64},
        {"kind": "llamacpp", "name": "small", "model": {"name": "s"}},
    ]
    path = write(tmp_path, {"backends": listed, "n_ctx": 32})
    settings, notes = sources.load({"config": path, **flags}, ENV)
    return settings.backends, notes


def test_entries_keep_their_order_and_fall_back_to_the_top_level(tmp_path: Path) -> None:
    backends, notes = entries(tmp_path, {})
    assert [entry.name for entry in backends] == ["m", "big", "small"]
    _, big, small = backends
    assert isinstance(big, LlamaCppEntry)
    assert isinstance(small, LlamaCppEntry)
    assert (big.n_ctx, small.n_ctx) == (64, 32)
    assert big.model_path == Path("/big.gguf")
    assert notes == []


def test_an_explicit_option_overrides_the_first_llamacpp_entry(tmp_path: Path) -> None:
    backends, notes = entries(tmp_path, {"model": "other", "n_ctx": 16})
    assert backends[1] == LlamaCppEntry(name="big", model=ModelSpec(name="other"), n_ctx=16, n_gpu_layers=-1)
    assert backends[2] == LlamaCppEntry(name="small", model=ModelSpec(name="s"), n_ctx=16)
    assert "--model, --n-ctx overrides the entry 'big' of the config file" in notes
    backends, _ = entries(tmp_path, {"model_sha256": SHA})
    assert (backends[1].model_path, backends[1].model_sha256) == (Path("/big.gguf"), SHA)
    backends, _ = entries(tmp_path, {"model_path": Path("/p"), "model_sha256": SHA})
    assert (backends[1].model_path, backends[1].model_sha256) == (Path("/p"), SHA)


def test_an_explicit_kind_keeps_only_its_entries(tmp_path: Path) -> None:
    backends, notes = entries(tmp_path, {"backend": "mock"})
    assert [entry.name for entry in backends] == ["m"]
    assert "--backend overrides `backends` of the config file" in notes
    path = write(tmp_path, {"model": {"name": "x"}})
    settings, _ = sources.load({"config": path, "backend": "mock"}, ENV)
    assert settings.backends == (MockEntry(name="mock"),)


@pytest.mark.parametrize("content", [{}, {"engine": {"queue_depth": 3}}])
def test_a_file_without_backends_means_the_default_model(tmp_path: Path, content: object) -> None:
    settings, _ = sources.load({"config": write(tmp_path, content)}, ENV)
    assert settings.backends == sources.load({}, ENV)[0].backends
    chosen, _ = sources.load({"config": write(tmp_path, content), "backend": "mock"}, ENV)
    assert [kind_of(entry) for entry in chosen.backends] == ["mock"]


def test_dissimilar_keys_are_not_suggested(tmp_path: Path) -> None:
    path = write(tmp_path, {**MOCK, "xyzzy": 1})
    env = {**ENV, "INFERD_XYZZY": "1", "INFERD_QUEUE_DEPHT": "1"}
    assert [
        note.removeprefix(f"config file {path}: ") for note in sources.load({"config": path}, env)[1]
    ] == [
        "unknown variable INFERD_XYZZY is ignored",
        "unknown variable INFERD_QUEUE_DEPHT is ignored; the nearest known one is INFERD_QUEUE_DEPTH",
        "unknown key `xyzzy` is ignored",
    ]
    assert "known are llamacpp, openai-compat" in problem(
        tmp_path, {"backends": [{"kind": "gguf", "name": "m"}]}
    )


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(MOCK).encode())
    key = tmp_path / "key"
    key.write_bytes(b"\xef\xbb\xbfsecret\n")
    settings, _ = sources.load({"config": path, "api_key_file": key}, ENV)
    assert settings.backends == (MockEntry(name="m"),)
    assert settings.api_key is not None
    assert settings.api_key.reveal() == "secret"


@pytest.mark.parametrize("end", ["/v1/chat/completions", "/v1/embeddings/", "/completions"])
def test_the_address_of_a_call_is_refused_as_a_server(tmp_path: Path, end: str) -> None:
    entry = {"kind": "openai-compat", "name": "m", "model": "x", "base_url": f"https://example.com{end}"}
    assert "the address of the server alone, without" in problem(tmp_path, {"backends": [entry]})


def test_the_schema_has_a_dialect_and_knows_every_key() -> None:
    schema = json.loads(docs.schema())
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    shapes = [shape for shape in schema["$defs"].values() if "properties" in shape]
    assert shapes
    assert all(shape["additionalProperties"] is False for shape in shapes)
    assert "$schema" in schema["$defs"]["Config"]["properties"]
    tagged = [shape for name, shape in schema["$defs"].items() if name.startswith("Backend_")]
    assert all("kind" in shape["properties"] for shape in tagged)


def test_an_entry_may_have_names_a_prompt_and_no_preload(tmp_path: Path) -> None:
    first = {"kind": "mock", "name": "m"}
    more = {
        "aliases": ["big"],
        "preload": False,
        "pin": True,
        "system": "Be\nbrief.",
        "chat_template_file": "/t",
    }
    entry = {"kind": "llamacpp", "name": "big one", "model": {"name": "x"}, **more}
    path = write(tmp_path, {"backends": [first, entry]})
    (_, made), notes = sources.load({"config": path}, ENV)[0].backends, sources.load({"config": path}, ENV)[1]
    assert made == LlamaCppEntry(
        name="big one",
        model=ModelSpec(name="x"),
        aliases=("big",),
        preload=False,
        pin=True,
        system="Be\nbrief.",
        chat_template_file=Path("/t"),
    )
    assert notes == []
    for listed, reason in (
        ([first, {**entry, "aliases": ["m"]}], r"`backends\[1\].aliases` 'm' is taken"),
        ([entry], "must be loaded at the start"),
    ):
        with pytest.raises(ConfigError, match=reason):
            sources.load({"config": write(tmp_path, {"backends": listed})}, ENV)
