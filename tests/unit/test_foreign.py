"""Models of Ollama, the hub's cache and LM Studio: imported without a copy, and verified."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from inferd import cli
from inferd.errors import HashMismatch, StoreError
from inferd.store import foreign
from inferd.store.models import ModelStore
from inferd.store.upkeep import collect, remove
from tests.tiny_model import CONTENT

GGUF = b"GGUF" + CONTENT
DIGEST = hashlib.sha256(GGUF).hexdigest()
EYES = b"GGUF" + CONTENT[::-1]

Capture = pytest.CaptureFixture[str]


def ollama(home: Path) -> Path:
    """Ollama's folder with the models ``tiny`` and ``tiny:see``, and an invalid manifest."""
    blobs, models = home / "blobs", home / "manifests" / "registry.ollama.ai" / "library"
    blobs.mkdir(parents=True)
    for content in (GGUF, EYES):
        (blobs / f"sha256-{hashlib.sha256(content).hexdigest()}").write_bytes(content)

    def layer(kind: str, digest: str) -> dict[str, str]:
        return {"mediaType": f"application/vnd.ollama.image.{kind}", "digest": f"sha256:{digest}"}

    main, template = layer("model", DIGEST), layer("template", "0" * 64)
    eyes = layer("projector", hashlib.sha256(EYES).hexdigest())
    (models / "tiny").mkdir(parents=True)
    for tag, layers in (("latest", [main, template]), ("see", [main, eyes])):
        (models / "tiny" / tag).write_text(json.dumps({"schemaVersion": 2, "layers": layers}))
    (models / "tiny" / "broken").write_bytes(b"{")
    return blobs / f"sha256-{DIGEST}"


def hub(home: Path) -> Path:
    """The hub's cache with one repository: its snapshot points to the blob."""
    repo = home / "models--org--repo"
    snapshot = repo / "snapshots" / ("c0ffee" + "0" * 34)
    (repo / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    blob = repo / "blobs" / DIGEST
    blob.write_bytes(GGUF)
    (snapshot / "Tiny Model.Q4_0.gguf").symlink_to(blob)
    (snapshot / "gone.gguf").symlink_to(repo / "blobs" / ("1" * 64))
    return blob


def lm_studio(home: Path) -> Path:
    folder = home / "org" / "repo"
    folder.mkdir(parents=True)
    (folder / "tiny.gguf").write_bytes(GGUF)
    (folder / "mmproj-tiny-f16.gguf").write_bytes(EYES)
    for number in (1, 2):
        (folder / f"half-0000{number}-of-00003.gguf").write_bytes(GGUF)
    return folder / "tiny.gguf"


def take(home: Path, *names: str) -> int:
    return cli.main(["import", "--from", "ollama", "--path", str(home / "other"), *names])


def store_of(capsys: Capture) -> ModelStore:
    capsys.readouterr()
    cli.main(["list", "--json"])
    return ModelStore(Path(json.loads(capsys.readouterr().out)["models_home"]))


@pytest.mark.parametrize(
    ("program", "make", "names"),
    [
        ("ollama", ollama, ["tiny", "tiny:see"]),
        ("hub", hub, ["Tiny-Model.Q4_0"]),
        ("lmstudio", lm_studio, ["tiny"]),
    ],
)
def test_a_model_is_taken_without_a_copy(
    program: str, make: Callable[[Path], Path], names: list[str], home: Path, capsys: Capture
) -> None:
    place = home / "other"
    original = make(place)
    arguments = ["import", "--from", program, "--path", str(place)]
    assert cli.main(arguments) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == names
    assert cli.main([*arguments, names[0]]) == 0
    store = store_of(capsys)
    blob = store.blob_path(DIGEST)
    assert blob.samefile(original)
    assert cli.main(["verify", names[0]]) == 0
    assert list(collect(store, quarantine=False, dry_run=False)) == []
    original.unlink()
    assert cli.main(["verify", names[0]]) == 0  # the other program may delete its own name of the file
    remove(store, names[0])
    assert not blob.exists()


def test_the_projector_comes_along(home: Path, capsys: Capture) -> None:
    ollama(home / "other")
    assert take(home, "--all") == 0
    manifest = store_of(capsys).manifest("tiny:see")
    assert manifest is not None
    assert manifest.projector is not None
    assert manifest.projector.sha256 == hashlib.sha256(EYES).hexdigest()


def test_a_damaged_file_is_refused_and_left_alone(home: Path, capsys: Capture) -> None:
    original = ollama(home / "other")
    original.write_bytes(GGUF[:-1] + b"x")
    assert take(home, "tiny") == HashMismatch.exit_code
    assert "it is damaged" in capsys.readouterr().err
    assert original.read_bytes()[-1:] == b"x"
    store = store_of(capsys)
    assert store.manifest("tiny") is None
    assert not store.partial_dir(DIGEST).exists()


def test_damage_that_comes_later_is_noticed(home: Path, capsys: Capture) -> None:
    original = ollama(home / "other")
    assert take(home, "tiny") == 0
    with original.open("r+b") as file:
        file.write(b"XXXX")
    capsys.readouterr()
    assert cli.main(["verify", "tiny"]) == 1
    assert "was moved to" in capsys.readouterr().err
    assert original.exists()  # only the store's own name of the file was taken away


def test_on_another_file_system_it_is_copied(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    original = ollama(home / "other")
    assert take(home, "tiny") == 0
    blob = store_of(capsys).blob_path(DIGEST)
    assert not blob.samefile(original)
    assert blob.read_bytes() == GGUF


def test_a_missing_folder_is_reported(home: Path, capsys: Capture) -> None:
    assert cli.main(["import", "--from", "ollama"]) == StoreError.exit_code
    assert "--path" in capsys.readouterr().err
    ollama(home / ".ollama" / "models")
    assert cli.main(["import", "--from", "ollama", "none"]) == StoreError.exit_code
    assert "has no model 'none'" in capsys.readouterr().err
    assert cli.main(["import"]) == 2


def test_the_folder_of_each_program(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}
    assert foreign.home_of("ollama", {**home, "OLLAMA_MODELS": "/m"}) == Path("/m")
    assert foreign.home_of("hub", {**home, "HF_HOME": "/h"}) == Path("/h/hub")
    assert foreign.home_of("hub", home) == tmp_path / ".cache" / "huggingface" / "hub"
    assert foreign.home_of("lmstudio", home) == tmp_path / ".lmstudio" / "models"
