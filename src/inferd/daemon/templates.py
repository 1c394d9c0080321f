"""What the chat templates of the models support: tools, and turning the model's thinking on and off.

llama.cpp finds this by running the template, which is untrusted, so an engine process does it in its sandbox.
Every load of a model does it. For a model that was not loaded yet, :func:`analyse` starts an engine process
that does nothing else. The findings are kept in a file. A finding is valid only for the same content of the
model file, the same template in the configuration, and the same version of inferd. A model whose analysis
failed is not analysed again. If the process was killed, only a later daemon analyses the model again. When
the model is loaded, the finding of the load replaces the failure.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import msgspec

from inferd import __version__, log
from inferd.config import paths
from inferd.daemon.state_files import look_of
from inferd.daemon.threads import in_thread
from inferd.engine.local.child.messages import Load, Template
from inferd.engine.local.child.process import EngineProcess, Patience
from inferd.errors import ConfigError, InferdError, StoreError
from inferd.progress import ignored
from inferd.store.models import UNREADABLE, ModelStore
from inferd.store.runtime import ensure_private_dir

MAX_TEMPLATE_BYTES = 1 << 20
MAX_FINDINGS = 1000
"""The file keeps the findings that were added last. A process keeps all that it has read or added."""
MAX_FILE_BYTES = 1 << 20
ANALYSIS_SECS = 300.0
"""The time limit for a process that neither computes nor ends. Its processor time has a far lower limit of
its own, which does not count the time in which a busy machine lets it wait."""
ANALYSIS_BYTES = 256 << 20
"""The memory for a vocabulary and a template, in addition to what every engine process may use."""
LOWEST_PRIORITY = 19

_log = log.get("models")


def read_template(path: Path | None) -> str:
    """Returns the chat template in a file, or an empty string without a file. Raises ConfigError."""
    if path is None:
        return ""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TEMPLATE_BYTES + 1)
        if len(data) > MAX_TEMPLATE_BYTES:
            raise ConfigError(f"the chat template {path} is larger than {MAX_TEMPLATE_BYTES} bytes")
        return data.decode()
    except OSError as error:
        raise ConfigError(f"cannot read the chat template {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"the chat template {path} is not UTF-8 text") from None


def key_of(store: ModelStore, fd: int, sha256: str | None, template: str) -> str:
    """Returns the key of the findings about the open model file ``fd``. If ``template`` is not empty, it is
    used instead of the file's own template. A ``sha256`` counts only if the store has verified this file."""
    verified = sha256 is not None and store.is_stamped(sha256, os.fstat(fd))
    file = sha256 if verified and sha256 is not None else look_of(fd)
    return f"{file} {hashlib.sha256(template.encode()).hexdigest()}" if template else file


