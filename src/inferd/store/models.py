"""The model store on disk: model files (blobs) named by their hash, and manifests named by the model. Other
programs may use the same store.

::

    HOME/blobs/sha256/AA/HASH/data            a model file, AA the first two hex digits of its sha256
    HOME/blobs/sha256/AA/HASH/verified.json   the file's size, mtime and inode at its last verification
    HOME/blobs/sha256/AA/HASH/produced_by     marks a file that inferd installed
    HOME/blobs/sha256/AA/.partial-HASH/       a download in progress
    HOME/manifests/NAME.json                  the blobs of the model NAME, and their sources
    HOME/locks/NAME.lock, .HASH.lock          held while a model or a blob is written or removed
    HOME/locks/quarantine/                    files with the wrong content

Every write is atomic: a temporary file is written, synced and renamed, and then the directory is synced. A
blob is written before the manifest that names the blob. :func:`check_name` or :func:`check_sha256` validates
every name from outside before the name becomes part of a path (F-21 in SECURITY.md). Only
:func:`inferd.store.upkeep.remove` deletes files that inferd did not write.
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
"""The errors of decoding a damaged file, or a file that another program wrote."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


def check_name(name: str) -> str:
    """Returns ``name`` if ``name`` is valid as a file name in the store, or else raises StoreError."""
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
    """Returns ``digest`` in lower case if ``digest`` is a sha256 in hex, or else raises StoreError."""
    if not _SHA256.fullmatch(digest.lower()):
        raise StoreError(f"{digest!r} is not a sha256; it must be 64 hex digits")
    return digest.lower()


def same_digest(expected: str, actual: str) -> bool:
    """Compares two hex digests in constant time (F-5 in SECURITY.md)."""
    return hmac.compare_digest(expected.encode(), actual.encode())


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """The origin of a blob."""

    registry: str
    repo: str = ""
    revision: str = ""
    filename: str = ""

    @property
    def text(self) -> str:
        """The text that :func:`inferd.store.sources.parse` converts back to this source. The text is empty
        for an unknown registry."""
        forms = {
            "https": f"https://{self.repo}/{self.filename}",
            "hf": f"hf:{self.repo}/{self.filename}@{self.revision}",
            "pypi": f"pypi:{self.repo}=={self.revision}/{self.filename}",
            "file": f"file:{self.filename}",
        }
        return forms.get(self.registry, "")


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A further file of a model: a part of a split model, or the projector."""

    blob: str
    size_bytes: int
    source: Provenance | None = None

    @property
    def sha256(self) -> str:
        return self.blob.removeprefix("sha256:")


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The content of ``manifests/NAME.json``. ``blob``, ``size_bytes`` and ``source`` describe the model's
    first file. ``blob`` has the form ``sha256:HEX``. ``produced_at`` is a time in UTC in the form of RFC
    3339."""

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
        """The sha256 of the model's first file in hex."""
        return self.blob.removeprefix("sha256:")

    @property
    def digests(self) -> tuple[str, ...]:
        """The sha256 of every file of the model, the first file first."""
        return (self.sha256, *(part.sha256 for part in self.further))

    @property
    def further(self) -> tuple[Part, ...]:
        """All files of the model except the first."""
        return self.parts if self.projector is None else (*self.parts, self.projector)

    @property
    def whole_bytes(self) -> int:
        return self.size_bytes + sum(part.size_bytes for part in self.further)


class Stamp(msgspec.Struct, frozen=True, kw_only=True):
    """The attributes that a blob's file had when its hash was verified."""

    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, found: os.stat_result) -> Stamp:
        return cls(size=found.st_size, mtime_ns=found.st_mtime_ns, inode=found.st_ino)


