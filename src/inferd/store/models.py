"""The model store: blobs by content, manifests by name, on a file system that other tools may share.

::

    HOME/blobs/sha256/AA/HASH/data            a model file, AA the first two hex digits of its sha256
    HOME/blobs/sha256/AA/HASH/verified.json   size, mtime and inode that it had when it was last hashed
    HOME/blobs/sha256/AA/HASH/produced_by     there when inferd put the file there
    HOME/blobs/sha256/AA/.partial-HASH/       what a fetch is writing
    HOME/manifests/NAME.json                  which blob a name means, and where it came from
    HOME/locks/NAME.lock, .HASH.lock          held while a name or a blob is being written
    HOME/locks/quarantine/                    files whose content was not what their name said

Everything appears whole or not at all: written beside its place, synced, renamed, and the directory synced;
a blob before the manifest that names it. No name from outside becomes a path before :func:`check_name` or
:func:`check_sha256` has passed it (F-21). Nothing is deleted that this package did not write.
"""

from __future__ import annotations

import hmac
import os
import re
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import msgspec

from inferd import log
from inferd.errors import StoreError
from inferd.store.runtime import explained

_log = log.get("store")

SCHEMA_VERSION = 1
PRODUCER = "inferd"
MAX_NAME_BYTES = 200  # leaves room for ".NAME.json.tmp" in the 255 bytes of a file name
MAX_MANIFEST_BYTES = 1 << 20

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding a file of the store raises when another tool, or chance, has written it."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


def check_name(name: str) -> str:
    """``name`` if it can be a file's name in the store; StoreError otherwise."""
    if (
        not name
        or name.startswith(".")
        or not name.isprintable()
        or "/" in name
        or "\\" in name
        or len(name.encode()) > MAX_NAME_BYTES
    ):
        raise StoreError(
            f"{name!r} cannot be a model's name; use up to {MAX_NAME_BYTES} printable characters, "
            "no slash or backslash, and no dot at the start"
        )
    return name


def check_sha256(digest: str) -> str:
    """``digest`` in lower case if it is a sha256 in hex; StoreError otherwise."""
    if not _SHA256.fullmatch(digest.lower()):
        raise StoreError(f"{digest!r} is not a sha256; it must be 64 hex digits")
    return digest.lower()


