"""The commands, in this process: flags, exit codes, output, and what they do without a daemon."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from inferd import cli, errors
from inferd.cli import commands, kind_type, options, running, serve
from inferd.client import Done
from inferd.config.kinds import Boolean
from inferd.config.numbers import Integer
from inferd.config.option import Option
from inferd.config.settings import OPTIONS
from inferd.config.sources import LoadedConfig
from inferd.store.models import Manifest, ModelStore
from tests.cases import cases
from tests.daemon_process import until
from tests.tiny_model import DIGEST, put

DONE = Done(content="Hello", stop_reason="end", prompt_tokens=1, completion_tokens=2)
FLAGGED = [option for option in OPTIONS if option.flag is not None]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def command_raising(error: BaseException) -> click.Command:
    def fail() -> None:
        raise error

    return click.Command("fail", callback=fail)


def subclasses(kind: type[errors.InferdError]) -> list[type[errors.InferdError]]:
    return [kind, *(each for sub in kind.__subclasses__() for each in subclasses(sub))]


# From errors to exit codes.


@cases("kind", subclasses(errors.InferdError))
def test_every_error_ends_a_command_with_its_sentence_and_its_exit_code(
    kind: type[errors.InferdError], capsys: pytest.CaptureFixture[str]
) -> None:
    made = kind.__new__(kind)
    Exception.__init__(made, "what was wrong and what to do")
    assert running.run_command(command_raising(made), "inferd", []) == made.exit_code
    out, err = capsys.readouterr()
    assert (out, err) == ("", "inferd: what was wrong and what to do\n")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_ctrl_c_ends_a_command_with_130(error: BaseException) -> None:
    assert running.run_command(command_raising(error), "inferd", []) == 130


@cases(
    "line, part",
    [
        (["nonsense"], "there is no command 'nonsense'; see `inferd --help`"),
        (["run", "--nonsense"], "see `inferd run --help`"),
        (["run", "--max-tokens", "many", "hi"], "'--max-tokens': 'many' is not a valid whole number; see"),
        (["run", "--temperature", "hot", "hi"], "'--temperature': 'hot' is not a valid number; see"),
        (["run", "--temperature", "nan", "hi"], "'--temperature': 'nan' is not a valid number; see"),
        (["serve", "--n-ctx", "-5"], "it must be a whole number from"),
        (["serve", "--n-ctx"], "--n-ctx"),
        (["http", "127.0.0.1:80x"], "it must be a literal IP:port"),
        (["serve", "--tcp", "127.0.0.1:1", "--uds", "/s"], "--tcp and --uds exclude each other"),
        (["pull"], "see `inferd pull --help`"),
        (["run", "--grammar", "g", "--json-schema", "s", "hi"], "exclude each other"),
        (["run", "--grammar", "/nowhere", "hi"], "/nowhere cannot be read"),
        (["run", "--json-schema", __file__, "hi"], "is not JSON"),
        (["chat"], "a chat needs a terminal"),
    ],
)
def test_an_invalid_command_line_exits_with_2_and_one_line(
    line: list[str], part: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(line) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("inferd: ")
    assert part in err
    assert err.count("\n") == 1


def test_help_and_version(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("-h", "--help"):
        assert cli.main([flag]) == 0
        shown = capsys.readouterr().out
        assert all(f"\n  {name} " in shown for name in commands.COMMANDS)
    assert cli.main(["--version"]) == 0
    assert re.fullmatch(r"inferd \d+\.\d+\.\d+\n", capsys.readouterr().out)
    assert cli.main([]) == 2
    assert cli.daemon_main(["--help"]) == 0
    assert "Usage: inferd-daemon " in capsys.readouterr().out


def test_the_help_of_all_commands_has_the_first_sentence_of_each() -> None:
    context = click.Context(commands.app)
    found = {name: commands.app.get_command(context, name) for name in commands.COMMANDS}
    summaries = {name: summary for name, (_, summary) in commands.COMMANDS.items()}
    assert {name: found[name].get_short_help_str(200) for name in found} == summaries


@cases("name", commands.COMMANDS)
def test_every_command_has_help(name: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name, "-h"]) == 0
    assert f"Usage: inferd {name} " in capsys.readouterr().out


def test_help_shows_no_secret(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("INFERD_API_KEY", "hunter22")
    for name in ("serve", "run", "chat"):
        cli.main([name, "-h"])
    out, err = capsys.readouterr()
    assert "hunter22" not in out + err


def test_a_quick_command_loads_little(home: Path) -> None:
    code = "import sys; from inferd import cli; cli.main(['status']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "inferd.client" in loaded
    assert not loaded & {"inferd.engine", "inferd.daemon", "asyncio", "rich", "prompt_toolkit", "hashlib"}


def test_a_group_without_a_command_shows_its_help(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    context = click.Context(commands.app)
    groups = [
        name for name in commands.COMMANDS if isinstance(commands.app.get_command(context, name), click.Group)
    ]
    assert {"cache", "config", "service"} <= {*groups}
    for name in groups:
        assert cli.main([name]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith(f"Usage: inferd {name} ")
        assert "Commands:" in err


def test_common_aliases_work(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def shown(*line: str, code: int = 0) -> str:
        assert cli.main(line) == code
        return capsys.readouterr().out

    assert shown("-V") == shown("--version") == shown("version")
    assert shown("help") == shown("--help")
    assert shown("help", "config", "show") == shown("config", "show", "--help")
    assert shown("ls", "--json") == shown("list", "--json")
    assert cli.main(["ps"]) == cli.main(["status"]) == 3
    assert cli.main(["reload"]) == 3
    assert shown("help", "nonsense", code=2) == ""
    assert shown("help", "run", "more", code=2) == ""
    assert shown("logs", code=1) == ""


def test_no_help_shows_python_details(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def walk(command: click.Command, line: list[str]) -> None:
        assert cli.main([*line, "--help"]) == 0
        text = capsys.readouterr().out
        for sign in ("<function", "<class", " object at 0x", "None]", "Sentinel", "[]"):
            assert sign not in text, line
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                found = command.get_command(context, name)
                assert found is not None
                walk(found, [*line, name])

    walk(commands.app, [])


def test_the_help_of_serve_has_the_defaults(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["serve", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "[INFERD_QUEUE_DEPTH; default 10]" in text
    assert "[default $MODELS_HOME, else" in text


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes(
    shell: str, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "_INFERD_COMPLETE" in script
    put(ModelStore(home), b"x")
    ModelStore(home).write_manifest(
        Manifest(name="tiny-model", blob=f"sha256:{DIGEST}", size_bytes=1, produced_by="", produced_at="")
    )
    monkeypatch.setenv("_INFERD_COMPLETE", f"{shell}_complete")
    for line, answer in (
        ("inferd st", "status"),
        ("inferd run --js", "--json-schema"),
        ("inferd rm ti", "tiny-model"),
    ):
        words = line.split()
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", words[-1] if shell == "fish" else str(len(words) - 1))
        assert cli.main([]) == 0
        assert answer in capsys.readouterr().out


# The flags of serve.


@cases("option", FLAGGED)
def test_an_option_is_a_flag_of_serve(option: Option) -> None:
    (parameter,) = [each for each in serve.serve_command.params if each.name == option.name]
    assert isinstance(parameter, click.Option)
    assert option.flag in parameter.opts
    assert option.doc in str(parameter.help)
    assert option.env is None or option.env in str(parameter.help)
    assert parameter.default is None or "unset" in str(parameter.default).lower()


def test_serve_hands_its_flags_to_the_daemon(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from inferd.daemon import start

    seen: list[LoadedConfig] = []

    def note(read: Callable[[], LoadedConfig]) -> int:
        seen.append(read())
        return 0

    monkeypatch.setattr(start, "run", note)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    line = ["--backend", "mock", "--no-auto-pull", "--require-gpu", "--drain-timeout-secs", "0.5"]
    assert cli.daemon_main(line) == 0
    settings = seen[0].settings
    assert (settings.backend, settings.auto_pull, settings.require_gpu) == ("mock", False, True)
    assert settings.drain_timeout_secs == 0.5
    assert (seen[0].notes, seen[0].problem) == ((), None)
    (home / "bad.json").write_text("{")
    assert cli.main(["serve", "--config", str(home / "bad.json"), "--lock", "/l"]) == 0
    assert isinstance(seen[1].problem, errors.ConfigError)
    assert seen[1].settings.lock == Path("/l")
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == blocked


def test_a_flag_is_checked_by_the_kind_of_its_option() -> None:
    for option in FLAGGED:
        if isinstance(option.kind, Integer):
            with pytest.raises(click.BadParameter, match="whole number"):
                kind_type.KindType(option.kind).convert("x", None, None)
        if not isinstance(option.kind, Boolean):
            assert kind_type.KindType(option.kind).name == option.kind.metavar


# Where to connect.


def test_the_target_is_the_configured_daemon_unless_an_address_is_given(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = options.target(None, None)
    assert (own.address, own.startable, own.api_key) == (str(home / "inferd" / "infer.sock"), True, None)
    monkeypatch.setenv("INFERD_TCP", "127.0.0.1:47321")
    monkeypatch.setenv("INFERD_API_KEY", "k")
    own = options.target(None, None)
    assert (own.address, own.startable, own.api_key) == ("tcp://127.0.0.1:47321", True, "k")
    (home / "key").write_text("other\n")
    other = options.target("/s", home / "key")
    assert (other.address, other.startable, other.api_key) == ("/s", False, "other")


def test_a_named_address_starts_no_daemon(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "hi", "--address", str(home / "s")]) == 3
    assert "no daemon is running" in capsys.readouterr().err
    assert not (home / "inferd").exists()


# Models.


def test_list_shows_catalogue_and_store(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list"]) == 0
    assert re.search(r"smollm2-135m-instruct +no +98 MB +\? +Apache-2\.0", capsys.readouterr().out)
    assert cli.main(["list", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["models_home"] == str(home)
    assert not any(model["stored"] for model in report["models"])
    assert "smollm2-135m-instruct" in [model["name"] for model in report["models"]]


@pytest.fixture
def handlers() -> Iterator[None]:
    """Restores the signal handlers that a command has set."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_an_interrupted_pull_cleans_up(home: Path, handlers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from inferd.store import fetch

    ended: list[str] = []
    returned = threading.Event()

    def main_waits() -> bool:
        frame = sys._current_frames()[threading.main_thread().ident or 0]
        return "result" in [each.f_code.co_name for each, _ in traceback.walk_stack(frame)]

    def ensure_model(*_: object, cancelled: threading.Event, **__: object) -> None:
        until(main_waits)
        os.kill(os.getpid(), signal.SIGINT)
        assert cancelled.wait(100)
        os.kill(os.getpid(), signal.SIGINT)
        ended.append("cut short" if returned.wait(0.2) else "cleaned up")
        raise errors.BootCancelled("cancelled")

    monkeypatch.setattr(fetch, "ensure_model", ensure_model)
    assert cli.main(["pull", "smollm2-135m-instruct"]) == 130
    returned.set()
    until(lambda: bool(ended))
    assert ended == ["cleaned up"]


def test_pull_of_an_unknown_model_names_the_known_ones(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["pull", "smollm2-135m-instrct"]) == 1
    assert "smollm2-135m-instruct" in capsys.readouterr().err
