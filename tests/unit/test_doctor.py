"""``inferd doctor``: finds each possible fault, and changes nothing."""

from __future__ import annotations

import grp
import json
import os
import platform
import re
import resource
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from inferd import cli
from inferd.cli import check_models, check_places, doctor
from inferd.config import sources
from inferd.store.runtime import Lock
from tests.cases import cases
from tests.unit.test_cli_status import ENGINE


def findings(capsys: pytest.CaptureFixture[str], exit_code: int) -> dict[str, dict[str, str]]:
    assert cli.main(["doctor", "--json"]) == exit_code
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] == (exit_code == 0)
    broken = [check for check in report["checks"] if check["state"] == "fail"]
    assert all(check["advice"] or ";" in check["detail"] for check in broken)
    return {check["name"]: check for check in report["checks"]}


@pytest.fixture
def quick_doctor(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs doctor without loading the engine."""
    monkeypatch.setattr(doctor, "_ENGINE_CODE", 'print(\'[[], "native", "", 1, {}]\')')
    return home


def test_doctor_finds_a_fresh_machine_healthy(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = findings(capsys, 0)
    assert found["engine"]["state"] == "ok"
    assert "useful threads" in found["engine"]["detail"]
    assert found["model"]["state"] == "warn"
    assert found["model"]["advice"] == "run: inferd pull smollm2-135m-instruct"
    assert {check["state"] for name, check in found.items() if name != "model"} == {"ok"}
    assert list(home.iterdir()) == []


def test_doctor_for_people(quick_doctor: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^ok    runtime directory  ", out, re.MULTILINE)
    assert re.search(r"^ +→ run: inferd pull", out, re.MULTILINE)


@cases(
    "engine, state, said",
    [
        ({}, "ok", "process 81, caged"),
        ({"restarts": 2, "last_end": "SIGSEGV"}, "warn", "started again 2 times, last because of: SIGSEGV"),
        ({"silent_secs": 12.0}, "warn", "no sign of life for 12 s"),
        ({"problem": "the file was changed"}, "fail", "the file was changed"),
        ({"cage": {"landlock": "this kernel has none", "seccomp": "yes"}}, "warn", "landlock: this kernel"),
    ],
)
def test_doctor_on_the_process_of_a_model(engine: dict[str, object], state: str, said: str) -> None:
    found = doctor._engine_process("chat", {**ENGINE, **engine})
    assert (found.name, found.state, said in found.detail) == ("engine chat", state, True)


@pytest.mark.parametrize(
    ("code", "detail"),
    [
        ("import os; os.abort()", "crashed with SIGABRT"),
        ("raise ImportError('no such thing')", "cannot be loaded: ImportError: no such thing"),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGILL)",
            "crashed with SIGILL (it was built for another",
        ),
        ("import time; time.sleep(60)", "did not load within"),
    ],
)
def test_doctor_survives_a_crash_of_the_engine(
    code: str, detail: str, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_ENGINE_CODE", code)
    if "sleep" in code:
        monkeypatch.setattr(doctor, "ENGINE_SECS", 0.2)
    assert detail in findings(capsys, 1)["engine"]["detail"]


def test_doctor_on_the_accelerator(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_ENGINE_CODE", 'print(\'[[["cpu", "c", "C", 1]], "haswell", "", 1, {}]\')')
    monkeypatch.setenv("INFERD_REQUIRE_GPU", "1")
    assert findings(capsys, 1)["accelerator"]["state"] == "fail"
    code = 'print(\'[[["gpu", "g0", "Big", 1]], "native", "", 1, {}]\')'
    monkeypatch.setattr(doctor, "_ENGINE_CODE", code)
    assert findings(capsys, 0)["accelerator"]["detail"] == "g0 (Big)"


def test_doctor_finds_obstacles(quick_doctor: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runtime = quick_doctor / "inferd"
    runtime.mkdir(mode=0o777)
    runtime.chmod(0o777)
    (runtime / "infer.sock").write_text("not a socket")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(runtime / "admin.sock"))
    (runtime / "inferd.lock").symlink_to("/etc/passwd")
    (quick_doctor / ".inferd").write_text("a file")
    found = findings(capsys, 1)
    assert found["runtime directory"]["state"] == "warn"
    assert found["inference socket"]["state"] == "fail"
    assert found["admin socket"]["state"] == "warn"
    assert found["lock"]["state"] == "fail"
    assert found["log directory"]["state"] == "fail"


def test_doctor_finds_a_broken_config(quick_doctor: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (quick_doctor / ".inferd").mkdir()
    config = quick_doctor / ".inferd" / "config.json"
    config.write_text("{")
    assert findings(capsys, 1)["config"]["state"] == "fail"
    config.write_text('{"backends": [{"kind": "mock", "name": "m"}], "limit": {}}')
    found = findings(capsys, 0)
    assert found["config"]["state"] == "warn"
    assert "model" not in found


def test_doctor_on_a_model_file(
    quick_doctor: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFERD_MODEL_PATH", str(quick_doctor / "m.gguf"))
    assert "cannot open" in findings(capsys, 1)["model"]["detail"]
    (quick_doctor / "m.gguf").write_text("weights")
    assert "is not a GGUF file" in findings(capsys, 1)["model"]["detail"]
    (quick_doctor / "m.gguf").write_text("GGUF weights")
    assert findings(capsys, 0)["model"]["state"] == "ok"
    with (quick_doctor / "m.gguf").open("ab") as file:
        file.truncate(1 << 43)  # takes no place on the disk
    assert "GB of memory" in findings(capsys, 0)["model"]["detail"]
    (quick_doctor / "m.gguf").write_text("GGUF weights")
    monkeypatch.setenv("INFERD_MODEL_SHA256", "00" * 32)
    assert "sha256" in findings(capsys, 1)["model"]["detail"]
    assert (quick_doctor / "m.gguf").exists()


def test_doctor_on_a_missing_model_that_may_not_be_fetched(
    quick_doctor: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFERD_AUTO_PULL", "no")
    assert findings(capsys, 1)["model"]["advice"] == "run: inferd pull smollm2-135m-instruct"


def test_doctor_finds_a_damaged_model_and_leaves_it(
    quick_doctor: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from inferd.store.catalogue import CATALOGUE, DEFAULT_MODEL
    from inferd.store.models import ModelStore

    blob = ModelStore(quick_doctor).blob_path(CATALOGUE[DEFAULT_MODEL].sha256)
    blob.parent.mkdir(parents=True)
    blob.write_text("damaged")
    assert findings(capsys, 1)["model"]["state"] == "fail"
    assert blob.read_text() == "damaged"


def test_doctor_finds_a_daemon_that_does_not_report(
    quick_doctor: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Lock.acquire(quick_doctor / "inferd" / "inferd.lock"):
        found = findings(capsys, 1)
    assert found["lock"]["detail"].endswith(f"is held by process {os.getpid()}")
    assert found["daemon"]["state"] == "fail"


def test_doctor_without_the_compiled_module(
    quick_doctor: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import inferd

    monkeypatch.setattr(inferd, "fastpath", SimpleNamespace(IMPLEMENTATION="python"), raising=False)
    assert findings(capsys, 0)["fastpath"]["state"] == "warn"


def test_doctor_looks_at_the_socket_of_every_surface(
    quick_doctor: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFERD_EMBED", "1")
    monkeypatch.setenv("INFERD_RERANK", "1")
    monkeypatch.setenv("INFERD_METRICS_ADDR", str(quick_doctor / "metrics.sock"))
    runtime = quick_doctor / "inferd"
    runtime.mkdir(mode=0o700)
    places = {
        "admin socket": runtime / "admin.sock",
        "inference socket": runtime / "infer.sock",
        "v2 socket": runtime / "infer.v2.sock",
        "frames socket": runtime / "inferd.sock",
        "embed socket": runtime / "infer.embed.sock",
        "rerank socket": runtime / "infer.rerank.sock",
        "metrics socket": quick_doctor / "metrics.sock",
    }
    for path in places.values():
        path.write_text("a file")
    found = findings(capsys, 1)
    assert {name: found[name]["state"] for name in places} == dict.fromkeys(places, "fail")


def test_doctor_on_sockets_that_listen(quick_doctor: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (quick_doctor / "inferd").mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(quick_doctor / "inferd" / "infer.sock"))
        listening.listen()
        listening.settimeout(0.0)
        assert "starts a daemon" in findings(capsys, 0)["inference socket"]["detail"]
        with pytest.raises(BlockingIOError):  # no client connected, so no daemon was started
            listening.accept()
        with Lock.acquire(quick_doctor / "inferd" / "inferd.lock"):
            assert findings(capsys, 1)["inference socket"]["detail"].endswith(" answers")


def test_doctor_looks_at_the_address_of_the_environment(
    quick_doctor: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = quick_doctor / "other.sock"
    monkeypatch.setenv("INFERD_ADDRESS", str(path))
    found = findings(capsys, 1)["INFERD_ADDRESS"]
    assert (found["state"], found["advice"]) == ("fail", "unset it to use a daemon of this user")
    assert str(path) in found["detail"]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        assert findings(capsys, 0)["INFERD_ADDRESS"]["state"] == "ok"


def test_doctor_on_the_daemon_of_another_user(quick_doctor: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can become somebody else")
    runtime = quick_doctor / "inferd"
    runtime.mkdir(mode=0o755)
    quick_doctor.chmod(0o755)
    settings = sources.read({}).settings
    list(check_places.sockets(settings))  # loads files that the other user may not read
    reading, writing = os.pipe()
    with Lock.acquire(runtime / "inferd.lock"), socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(runtime / "infer.sock"))
        (runtime / "infer.sock").chmod(0o660)
        listening.listen()
        child = os.fork()
        if child == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            found = [*check_places.runtime_directory(settings), *check_places.sockets(settings)]
            os.write(writing, json.dumps({finding.name: finding.detail for finding in found}).encode())
            os._exit(0)
        os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading, "rb") as report:
        details = json.loads(report.read())
    assert "may not be opened by this user" in details["inference socket"]
    assert "cannot be written" in details["runtime directory"]


def test_doctor_on_a_path_that_is_too_long(
    quick_doctor: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFERD_UDS", str(quick_doctor / ("x" * 120)))
    assert "longer than the" in findings(capsys, 1)["inference socket"]["detail"]


def test_doctor_on_tcp_addresses(
    quick_doctor: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("INFERD_TCP", f"127.0.0.1:{port}")
        assert "taken by another program" in findings(capsys, 1)["inference socket"]["detail"]
        with Lock.acquire(quick_doctor / "inferd" / "inferd.lock"):
            assert findings(capsys, 1)["inference socket"]["detail"].endswith(" answers")
    assert findings(capsys, 0)["inference socket"]["detail"].endswith(" is free")
    monkeypatch.setenv("INFERD_TCP", "192.0.2.1:47321")
    assert "not an address of this machine" in findings(capsys, 1)["inference socket"]["detail"]
    monkeypatch.setenv("INFERD_TCP", "0.0.0.0:47321")
    assert "without an API key" in findings(capsys, 1)["sockets"]["detail"]


def test_doctor_on_groups(
    quick_doctor: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFERD_GROUP", "no-such-group")
    assert "there is no group" in findings(capsys, 1)["group"]["detail"]
    monkeypatch.setenv("INFERD_GROUP", grp.getgrgid(os.getgid()).gr_name)
    assert findings(capsys, 0)["group"]["state"] == "ok"


def test_doctor_on_a_processor_without_avx2(
    quick_doctor: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if platform.machine() != "x86_64":
        pytest.skip("other processors have no AVX2")
    (quick_doctor / "cpuinfo").write_text("flags\t\t: fpu sse2 avx\n")
    monkeypatch.setattr(doctor, "CPUINFO", quick_doctor / "cpuinfo")
    assert "AVX2" in findings(capsys, 0)["processor"]["detail"]
    (quick_doctor / "cpuinfo").write_text("flags\t\t: fpu sse2 avx avx2\n")
    assert findings(capsys, 0)["processor"]["state"] == "ok"


def test_doctor_on_open_files_that_the_daemon_can_raise(
    quick_doctor: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (500, usual[1]))
    try:
        assert findings(capsys, 0)["open files"]["state"] == "ok"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, usual)


def test_doctor_on_few_open_files(home: Path) -> None:
    source = str(Path(doctor.__file__).parents[2])
    environment = {**os.environ, "HOME": str(home), "PYTHONPATH": source}
    command = ["sh", "-c", f"ulimit -n 500 && exec {sys.executable} -m inferd doctor --json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found = {check["name"]: check for check in json.loads(done.stdout)["checks"]}["open files"]
    assert found["state"] == "warn"
    assert found["detail"] == "a process may have 500 open files; 1024 connections need 1280"


def test_doctor_on_a_home_that_is_read_only(quick_doctor: Path) -> None:
    mount = f"mount -t tmpfs -o ro none {quick_doctor} && exec {sys.executable} -m inferd doctor --json"
    source = str(Path(doctor.__file__).parents[2])
    environment = {**os.environ, "HOME": str(quick_doctor), "PYTHONPATH": source}
    command = ["unshare", "--map-root-user", "--user", "--mount", "sh", "-c", mount]
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if not done.stdout:
        pytest.skip(f"this machine lets nobody mount: {done.stderr}")
    found = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    for name, variable in (("log directory", "INFERD_LOG_DIR"), ("model store", "MODELS_HOME")):
        assert "read-only" in found[name]["detail"]
        assert variable in found[name]["advice"]


def write_config(home: Path, **entry: str) -> None:
    (home / ".inferd").mkdir(exist_ok=True)
    (home / ".inferd" / "config.json").write_text(json.dumps({"backends": [{"name": "far", **entry}]}))


def test_doctor_on_a_remote_backend(
    quick_doctor: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        write_config(quick_doctor, kind="openai-compat", base_url=url, model="m")
        assert findings(capsys, 0)["backend far"]["state"] == "ok"
        # For the check this name is not a loopback address; the check only connects to it.
        monkeypatch.setattr(check_models, "_is_here", lambda url: False)
        assert "without a key" in findings(capsys, 0)["backend far"]["detail"]
        monkeypatch.setenv("OPENAI_API_KEY", "k")
        assert findings(capsys, 0)["backend far"]["state"] == "ok"
    assert "cannot be reached" in findings(capsys, 1)["backend far"]["detail"]


@cases(
    "url, here",
    [
        ("http://127.0.0.2:8080", True),
        ("http://[::1]", True),
        ("http://localhost", True),
        ("https://a.b", False),
    ],
)
def test_loopback_addresses_are_on_this_machine(url: str, here: bool) -> None:
    assert check_models._is_here(url) is here


def test_doctor_on_bedrock(
    quick_doctor: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        write_config(quick_doctor, kind="bedrock-invoke", region="r-1", model_id="m", endpoint=url)
        lacking = findings(capsys, 1)["config"]
        assert "AWS_ACCESS_KEY_ID" in lacking["detail"]
        assert lacking["advice"] == "set it where the daemon is started"
        monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", "t")
        assert findings(capsys, 0)["backend far"]["state"] == "ok"
        monkeypatch.setattr(check_models, "find_spec", lambda name: None)
        assert "botocore" in findings(capsys, 1)["backend far"]["detail"]
