"""The commands of the model store."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from inferd import cli
from inferd.cli import check_places, loaded
from inferd.config import sources
from inferd.store import https
from inferd.store.models import ModelStore
from tests.demo_model import demo_model
from tests.shell import Shell, Terminal
from tests.tiny_model import CONTENT
from tests.tls_server import TlsServer, cut, status, tls_server, trusted

GGUF = b"GGUF" + CONTENT
DIGEST = hashlib.sha256(GGUF).hexdigest()

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Restores the signal handlers that a command has set."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(GGUF)
    return path


@pytest.fixture
def server(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TlsServer]:
    ca = trustme.CA()
    monkeypatch.setattr(https, "PAUSE_SECS", 0.001)
    with tls_server(GGUF, ca) as server:
        for name, value in {**trusted(ca, tmp_path), "HF_ENDPOINT": server.base}.items():
            monkeypatch.setenv(name, value)
        yield server


def run(*line: str, code: int = 0) -> None:
    assert cli.main(line) == code


def listed(capsys: Capture, name: str) -> dict[str, object]:
    capsys.readouterr()
    run("list", "--json")
    models = {model["name"]: model for model in json.loads(capsys.readouterr().out)["models"]}
    found: dict[str, object] = models[name]
    return found


def test_a_file_is_imported_and_removed(home: Path, file: Path, capsys: Capture) -> None:
    run("import", str(file), "--name", "mine", "--license", "MIT")
    path = ModelStore(home).blob_path(DIGEST)
    out, err = capsys.readouterr()
    assert out == f"mine is in the store and verified: {path}\n"
    assert "Copying the model …" in err.splitlines()
    row = listed(capsys, "mine")
    assert (row["stored"], row["license"], row["description"]) == (True, "MIT", f"file:{file}")
    run("verify")
    assert capsys.readouterr().out == "mine: ok, 16 kB\n"
    run("rm", "mine")
    assert capsys.readouterr().out == "mine is removed; 16 kB are free again\n"
    assert not path.exists()
    run("rm", "mine", code=1)
    assert "no model 'mine' is in the store" in capsys.readouterr().err


def test_a_relative_path_is_kept_as_an_absolute_one(
    home: Path, file: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(file.parent)
    run("import", file.name)
    assert listed(capsys, "tiny")["description"] == f"file:{file}"


def test_a_file_with_two_names_stays_for_the_second(home: Path, file: Path, capsys: Capture) -> None:
    run("import", str(file))
    run("import", str(file), "--name", "second")
    capsys.readouterr()
    run("rm", "tiny")
    assert capsys.readouterr().out == "tiny is removed; its file stays for second\n"


def test_verify_finds_damaged_files_and_continues(home: Path, file: Path, capsys: Capture) -> None:
    run("verify")
    assert capsys.readouterr().out == "no model is in the store\n"
    run("import", str(file), "--name", "bad")
    path = ModelStore(home).blob_path(DIGEST)
    file.write_bytes(GGUF + b"more")
    run("import", str(file), "--name", "good")
    path.write_bytes(GGUF[::-1])
    capsys.readouterr()
    run("verify", "bad", "nobody", "good", code=1)
    out, err = capsys.readouterr()
    assert out == "good: ok, 16 kB\n"
    assert re.search(
        r"^bad: model 'bad' has the sha256 .* the file was moved to .*-sha-mismatch\.bin", err, re.M
    )
    assert re.search(r"^nobody: no model 'nobody' in the catalogue or the store", err, re.M)
    run("verify", code=1)
    assert "bad: model 'bad' is missing from the store" in capsys.readouterr().err


def test_gc_shows_what_it_deletes(home: Path, file: Path, capsys: Capture) -> None:
    run("import", str(file))
    store = ModelStore(home)
    store.manifest_path("tiny").unlink()
    (home / "bad").write_bytes(bytes(2_000_000))
    place = store.quarantine(home / "bad")
    capsys.readouterr()
    blob = store.blob_path(DIGEST).parent
    run("gc", "--dry-run", "--quarantine")
    assert capsys.readouterr().out.splitlines() == [
        f"model without a name, 16 kB: {blob}",
        f"quarantined file, 2 MB: {place}",
        "2 MB would be free again",
    ]
    run("gc")
    assert capsys.readouterr().out.splitlines()[1:] == ["16 kB are free again"]
    assert not blob.exists()
    assert place.exists()


def test_pull_takes_a_file_of_the_hub(server: TlsServer, home: Path, capsys: Capture) -> None:
    store = ModelStore(home)
    server.plan = [status(200, X_Linked_Etag=f'"{DIGEST}"'), cut(100)]
    run("pull", "hf:org/repo/tiny.gguf@v1", "--license", "MIT")
    out, err = capsys.readouterr()
    assert out == f"tiny is in the store and verified: {store.blob_path(DIGEST)}\n"
    assert "Downloading the model, try 2 (peer closed connection" in err
    assert server.ranges == [None, None, "bytes=100-"]
    row = listed(capsys, "tiny")
    assert (row["license"], row["description"]) == ("MIT", "hf:org/repo/tiny.gguf@v1")


def test_pull_of_an_address_needs_a_hash(server: TlsServer, home: Path, capsys: Capture) -> None:
    run("pull", server.url, code=1)
    assert "give its sha256 with --sha256" in capsys.readouterr().err
    run("pull", server.url, "--sha256", DIGEST, "--name", "mine")
    assert listed(capsys, "mine")["stored"] is True


def test_list_shows_partial_downloads(home: Path, file: Path, capsys: Capture) -> None:
    run("import", str(file))
    ModelStore(home).blob_path(DIGEST).unlink()
    partial = ModelStore(home).partial_dir(DIGEST)
    partial.mkdir()
    (partial / "data.tmp").write_bytes(bytes(1_500_000))
    row = listed(capsys, "tiny")
    assert (row["stored"], row["downloaded_bytes"]) == (False, 1_500_000)
    run("list")
    assert re.search(r"tiny +2 MB of it +16 kB", capsys.readouterr().out)


def test_a_foreign_manifest_cannot_control_the_terminal(home: Path, capsys: Capture) -> None:
    manifest = {"name": "odd", "blob": f"sha256:{DIGEST}", "size_bytes": 1, "license": "\x1b[2J"}
    source = {"registry": "hf", "repo": "\x1b]0;x\x07", "filename": "f"}
    (home / "manifests").mkdir(parents=True)
    (home / "manifests" / "odd.json").write_text(json.dumps({**manifest, "source": source}))
    run("list")
    shown = capsys.readouterr().out
    assert "odd" in shown
    assert not set(shown) & set("\x1b\x07")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (
            ["pull", "smollm2", "--name", "x"],
            "--name, --sha256 and --license are for a source, not for a name",
        ),
        (["rm"], "see `inferd rm --help`"),
        (["import"], "see `inferd import --help`"),
    ],
)
def test_an_invalid_command_line(home: Path, capsys: Capture, line: list[str], reason: str) -> None:
    run(*line, code=2)
    assert reason in capsys.readouterr().err


def test_ctrl_c_ends_a_download_that_the_next_pull_resumes(server: TlsServer, short_dir: Path) -> None:
    """In a terminal, with the progress bar."""
    server.content = b"GGUF" + bytes(3_000_000)
    digest = hashlib.sha256(server.content).hexdigest()
    server.pause = 0.0005
    user = Shell(short_dir, **{name: os.environ[name] for name in ("SSL_CERT_FILE", "NO_PROXY", "no_proxy")})
    pull = ("pull", server.url, "--sha256", digest)
    with Terminal(user, *pull) as terminal:
        terminal.expect("Downloading the model")
        terminal.expect("MB/s")
        terminal.type("\x03")
        assert terminal.wait() == 130
    server.pause = 0
    assert user(*pull).returncode == 0
    assert re.fullmatch(r"bytes=\d+-", str(server.ranges[1]))


def test_import_of_a_file_that_cannot_be_read(home: Path, capsys: Capture) -> None:
    run("import", "/proc/self/mem", code=1)
    sentence = "inferd: cannot read the model file /proc/self/mem: Input/output error\n"
    assert capsys.readouterr().err.endswith(sentence)


def test_import_refuses_a_file_that_is_cut_short(home: Path, tmp_path: Path, capsys: Capture) -> None:
    whole = demo_model().read_bytes()
    path = tmp_path / "half.gguf"
    path.write_bytes(whole[: len(whole) // 2])
    run("import", str(path), code=1)
    assert f"{path} is cut short" in capsys.readouterr().err
    path.write_bytes(whole)
    run("import", str(path))


def test_ps_names_the_model_and_its_entry() -> None:
    row = {
        "name": "main",
        "running": 1,
        "waiting": 0,
        "n_ctx": 8,
        "device": "cpu",
        "pinned": True,
        "engine": None,
    }
    names = [loaded._loaded({**row, "model": model})[0] for model in ("m", "main", "")]
    assert names == ["m (main)", "main", "main"]


def test_doctor_accepts_a_store_that_this_user_only_reads(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readable = os.R_OK | os.X_OK
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).exists() and mode & readable == mode)
    settings = sources.read({}).settings

    def states() -> list[str]:
        found = (*check_places.model_store(settings), *check_places.log_directory(settings))
        return [finding.state for finding in found]

    assert states() == ["fail", "fail"]  # there is no store yet
    (settings.models_home / "blobs").mkdir()
    assert states() == ["warn", "fail"]