def same_digest(expected: str, actual: str) -> bool:
    """Constant-time comparison of two hex digests (F-5)."""
    return hmac.compare_digest(expected.encode(), actual.encode())


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """Where a blob came from."""

    registry: str
    repo: str = ""
    revision: str = ""
    filename: str = ""

    @property
    def text(self) -> str:
        """The source as :func:`inferd.store.sources.parse` takes it; empty when the registry is not known."""
        forms = {
            "https": f"https://{self.repo}/{self.filename}",
            "hf": f"hf:{self.repo}/{self.filename}@{self.revision}",
            "pypi": f"pypi:{self.repo}=={self.revision}/{self.filename}",
            "file": f"file:{self.filename}",
        }
        return forms.get(self.registry, "")


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A further file of a split model, or its projector."""

    blob: str
    size_bytes: int
    source: Provenance | None = None

    @property
    def sha256(self) -> str:
        return self.blob.removeprefix("sha256:")


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """``manifests/NAME.json``. ``blob`` is ``sha256:HEX``, ``produced_at`` RFC 3339 in UTC."""

    schema_version: int = SCHEMA_VERSION
    name: str
    format: str = "gguf"
    blob: str
    size_bytes: int
    license: str | None = None
    source: Provenance | None = None
    produced_by: str = ""
    produced_at: str = ""
    parts: tuple[Part, ...] = ()
    projector: Part | None = None

    @property
    def sha256(self) -> str:
        """The blob's digest in hex; the first file's of a split model."""
        return self.blob.removeprefix("sha256:")

    @property
    def digests(self) -> tuple[str, ...]:
        """The digests of all its files."""
        return (self.sha256, *(part.sha256 for part in self.further))

    @property
    def further(self) -> tuple[Part, ...]:
        """Its files but the first."""
        return self.parts if self.projector is None else (*self.parts, self.projector)

    @property
    def whole_bytes(self) -> int:
        return self.size_bytes + sum(part.size_bytes for part in self.further)


class Stamp(msgspec.Struct, frozen=True, kw_only=True):
    """What a blob looked like right after its hash was found to be right."""

    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, found: os.stat_result) -> Stamp:
        return cls(size=found.st_size, mtime_ns=found.st_mtime_ns, inode=found.st_ino)


class ModelStore:
    """The store in the directory ``home``, which is made when something is first written."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def __repr__(self) -> str:
        return f"ModelStore({str(self.home)!r})"

    # Places.

    def blob_path(self, sha256: str) -> Path:
        """Where the blob is, or would be."""
        digest = check_sha256(sha256)
        return self.home / "blobs" / "sha256" / digest[:2] / digest / "data"

    def partial_dir(self, sha256: str) -> Path:
        """The directory of a fetch of that blob."""
        digest = check_sha256(sha256)
        return self.home / "blobs" / "sha256" / digest[:2] / f".partial-{digest}"

    def manifest_path(self, name: str) -> Path:
        """Where the manifest is, or would be."""
        return self.home / "manifests" / f"{check_name(name)}.json"

    def name_lock(self, name: str) -> Path:
        """The lock to hold while ``name`` is fetched."""
        return self.home / "locks" / f"{check_name(name)}.lock"

    def blob_lock(self, sha256: str) -> Path:
        """The lock to hold while the blob is written; two names may mean one blob."""
        return self.home / "locks" / f".{check_sha256(sha256)}.lock"

    # Manifests.

    def manifest(self, name: str) -> Manifest | None:
        """The manifest of ``name``, ``None`` when there is none; StoreError when it cannot be read."""
        path = self.manifest_path(name)
        try:
            with path.open("rb") as file:
                manifest = msgspec.json.decode(file.read(MAX_MANIFEST_BYTES), type=Manifest)
            for digest in manifest.digests:
                check_sha256(digest)
            if manifest.schema_version != SCHEMA_VERSION:
                raise StoreError(f"schema version {manifest.schema_version} is not {SCHEMA_VERSION}")
            if manifest.name != name:
                raise StoreError(f"it is about {manifest.name!r}")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise StoreError(f"cannot read the manifest {path}: {error.strerror}") from error
        except (*UNREADABLE, StoreError) as error:
            raise StoreError(
                f"the manifest {path} cannot be used ({error}); run `inferd pull {name}` to write it again"
            ) from error
        return manifest

    def list(self) -> Sequence[Manifest]:
        """Every manifest that can be read, by name; the others are named in the log."""
        found = []
        for name, manifest in self._manifests():
            if isinstance(manifest, StoreError):
                _log.warn("manifest_unusable", model=name, reason=manifest)
            else:
                found.append(manifest)
        return sorted(found, key=lambda manifest: manifest.name)

    def names_of(self, sha256: str) -> Sequence[str]:
        """The names that mean the blob, or may mean it, since their manifest cannot be read."""
        return sorted(
            name
            for name, manifest in self._manifests()
            if isinstance(manifest, StoreError) or sha256 in manifest.digests
        )

    def _manifests(self) -> Iterator[tuple[str, Manifest | StoreError]]:
        for path in (self.home / "manifests").glob("[!.]*.json"):
            name = path.name.removesuffix(".json")
            try:
                manifest = self.manifest(name)
            except StoreError as error:
                yield name, error
            else:
                if manifest is not None:
                    yield name, manifest

    def write_manifest(self, manifest: Manifest) -> None:
        """Write ``manifest`` durably; its blob must be in place. The name's lock is held by the caller."""
        path = self.manifest_path(manifest.name)
        with self.writing():
            make_dirs(path.parent)
            fields = msgspec.to_builtins(manifest)
            for further in ("parts", "projector"):  # only where there are any, as other tools know the format
                if not fields[further]:
                    del fields[further]
            write_whole(path, msgspec.json.format(msgspec.json.encode(fields), indent=2) + b"\n")

    def remove_manifest(self, name: str) -> None:
        """Forget ``name`` durably. Its lock is held by the caller, and nothing has to be there."""
        path = self.manifest_path(name)
        with self.writing():
            path.unlink(missing_ok=True)
            if path.parent.is_dir():
                sync_dir(path.parent)

    # Blobs.

    def blob_size(self, sha256: str) -> int | None:
        """The size of the blob's file, ``None`` when there is none."""
        path = self.blob_path(sha256)
        absent = suppress(FileNotFoundError, NotADirectoryError)
        with explained(f"look into the model store at {self.home}"), absent:
            return path.lstat().st_size
        return None

    def is_blob(self, sha256: str, fd: int) -> bool:
        """Whether the open file ``fd`` is what lies in the blob's place now."""
        with suppress(OSError):
            return os.path.samestat(self.blob_path(sha256).lstat(), os.fstat(fd))
        return False

    def install(self, sha256: str, data: Path) -> None:
        """Move the finished, synced file ``data`` to the blob's place."""
        path = self.blob_path(sha256)
        with self.writing():
            make_dirs(path.parent)
            write_whole(path.with_name("produced_by"), PRODUCER.encode() + b"\n")
            data.replace(path)
            sync_dir(path.parent)

    def remove_blob(self, sha256: str) -> int:
        """Delete the blob and what was noted of it; the bytes it had. Its lock is held by the caller."""
        path = self.blob_path(sha256)
        size = self.blob_size(sha256) or 0
        with self.writing():
            for name in (path.name, "verified.json", ".verified.json.tmp", ".produced_by.tmp", "produced_by"):
                path.with_name(name).unlink(missing_ok=True)
            with suppress(OSError):  # another tool keeps something of its own there
                path.parent.rmdir()
        return size

    def is_stamped(self, sha256: str, found: os.stat_result) -> bool:
        """Whether a file that looks like ``found`` was verified before and only we could have changed it."""
        path = self.blob_path(sha256)
        with suppress(OSError, *UNREADABLE):
            stamp = msgspec.json.decode(path.with_name("verified.json").read_bytes(), type=Stamp)
            return stamp == Stamp.of(found) and _only_ours(found) and self._is_private(path.parent)
        return False

    def write_stamp(self, sha256: str, found: os.stat_result) -> None:
        """Remember that the file was verified; a store that cannot be written is verified again next time."""
        try:
            data = msgspec.json.encode(Stamp.of(found)) + b"\n"
            write_whole(self.blob_path(sha256).with_name("verified.json"), data)
        except OSError as error:
            _log.debug("stamp_not_written", sha256=sha256, reason=error)

    def _is_private(self, directory: Path) -> bool:
        """Whether only this user can write to ``directory`` or move it, up to the store's home."""
        inside = [directory, *(parent for parent in directory.parents if parent.is_relative_to(self.home))]
        return all(_only_ours(path.stat()) for path in inside)

    def quarantine(self, path: Path) -> Path:
        """Move a file with wrong content out of the way; the new place."""
        directory = self.home / "locks" / "quarantine"
        moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        with self.writing():
            make_dirs(directory)
            number = 0
            while True:
                place = directory / f"{moment}-sha-mismatch{f'-{number}' if number else ''}.bin"
                try:
                    place.touch(0o600, exist_ok=False)  # reserves the name against other processes
                    break
                except FileExistsError:
                    number += 1
            path.replace(place)
            sync_dir(directory)
        return place

    def writing(self) -> AbstractContextManager[None]:
        """Context of every write: its errors say that the store cannot be written and what to do."""
        return explained(
            f"write the model store at {self.home}",
            "make it writable, free some space on it, or set MODELS_HOME to another directory",
        )


def _only_ours(found: os.stat_result) -> bool:
    return found.st_uid in (0, os.getuid()) and not stat.S_IMODE(found.st_mode) & 0o022


def make_dirs(path: Path) -> None:
    """Create ``path`` and its parents so that they are still there after a power cut."""
    if not path.is_dir():
        make_dirs(path.parent)
        path.mkdir(mode=0o755, exist_ok=True)
        sync_dir(path.parent)


def sync_dir(path: Path) -> None:
    """Make the directory's entries durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_whole(path: Path, data: bytes) -> None:
    """Replace the file at ``path`` durably; readers see the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o644)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(fd)
    temporary.replace(path)
    sync_dir(path.parent)
