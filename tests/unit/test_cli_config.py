"""``inferd config``: its output, the file it writes, and that it shows no secret."""

from __future__ import annotations

import errno
import json
import stat
from pathlib import Path
from typing import Any

import pytest

from inferd import __version__, cli
from inferd.cli import config as config_commands
from inferd.config import docs
from inferd.config.settings import OPTIONS
from tests.cases import cases

LOCAL = {"kind": "llamacpp", "name": "m", "model_path": __file__}
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for option in OPTIONS:
        if option.env is not None:
            monkeypatch.delenv(option.env, raising=False)
    monkeypatch.delenv("INFERD_CONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def config(*arguments: str) -> int:
    return cli.main(["config", *arguments])


def shown(capsys: Capture, *arguments: str) -> dict[str, Any]:
    assert config("show", "--json", *arguments) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def write(home: Path, content: object) -> Path:
    path = home / ".inferd" / "config.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    return path


# show


def test_show_names_the_place_of_each_value(
    home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(home, {"backends": [{"kind": "mock", "name": "m"}], "engine": {"queue_depth": 3}})
    monkeypatch.setenv("INFERD_ACTIVE_PERMITS", "2")
    report = shown(capsys)
    assert report["config_file"] == str(path)
    assert set(report["options"]) == {option.name for option in OPTIONS}
    assert report["options"]["queue_depth"] == {"value": 3, "origin": "config `engine.queue_depth`"}
    assert report["options"]["active_permits"] == {"value": 2, "origin": "INFERD_ACTIVE_PERMITS"}
    assert report["options"]["threads"] == {"value": 0, "origin": "default"}
    assert report["backends"] == [{"kind": "mock", "name": "m"}]


def test_show_prints_lines_for_people(home: Path, capsys: Capture) -> None:
    write(home, {"model": {"name": "x"}, "limits": {"idle_timeout_secs": 2.5}})
    assert config("show", "--origin") == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in lines if line}
    assert rows["idle_timeout_secs"] == ["2.5", "config `limits.idle_timeout_secs`"]
    assert rows["auto_pull"] == ["true", "default"]
    assert rows["api_key"] == ["none", "default"]
    assert "  model  name x" in lines
    assert config("show") == 0
    assert "default" not in capsys.readouterr().out


def test_show_hides_every_secret(home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    far = {"kind": "openai-compat", "name": "far", "base_url": "https://a", "model": "m", "api_key_env": "K"}
    near = {"kind": "bedrock-invoke", "name": "aws", "region": "r", "model_id": "i"}
    write(home, {"backends": [far, near], "listen": {"api_key_env": "L"}})
    for name in ("K", "L", "INFERD_OPENAI_API_KEY", "AWS_BEARER_TOKEN_BEDROCK"):
        monkeypatch.setenv(name, "hunter22")
    report = shown(capsys)
    assert "hunter22" not in json.dumps(report)
    assert report["options"]["api_key"] == {"value": "(set)", "origin": "config `listen.api_key_env`"}
    assert [entry.get("api_key", entry.get("bearer_token")) for entry in report["backends"]] == ["(set)"] * 2
    assert config("show", "--origin") == 0
    assert "hunter22" not in capsys.readouterr().out


def test_show_reads_the_named_file(home: Path, capsys: Capture) -> None:
    other = home / "other.json"
    other.write_text('{"backends": [{"kind": "mock", "name": "other"}]}')
    assert shown(capsys, "--config", str(other))["backends"][0]["name"] == "other"


# check


def test_check_reports_errors(home: Path, capsys: Capture) -> None:
    path = write(home, {"backends": [{"kind": "mock", "name": "m"}], "engine": {"threads": -1}})
    assert config("check") == 1
    assert capsys.readouterr().err.startswith(f"inferd: config file {path}: ")
    assert config("check", str(home / "none.json")) == 1
    assert "there is no such file" in capsys.readouterr().err


def test_check_warns_and_continues(home: Path, capsys: Capture) -> None:
    path = write(home, {"backends": [{"kind": "mock", "name": "m"}], "engin": {}})
    assert config("check", str(path)) == 0
    out, err = capsys.readouterr()
    assert out == f"{path} is sound\n"
    assert "unknown key `engin` is ignored; the nearest known key is `engine`" in err


def test_check_without_a_file_says_so(home: Path, capsys: Capture) -> None:
    assert config("check") == 0
    assert "there is no config file" in capsys.readouterr().out


@cases(
    "content, reason",
    [
        ({"listen": {"tcp": "0.0.0.0:47399"}}, "refusing to serve on 0.0.0.0:47399 without an API key"),
        ({"http": {"addr": "0.0.0.0:47399"}}, "refusing to serve on 0.0.0.0:47399 without an API key"),
        (
            {"http": {"addr": "127.0.0.1:1", "cert": __file__}},
            "it must be a chain in PEM",
        ),
        ({"backends": [{**LOCAL, "chat_template_file": "/no"}]}, "there is no file /no"),
    ],
)
def test_check_finds_what_a_daemon_would_refuse(
    content: dict[str, Any], reason: str, home: Path, capsys: Capture
) -> None:
    write(home, content)
    assert config("check") == 1
    assert reason in capsys.readouterr().err


def test_check_finds_a_backend_that_lacks_its_key(home: Path, capsys: Capture) -> None:
    near = {"kind": "bedrock-invoke", "name": "aws", "region": "r", "model_id": "i", "bearer_token_env": "T"}
    write(home, {"backends": [near]})
    assert config("check") == 1
    assert "set T to a bearer token" in capsys.readouterr().err


# schema


def test_schema_is_the_published_one(capsys: Capture) -> None:
    assert config("schema") == 0
    assert capsys.readouterr().out == docs.schema()


# init


def test_init_makes_a_sound_file_for_its_owner(home: Path, capsys: Capture) -> None:
    path = home / ".inferd" / "config.json"
    assert config("init") == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert config("check") == 0
    capsys.readouterr()
    assert shown(capsys)["backends"][0]["model"] == {"name": "smollm2-135m-instruct"}
    assert [entry.name for entry in path.parent.iterdir()] == ["config.json"]


def test_init_takes_a_model(home: Path, capsys: Capture) -> None:
    path = home / "new" / "c.json"
    assert config("init", "--config", str(path), "--model-path", "/m.gguf") == 0
    capsys.readouterr()
    assert shown(capsys, "--config", str(path))["backends"][0]["model_path"] == "/m.gguf"


def test_init_keeps_an_existing_file_unless_forced(home: Path, capsys: Capture) -> None:
    path = write(home, {"backends": [{"kind": "mock", "name": "mine"}]})
    before = path.read_bytes()
    assert config("init") == 1
    assert "--force replaces it" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert config("init", "--force", "--model", "other") == 0
    assert json.loads(path.read_text())["backends"][0]["model"] == {"name": "other"}
    assert [entry.name for entry in path.parent.iterdir()] == ["config.json"]


def test_init_says_that_the_disk_is_full(
    home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(config_commands, "_place", full)
    assert config("init") == 1
    assert capsys.readouterr().err.endswith("config.json cannot be made: No space left on device\n")
    assert [*(home / ".inferd").iterdir()] == []


def test_init_says_where_it_cannot_write(home: Path, capsys: Capture) -> None:
    (home / ".inferd").write_text("")
    assert config("init") == 1
    assert f"cannot be made: it exists and is not a directory: {home / '.inferd'}" in capsys.readouterr().err


# The commands around it.


def test_a_misspelt_command_names_the_nearest(capsys: Capture) -> None:
    assert cli.main(["confg"]) == 2
    assert "there is no command 'confg'; the nearest is 'config'" in capsys.readouterr().err
    assert cli.main(["xyzzy"]) == 2
    assert "nearest" not in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["-V", "--version"])
def test_the_daemon_says_its_version(flag: str, capsys: Capture) -> None:
    assert cli.daemon_main([flag]) == 0
    assert capsys.readouterr().out == f"inferd-daemon {__version__}\n"


def test_a_misspelt_flag_names_the_nearest(capsys: Capture) -> None:
    assert cli.daemon_main(["--queue-dept", "3"]) == 2
    assert "--queue-depth" in capsys.readouterr().err
    assert cli.daemon_main(["--pipe", "x"]) == 2
    assert "Did you mean" not in capsys.readouterr().err


def test_check_reports_an_unknown_model(home: Path, capsys: Capture) -> None:
    def check(entry: dict[str, object]) -> str:
        path = home / "c.json"
        path.write_text(json.dumps({"backends": [{"kind": "llamacpp", "name": "chat", **entry}]}))
        assert config("check", str(path)) == (0 if "smollm2" in str(entry) else 1)
        return capsys.readouterr().err

    assert "no model 'nonsense' in the catalogue or the store" in check({"model": {"name": "nonsense"}})
    assert "backend 'chat': there is no file /nowhere.gguf" in check({"model_path": "/nowhere.gguf"})
    assert check({"model": {"name": "smollm2-135m-instruct"}}) == ""
