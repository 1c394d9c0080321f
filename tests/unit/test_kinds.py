"""The kinds of options: what each accepts, and how an error names it."""

from __future__ import annotations

from pathlib import Path

import pytest

from inferd.config import sources
from inferd.config.addresses import (
    Endpoint,
    HttpsUrl,
    LocalAddress,
    ServerUrl,
    TcpAddress,
)
from inferd.config.kinds import (
    Boolean,
    Choice,
    FilePath,
    Kind,
    Name,
    SecretText,
    Sha256,
)
from inferd.config.numbers import Integer, Seconds
from tests.cases import cases
from tests.unit.test_config import ENV, SHA

# Kinds.


@cases(
    "kind, good, bad",
    [
        (Integer(0, 9), ["0", "9", "+3", "007"], ["-1", "10", "", "1.0", "1e0", "٣", "9" * 30]),
        (Seconds(), ["0", "1", "0.25"], ["-1", "inf", "nan", "1e3", "", ".5", "99999999"]),
        (Seconds(positive=True), ["0.001"], ["0", "0.0"]),
        (Choice(("a", "b"), {"0": "a"}), ["a", "0"], ["A", "", "c"]),
        (Boolean(), ["1", "TRUE", "yes", "on", "0", "no"], ["", "2", "maybe"]),
        (Name(), ["smollm2-135m", "a b"], ["", " ", "a/b", "a\\b", ".", "..", "a\nb", "\x1b[0m"]),
        (Sha256(), [SHA, SHA.upper()], [SHA[1:], SHA + "0", "g" * 64, SHA + "\n"]),
        (
            TcpAddress(),
            ["127.0.0.1:0", "[::1]:47321", "0.0.0.0:65535"],
            ["localhost:1", "127.0.0.1", "::1:47321", "[127.0.0.1]:1", "127.0.0.1:65536", "127.0.0.1:", ":1"],
        ),
        (HttpsUrl(), ["", "https://a.example/m.gguf"], ["http://a.example/m", "https:///m", "https://a/ b"]),
        (
            ServerUrl(),
            ["https://a", "http://[::1]:1/x/"],
            ["", "a", "ftp://a", "https://u:p@a", "https://a?b"],
        ),
        (Endpoint(), ["", "a.example", "http://127.0.0.1:1"], ["a b", "ftp://a", "https://a:99999"]),
        (
            LocalAddress(),
            ["127.0.0.1:1", "[::1]:1", "./m", "/m"],
            ["", "m", "10.0.0.1:1", "0.0.0.0:1", "/\n"],
        ),
        (SecretText(), ["k"], ["", "a\nb"]),
        (SecretText(optional=True), ["", "k"], ["\0"]),
        (FilePath(), ["/a", "b"], ["", "a\0b"]),
    ],
)
def test_kinds(kind: Kind, good: list[str], bad: list[str]) -> None:
    for text in good:
        kind.parse(text)
    for text in bad:
        with pytest.raises(ValueError, match=r"."):
            kind.parse(text)


@cases(
    "text, level",
    [
        ("0", "off"),
        ("1", "error"),
        ("5", "trace"),
        ("INFO", "info"),
        ("Debug", "debug"),
        ("warn,inferd_daemon=info", "info"),
        ("inferd_daemon::activity=DEBUG, hyper=error, warn", "debug"),
        ("hyper=trace,warn", "warn"),
    ],
)
def test_log_levels_of_0_2_1(text: str, level: str) -> None:
    settings, notes = sources.load({}, {**ENV, "INFERD_LOG": text}, serving=False)
    assert (settings.log_level, notes) == (level, [])


@cases("text", ["6", "loud", "junk!!", "hyper=debug", "warn,loud", ",", "=info,x"])
def test_an_unusable_log_level_is_a_warning(text: str) -> None:
    settings, (note,) = sources.load({}, {**ENV, "INFERD_LOG": text}, serving=False)
    assert settings.log_level == "info"
    assert note.startswith("INFERD_LOG must be one of off, error")
    assert note.endswith(f"not {text!r}; it is ignored")


def test_as_0_2_1_a_missing_config_file_is_a_warning_and_lines_are_long(tmp_path: Path) -> None:
    named = tmp_path / "none.json"
    for flags, env in (({"config": named}, ENV), ({}, {**ENV, "INFERD_CONFIG": str(named)})):
        loaded = sources.read(flags, env, as_0_2=True)
        assert loaded.problem is None
        assert loaded.notes == (f"config file {named}: there is no such file; the daemon serves without it",)
        assert loaded.settings.max_frame_bytes == 64 * 1024 * 1024
        assert sources.read(flags, env).problem is not None
    assert sources.read({"max_frame_bytes": 2048}, ENV, as_0_2=True).settings.max_frame_bytes == 2048
    assert sources.read({}, ENV).settings.max_frame_bytes == 65536


def test_numbers_of_0_2_1(tmp_path: Path) -> None:
    env = {**ENV, "INFERD_N_CTX": "0", "INFERD_READY_TIMEOUT_SECS": "0", "INFERD_ACTIVE_PERMITS": "1000"}
    settings, _ = sources.load({}, env, serving=False)
    assert (settings.n_ctx, settings.ready_timeout_secs, settings.active_permits) == (0, 0, 1000)


def test_home_is_expanded_in_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert sources.load({}, {**ENV, "INFERD_UDS": "~/s"})[0].uds == Path("/home/ada/s")