@dataclass(frozen=True, slots=True)
class Source:
    """The origin of a model's template: the text ``template`` or, if this is empty, the ``file`` of the
    model. If the model is split, ``file`` is the first of its files. ``sha256`` is the digest of the file in
    the store."""

    name: str
    file: Path
    sha256: str | None = None
    template: str = ""

    @contextmanager
    def opened(self) -> Iterator[int]:
        """Yields the descriptor of the file. Raises OSError."""
        fd = os.open(self.file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            yield fd
        finally:
            os.close(fd)

    def key(self, store: ModelStore, fd: int) -> str:
        """Returns the key of the findings about this template. ``fd`` is the descriptor of the file."""
        return key_of(store, fd, self.sha256, self.template)


class Findings:
    """The findings in the file ``path``. ``None`` means that the analysis failed. Several daemons may share
    the file. If a daemon overwrites a finding that another daemon has added, the template is analysed again.
    All methods are thread-safe, and block."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._found: dict[str, Template | None] = {}
        self._passing: dict[str, Template | None] = {}
        """Failures that the templates did not cause. They are not written to the file."""

    def all(self) -> Mapping[str, Template | None]:
        """Returns all findings by their keys. If the file is damaged or was written by another version,
        returns only the findings of this process."""
        with self._lock:
            self._found = self._merged()
            return {**self._passing, **self._found}

    def add(self, key: str, template: Template | None, *, lasting: bool = True) -> None:
        """Adds a finding. If it is not ``lasting``, or if the file cannot be written, only this process
        remembers the finding."""
        with self._lock:
            if not lasting:
                self._passing[key] = template
                return
            before = self._merged()
            if key in before and before[key] == template:
                return
            self._found = {**before, key: template}
            try:
                self._write()
            except (OSError, StoreError) as error:
                _log.debug("findings_not_written", reason=error)

    def _merged(self) -> dict[str, Template | None]:
        """Returns the findings of this process and of the file, in the order in which they were added."""
        return {**self._found, **self._read(), **self._found}

    def _read(self) -> dict[str, Template | None]:
        try:
            with self._path.open("rb") as file:
                kept = msgspec.json.decode(file.read(MAX_FILE_BYTES), type=_File)
        except (OSError, *UNREADABLE):
            return {}
        return kept.templates if kept.version == __version__ else {}

    def _write(self) -> None:
        """Replaces the file atomically, but not durably: after a power failure, the templates are analysed
        again."""
        ensure_private_dir(self._path.parent)
        newest = dict([*self._found.items()][-MAX_FINDINGS:])
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
                file.write(msgspec.json.encode(_File(version=__version__, templates=newest)))
            temporary.replace(self._path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


class _File(msgspec.Struct, frozen=True, kw_only=True):
    version: str
    templates: dict[str, Template | None]


def findings() -> Findings:
    """Returns the findings of this user."""
    return _findings(paths.templates_path())


@lru_cache(maxsize=4)
def _findings(path: Path) -> Findings:
    return Findings(path)


async def analyse(
    source: Source, store: ModelStore, found: Findings, *, background: bool = False
) -> Template | None:
    """Analyses a template in an engine process of its own, unless there is a finding already. In the
    ``background``, the process has the lowest priority. Returns the finding, or ``None`` if the analysis
    failed. Raises OSError if the file cannot be opened, and ModelError if no process can be started.
    """
    with source.opened() as fd:
        key, known = await in_thread(lambda: (source.key(store, fd), found.all()))
        if key in known:
            return known[key]
        process = EngineProcess(f"template of {source.name}", lambda reason: None, Patience())
        try:
            if background:
                with suppress(OSError):  # it may have ended already
                    os.setpriority(os.PRIO_PROCESS, process.pid, LOWEST_PRIORITY)
            loading = process.load(analysis_of(source), [fd], ignored)
            template = (await asyncio.wait_for(loading, ANALYSIS_SECS)).template
        except (InferdError, asyncio.TimeoutError) as error:
            _log.warn("template_not_analysed", model=source.name, reason=error)
            template = None
        finally:
            process.kill("its template was to be analysed, and nothing else")  # it has nothing to save
            await process.close()
    lasting = template is not None or process.failed_itself
    await in_thread(lambda: found.add(key, template, lasting=lasting))
    return template


def analysis_of(source: Source) -> Load:
    """Returns the message that makes an engine process analyse a template."""
    return Load(
        name=source.name,
        model=source.name,
        path=str(source.file),
        chat_template=source.template,
        n_parallel=1,
        n_gpu_layers=0,
        cache_mib=0,
        memory_bytes=ANALYSIS_BYTES,
        log_level=log.level(),
        template_only=True,
    )


class Lookup:
    """Looks up findings for one listing, and collects the sources without a finding in ``missing``."""

    def __init__(self, store: ModelStore, found: Findings) -> None:
        self.store = store
        self.missing: dict[str, Source] = {}
        self._known = found.all()

    def finding(self, source: Source) -> Template | None:
        """Returns the finding about a template, or ``None`` if there is no finding or the analysis failed.
        Raises OSError."""
        with source.opened() as fd:
            key = source.key(self.store, fd)
        if key not in self._known:
            self.missing[key] = source
        return self._known.get(key)


class Analyses:
    """Analyses templates in the background, one at a time, with the lowest priority. All methods run on the
    event loop."""

    def __init__(self, found: Findings, *, closed: bool = False) -> None:
        self._found = found
        self._wanted: dict[str, Source] = {}
        self._work: asyncio.Task[None] | None = None
        self._closed = closed

    def want(self, lookup: Lookup) -> None:
        """Begins to analyse the sources for which ``lookup`` found nothing."""
        if self._closed:
            return
        self._wanted |= lookup.missing
        if self._wanted and self._work is None:
            self._work = asyncio.get_running_loop().create_task(self._analyse(lookup.store))

    async def _analyse(self, store: ModelStore) -> None:
        try:
            while self._wanted:
                source = self._wanted.pop(next(iter(self._wanted)))
                with suppress(InferdError, OSError):  # a later listing asks again
                    await analyse(source, store, self._found, background=True)
        finally:
            self._work = None

    async def close(self) -> None:
        """Stops a running analysis, which then gives no finding, and accepts no further sources."""
        self._closed = True
        if self._work is not None:
            self._work.cancel()
            await asyncio.wait((self._work,))
