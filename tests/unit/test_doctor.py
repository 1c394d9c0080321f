"""``inferd doctor``: each thing that can be wrong is found, and nothing is changed."""

from __future__ import annotations

import json
import os
import re
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from inferd import cli
from inferd.cli import doctor
from inferd.store.runtime import Lock


def findings(capsys: pytest.CaptureFixture[str], exit_code: int) -> dict[str, dict[str, str]]:
    assert cli.main(["doctor", "--json"]) == exit_code
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] == (exit_code == 0)
    broken = [check for check in report["checks"] if check["state"] == "fail"]
    assert all(check["advice"] or ";" in check["detail"] for check in broken)
    return {check["name"]: check for check in report["checks"]}


@pytest.fixture
def quick_doctor(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A doctor that does not load the engine."""
    monkeypatch.setattr(doctor, "_ENGINE_CODE", "print('[[], \"\", 1]')")
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


@pytest.mark.parametrize(
    ("code", "detail"),
    [
        ("import os; os.abort()", "crashed with SIGABRT"),
        ("raise ImportError('no such thing')", "cannot be loaded: ImportError: no such thing"),
        ("import time; time.sleep(60)", "did not load within"),
    ],
)
def test_doctor_survives_its_engine(
    code: str, detail: str, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_ENGINE_CODE", code)
    if "sleep" in code:
        monkeypatch.setattr(doctor, "ENGINE_SECS", 0.2)
    assert detail in findings(capsys, 1)["engine"]["detail"]


def test_doctor_on_the_accelerator(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_ENGINE_CODE", 'print(\'[[["cpu", "c", "C", 1]], "", 1]\')')
    monkeypatch.setenv("INFERD_REQUIRE_GPU", "1")
    assert findings(capsys, 1)["accelerator"]["state"] == "fail"
    code = 'print(\'[[["gpu", "g0", "Big", 1]], "", 1]\')'
    monkeypatch.setattr(doctor, "_ENGINE_CODE", code)
    assert findings(capsys, 0)["accelerator"]["detail"] == "g0 (Big)"


def test_doctor_finds_what_is_in_the_way(quick_doctor: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    assert findings(capsys, 0)["model"]["state"] == "ok"
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
