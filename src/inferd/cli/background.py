"""Connects to the daemon, and starts a daemon in the background if none runs.

The lock ``start.lock`` serialises starts, so that two commands at the same time start only one daemon.
Whether a daemon runs is decided by the daemon's lock, never by a pid or by a socket file.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from inferd.cli import differences
from inferd.cli.options import Target
from inferd.cli.say import say
from inferd.client import AdminClient, Client
from inferd.client.address import Surface
from inferd.client.admin import Frame
from inferd.config.entries import LlamaCppEntry, ModelSpec
from inferd.config.kinds import FilePath
from inferd.config.settings import DEFAULT_MODEL, OPTIONS, Settings
from inferd.errors import BootFailed, ConnectionLost, DaemonUnreachable, StoreError, SurfaceNotServed
from inferd.log.text import BACKGROUND_NAME
from inferd.store.runtime import Lock, ensure_private_dir, is_held

IDLE_EXIT_SECS = 900
"""A daemon that was started in the background stops by itself after this time without a client."""

POLL_SECS = 0.05
LAST_WORDS_SECS = 10.0
"""How long to wait for the exit of a daemon that has closed its admin socket. Such a daemon soon writes
its last line and exits."""

ROUNDS = 3
"""The number of attempts to connect. Several are needed, since a daemon that is stopping may exit before this
command connects."""


_NOT_SERVED: dict[Surface, str] = {
    "v1": "the daemon that runs serves text at another address; give it by `--address` or INFERD_ADDRESS",
    "v2": "the daemon does not serve v2, which attachments and tools need; start it with `inferd serve --v2`",
    "embed": "no daemon serves embeddings; stop the one that runs, if any, and start one with an embedding"
    " model: `inferd serve --embed --model-path FILE.gguf`",
    "rerank": "no daemon ranks documents; stop the one that runs, if any, and start one with a reranking"
    " model: `inferd serve --rerank --model-path FILE.gguf`",
}


def connect(
    client: Client,
    target: Target,
    show: Callable[[Frame], None],
    *,
    compare: bool = True,
    model: str | None = None,
) -> None:
    """Connects the client, and starts a daemon if none runs. Calls ``show`` with each status frame of the
    daemon's boot. ``model`` is the model that the client is going to name in its requests.

    With ``compare``, warns if a daemon that already ran has settings that differ from those in the
    environment and config file of this command.
    """
    started = False
    for _ in range(ROUNDS):
        try:
            client.connect(surface=target.surface)
            if target.startable and compare and not started:
                differences.tell(target.settings)
            return
        except DaemonUnreachable:
            if not target.startable:
                raise
        if not (target.surface in target.settings.surfaces or is_held(target.settings.lock)):
            break
        started = True
        _wait_for_boot(target.settings, model, show)
    try:
        client.connect(surface=target.surface)
    except DaemonUnreachable:
        if target.address.startswith("tcp://") or Path(target.address).exists():
            raise
        if target.surface == "v1" and not is_held(target.settings.lock):
            raise
        raise SurfaceNotServed(
            f"{_NOT_SERVED[target.surface]} (there is no socket at {target.address})"
        ) from None


def log_path(settings: Settings) -> Path:
    """Returns the path of the file for the stdout and stderr of a background daemon."""
    return settings.log_dir / BACKGROUND_NAME


def _wait_for_boot(settings: Settings, model: str | None, show: Callable[[Frame], None]) -> None:
    ensure_private_dir(settings.lock.parent)
    with Lock.wait(settings.lock.parent / "start.lock", threading.Event(), lambda: None):
        admin, child = _booting_daemon(settings, model)
    draining = False

    def watch(frame: Frame) -> None:
        nonlocal draining
        draining = frame["status"] == "draining"
        show(frame)

    with admin:
        try:
            admin.wait_ready(watch)
        except KeyboardInterrupt:
            say(
                "\nthe daemon keeps loading its model; `inferd watch` shows it, `inferd stop` ends it",
                err=True,
            )
            raise
        except ConnectionLost:
            if not draining:
                raise BootFailed(_why(settings, child)) from None
        finally:
            if child is not None and child.returncode is None:
                child.returncode = 0  # the daemon outlives this command; Popen would warn of this


def _why(settings: Settings, child: subprocess.Popen[bytes] | None) -> str:
    """Returns the reason why a daemon ended, if the daemon could not report it on its admin socket."""
    if child is not None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(LAST_WORDS_SECS)
            return _last_words(settings)
    return f"the daemon ended while it was starting; the logs in {settings.log_dir} may say why"


def _booting_daemon(
    settings: Settings, model: str | None = None
) -> tuple[AdminClient, subprocess.Popen[bytes] | None]:
    """Returns a client of the daemon's admin socket. Also returns the daemon's process, if this function
    started it."""
    child: subprocess.Popen[bytes] | None = None
    while True:
        with contextlib.suppress(DaemonUnreachable):
            return AdminClient(settings.admin_addr), child
        held = is_held(settings.lock)
        if child is not None and child.poll() is not None:
            if not held:
                raise BootFailed(_last_words(settings))
            child = None
        if child is None and not held:
            child = _start(settings, model)
        time.sleep(POLL_SECS)


def _start(settings: Settings, model: str | None = None) -> subprocess.Popen[bytes]:
    path = log_path(settings)
    ensure_private_dir(path.parent)
    with contextlib.suppress(FileNotFoundError):
        path.replace(path.with_suffix(".log.1"))  # the file may contain the reason why the last daemon ended
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    output = os.open(path, flags, 0o600)
    command = [sys.executable, "-m", "inferd", "serve"]
    if "INFERD_IDLE_EXIT_SECS" not in os.environ:
        command += ["--idle-exit-secs", str(IDLE_EXIT_SECS)]
    if model is not None and _replaces_default(settings, model):
        command += ["--model", model]
    try:
        return subprocess.Popen(  # noqa: S603
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env=_absolute(os.environ),
            start_new_session=True,
        )
    finally:
        os.close(output)


def _replaces_default(settings: Settings, model: str) -> bool:
    """Whether a new daemon should serve ``model`` instead of the default model, because only ``model`` is in
    the store. Otherwise the daemon would first download the default model."""
    from inferd.store.fetch import resolve
    from inferd.store.models import ModelStore

    store = ModelStore(settings.models_home)

    def is_stored(spec: ModelSpec) -> bool:
        try:
            return store.blob_size(resolve(store, spec).sha256) is not None
        except StoreError:
            return False

    default = ModelSpec(name=DEFAULT_MODEL)
    served = [entry.model if isinstance(entry, LlamaCppEntry) else None for entry in settings.backends]
    return served == [default] and not is_stored(default) and is_stored(ModelSpec(name=model))


def _absolute(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment with absolute paths, for a process in another directory."""
    names = ["INFERD_CONFIG", *(option.env for option in OPTIONS if isinstance(option.kind, FilePath))]
    given = {name: Path(environment[name]).expanduser() for name in names if name and environment.get(name)}
    return {**environment, **{name: str(Path.cwd() / path) for name, path in given.items()}}


def _last_words(settings: Settings) -> str:
    """Returns the last line of the daemon's stderr."""
    try:
        lines = log_path(settings).read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        lines = []
    said = [line for line in lines if line.strip()]
    if not said:
        return f"the daemon ended at once and said nothing; see {log_path(settings)}"
    return said[-1].removeprefix("inferd: ")