class ModelStore:
    """The model store in the directory ``home``. The first write creates the directory."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def __repr__(self) -> str:
        return f"ModelStore({str(self.home)!r})"

    # Places.

    def blob_path(self, sha256: str) -> Path:
        """Returns the path of the blob. The file need not exist."""
        digest = check_sha256(sha256)
        return self.home / "blobs" / "sha256" / digest[:2] / digest / "data"

    def partial_dir(self, sha256: str) -> Path:
        """Returns the directory into which the blob is downloaded."""
        digest = check_sha256(sha256)
        return self.home / "blobs" / "sha256" / digest[:2] / f".partial-{digest}"

    def manifest_path(self, name: str) -> Path:
        """Returns the path of the manifest. The file need not exist."""
        return self.home / "manifests" / f"{check_name(name)}.json"

    def name_lock(self, name: str) -> Path:
        """Returns the path of the lock that a process holds while it fetches or removes the model
        ``name``."""
        return self.home / "locks" / f"{check_name(name)}.lock"

    def blob_lock(self, sha256: str) -> Path:
        """Returns the path of the lock that a process holds while it writes, removes or quarantines the blob.

        The lock of the model's name is not enough, since two names may refer to the same blob.
        """
        return self.home / "locks" / f".{check_sha256(sha256)}.lock"

    # Manifests.

    def manifest(self, name: str) -> Manifest | None:
        """Reads the manifest of ``name``. Returns ``None`` if there is no manifest. Raises StoreError if the
        manifest cannot be read."""
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
        """Returns all readable manifests, sorted by name. The unreadable manifests are logged."""
        found = []
        for name, manifest in self._manifests():
            if isinstance(manifest, StoreError):
                _log.warn("manifest_unusable", model=name, reason=manifest)
            else:
                found.append(manifest)
        return sorted(found, key=lambda manifest: manifest.name)

    def names_of(self, sha256: str) -> Sequence[str]:
        """Returns the names of the manifests that refer to the blob. Includes the names of unreadable
        manifests, since an unreadable manifest may refer to the blob."""
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
        """Writes ``manifest`` durably. The blobs of the manifest must already be in the store. The caller
        holds the name's lock."""
        path = self.manifest_path(manifest.name)
        with self.writing():
            make_dirs(path.parent)
            fields = msgspec.to_builtins(manifest)
            for further in ("parts", "projector"):  # omitted if empty: other tools read this format, too
                if not fields[further]:
                    del fields[further]
            write_whole(path, msgspec.json.format(msgspec.json.encode(fields), indent=2) + b"\n")

    def remove_manifest(self, name: str) -> None:
        """Removes the manifest of ``name`` durably, if the manifest exists. The caller holds the name's
        lock."""
        path = self.manifest_path(name)
        with self.writing():
            path.unlink(missing_ok=True)
            if path.parent.is_dir():
                sync_dir(path.parent)

    # Blobs.

    def blob_size(self, sha256: str) -> int | None:
        """Returns the size of the blob's file in bytes, or ``None`` if the file does not exist."""
        path = self.blob_path(sha256)
        absent = suppress(FileNotFoundError, NotADirectoryError)
        with explained(f"look into the model store at {self.home}"), absent:
            return path.lstat().st_size
        return None

    def is_blob(self, sha256: str, fd: int) -> bool:
        """Whether the open file ``fd`` is the file that is now at the blob's path."""
        with suppress(OSError):
            return os.path.samestat(self.blob_path(sha256).lstat(), os.fstat(fd))
        return False

    def install(self, sha256: str, data: Path) -> None:
        """Moves the file ``data`` to the blob's path. ``data`` must be complete and synced."""
        path = self.blob_path(sha256)
        with self.writing():
            make_dirs(path.parent)
            write_whole(path.with_name("produced_by"), PRODUCER.encode() + b"\n")
            data.replace(path)
            sync_dir(path.parent)

    def remove_blob(self, sha256: str) -> int:
        """Deletes the blob and its metadata. Returns the size of the blob in bytes.

        The caller holds the blob's lock.
        """
        path = self.blob_path(sha256)
        size = self.blob_size(sha256) or 0
        with self.writing():
            for name in (path.name, "verified.json", ".verified.json.tmp", ".produced_by.tmp", "produced_by"):
                path.with_name(name).unlink(missing_ok=True)
            with suppress(OSError):  # another tool may have files there
                path.parent.rmdir()
        return size

    def is_stamped(self, sha256: str, found: os.stat_result) -> bool:
        """Whether two conditions hold: the hash was verified when the blob's file had the attributes
        ``found``, and only this user and root can write to the file and its directories in the store."""
        path = self.blob_path(sha256)
        with suppress(OSError, *UNREADABLE):
            stamp = msgspec.json.decode(path.with_name("verified.json").read_bytes(), type=Stamp)
            return stamp == Stamp.of(found) and _only_ours(found) and self._is_private(path.parent)
        return False

    def write_stamp(self, sha256: str, found: os.stat_result) -> None:
        """Records that the blob's hash was verified when its file had the attributes ``found``.

        In a read-only store, records nothing, so the file is verified again when it is next opened.
        """
        try:
            data = msgspec.json.encode(Stamp.of(found)) + b"\n"
            write_whole(self.blob_path(sha256).with_name("verified.json"), data)
        except OSError as error:
            _log.debug("stamp_not_written", sha256=sha256, reason=error)

    def _is_private(self, directory: Path) -> bool:
        """Whether only this user and root can write to ``directory`` and to all its parents within
        the store."""
        inside = [directory, *(parent for parent in directory.parents if parent.is_relative_to(self.home))]
        return all(_only_ours(path.stat()) for path in inside)

    def quarantine(self, path: Path) -> Path:
        """Moves a file with a wrong hash to the directory ``locks/quarantine``. Returns the new path of the
        file."""
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
        """Returns a context manager for writes to the store. The context manager turns an OSError into a
        StoreError with advice."""
        return explained(
            f"write the model store at {self.home}",
            "make it writable, free some space on it, or set MODELS_HOME to another directory",
        )


def _only_ours(found: os.stat_result) -> bool:
    return found.st_uid in (0, os.getuid()) and not stat.S_IMODE(found.st_mode) & 0o022


def make_dirs(path: Path) -> None:
    """Creates ``path`` and its parents durably, so that they survive a power failure."""
    if not path.is_dir():
        make_dirs(path.parent)
        path.mkdir(mode=0o755, exist_ok=True)
        sync_dir(path.parent)


def sync_dir(path: Path) -> None:
    """Syncs a directory, so that files created or renamed in the directory survive a power failure."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_whole(path: Path, data: bytes) -> None:
    """Writes ``data`` to a new file, which atomically and durably replaces the file at ``path``."""
    temporary = path.with_name(f".{path.name}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o644)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(fd)
    temporary.replace(path)
    sync_dir(path.parent)
