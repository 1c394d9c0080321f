"""``inferdctl`` against real daemons and a real store: the output and exit codes that scripts rely on."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from inferd import __version__
from inferd.cli import ctl
from inferd.config.settings import OPTIONS
from inferd.store.models import ModelStore
from tests.daemon_process import DaemonProcess

Daemon = Callable[..., DaemonProcess]
Capture = pytest.CaptureFixture[str]

READY = '{"id":"admin","status":"ready","type":"status"}\n'
DATA = b"GGUF and more"
SHA = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name in (
        "INFERD_CONFIG",
        "MODELS_HOME",
        "XDG_DATA_HOME",
        *filter(None, (each.env for each in OPTIONS)),
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    before = signal.getsignal(signal.SIGTERM)
    yield tmp_path
    signal.signal(signal.SIGTERM, before)


def write(home: Path, content: object) -> Path:
    path = home / "c.json"
    path.write_text(json.dumps(content))
    return path


def stored(home: Path, data: bytes = DATA) -> ModelStore:
    """A store with one blob and no manifest."""
    store = ModelStore(home / "models")
    path = store.blob_path(SHA)
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    return store


def model(home: Path) -> dict[str, object]:
    entry = {"kind": "llamacpp", "name": "chat", "model": {"name": "tiny", "sha256": SHA}}
    far = {"kind": "openai-compat", "name": "far", "base_url": "https://a.example", "model": "m"}
    return {"models_home": str(home / "models"), "backends": [entry, far]}


# The program.


def test_without_a_command_it_prints_the_help(capsys: Capture) -> None:
    assert ctl.main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert all(name in err for name in ("status", "watch", "pull", "doctor"))
    assert ctl.main(["--version"]) == 0
    assert capsys.readouterr().out == f"inferdctl {__version__}\n"


def test_an_invalid_command_line_exits_with_2(capsys: Capture) -> None:
    assert ctl.main(["statu"]) == 2
    assert capsys.readouterr().err.startswith("error: ")


# status


def test_status_of_a_ready_daemon(daemon: Daemon, capsys: Capture) -> None:
    served = daemon().wait_ready()
    assert ctl.main(["status", "--admin-addr", str(served.admin)]) == 0
    assert capsys.readouterr().out == READY
    assert ctl.main(["--admin-addr", str(served.admin), "status"]) == 0
    assert capsys.readouterr().out == READY


def test_status_of_a_daemon_that_loads(daemon: Daemon, capsys: Capture) -> None:
    served = daemon(mock={"hold": "build"})
    with served.subscribe() as admin:
        while admin.frame()["status"] != "loading_model":
            pass
    assert ctl.main(["status", "--admin-addr", str(served.admin)]) == 1
    line = capsys.readouterr().out
    assert json.loads(line)["status"] == "loading_model"
    assert list(json.loads(line)) == sorted(json.loads(line))
    served.release()
    served.wait_ready()


def test_status_without_a_daemon(home: Path, capsys: Capture) -> None:
    assert ctl.main(["status", "--admin-addr", str(home / "none.sock")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: no daemon is running")
    assert err.count("\n") == 1


# watch


def test_watch_prints_events_until_the_daemon_ends(daemon: Daemon) -> None:
    served = daemon().wait_ready()
    program = "import sys; from inferd.cli.ctl import main; sys.exit(main())"
    watching = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", program, "watch", "--admin-addr", str(served.admin)],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), "HOME": str(served.dir)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert watching.stdout is not None
    first = [watching.stdout.readline() for _ in range(2)]
    assert json.loads(first[0])["status"] == "capabilities"
    assert first[1] == READY
    served.process.send_signal(signal.SIGTERM)
    rest, errors = watching.communicate(timeout=100)
    served.process.wait(timeout=100)
    assert rest == READY.replace("ready", "draining")
    assert watching.returncode == 2
    assert errors.startswith("error: the daemon at ")


# pull


def test_pull_fetches_every_local_model_of_the_file(home: Path, capsys: Capture) -> None:
    store = stored(home)
    assert ctl.main(["pull", "--config", str(write(home, model(home)))]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if line.startswith("inferdctl: ")]
    assert lines == [
        f"inferdctl: pulling tiny -> {store.home}",
        f"inferdctl: blob ready at {store.blob_path(SHA)}",
    ]


def test_pull_of_an_unavailable_model(home: Path, capsys: Capture) -> None:
    path = write(home, model(home))
    assert ctl.main(["pull", "--config", str(path)]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")
    assert ctl.main(["pull", "--config", str(home / "none.json")]) == 2
    assert "there is no such file" in capsys.readouterr().err


def test_pull_with_nothing_to_fetch(home: Path, capsys: Capture) -> None:
    path = write(home, {"backends": [{"kind": "mock", "name": "m"}]})
    assert ctl.main(["pull", "--config", str(path)]) == 0
    assert capsys.readouterr().err == f"inferdctl: {path} lists no model to fetch\n"


# doctor


def test_doctor_of_a_sound_installation(daemon: Daemon, home: Path, capsys: Capture) -> None:
    served = daemon().wait_ready()
    path = write(home, model(home))
    store = stored(home)
    assert ctl.main(["pull", "--config", str(path)]) == 0
    capsys.readouterr()
    assert ctl.main(["doctor", "--config", str(path), "--admin-addr", str(served.admin)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"[ ok ] config: loaded {path} (backends: [llamacpp:chat, openai-compat:far], auto_pull=true)",
        f"[ ok ] model[chat]: blob present ({len(DATA)} bytes) at {store.blob_path(SHA)}",
        f"[ ok ] manifest[chat]: present at {store.manifest_path('tiny')}",
        f"[ ok ] admin: connected at {served.admin}; daemon status=ready phase=-",
        "[ ok ] backend: mock accelerator=cpu gpu_layers=0 v2=true vision=true audio=true tools=true"
        " thinking=true embed=true",
    ]


def test_doctor_of_a_bare_machine(home: Path, capsys: Capture) -> None:
    path, admin = write(home, model(home)), home / "none.sock"
    assert ctl.main(["doctor", "--config", str(path), "--admin-addr", str(admin)]) == 1
    marks = [line.split(": ")[0] for line in capsys.readouterr().out.splitlines()]
    assert marks == ["[ ok ] config", "[FAIL] model[chat]", "[FAIL] manifest[chat]", "[FAIL] admin"]
    path.write_text("{")
    assert ctl.main(["doctor", "--config", str(path), "--admin-addr", str(admin)]) == 1
    assert capsys.readouterr().out.startswith(f"[FAIL] config: config file {path}: is not JSON")
