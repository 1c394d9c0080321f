"""The options for limits, for the model store and for logging."""

from __future__ import annotations

from pathlib import Path

from inferd.config import paths
from inferd.config.kinds import Boolean, Choice, FilePath, LogLevel
from inferd.config.numbers import Integer, Seconds
from inferd.config.option import option

_LIMITS, _STORE, _LOG = "Limits", "Store", "Log"

OTHER_DESCRIPTORS = 256
"""Descriptors besides client connections: models, sockets, logs, and connections to servers."""


class LimitOptions:
    """A part of the option table. See :class:`inferd.config.settings.Settings`."""

    active_permits: int = option(
        _LIMITS,
        Integer(0, 1_000_000),
        4,
        "The maximum number of requests that one model serves at the same time. 0 counts as 1. A local "
        "model serves at most 256 requests at once.",
        key="engine.active_permits",
        reload=True,
    )
    queue_depth: int = option(
        _LIMITS,
        Integer(0, 1_000_000),
        10,
        "The maximum number of requests that wait for one model. A further request is refused.",
        key="engine.queue_depth",
        reload=True,
    )
    spill_after_ms: int = option(
        _LIMITS,
        Integer(0, 3_600_000),
        500,
        "For a pool of backends that serve the same model (docs/scale.md): the longest time in milliseconds "
        "that a request waits for the local backend. If the expected or the actual wait is longer, the "
        "request goes to a remote backend. With 0, no request waits for the local backend.",
        key="engine.spill_after_ms",
        reload=True,
    )
    ready_timeout_secs: float = option(
        _LIMITS,
        Seconds(),
        30.0,
        "The time in which a new backend must become ready. If a backend is not ready after this time, the "
        "start or the reload of the daemon fails. With 0, the daemon checks only once.",
        reload=True,
    )
    drain_timeout_secs: float = option(
        _LIMITS,
        Seconds(),
        10.0,
        "When the daemon stops, the running and the waiting requests may finish within this time.",
        reload=True,
    )
    write_timeout_secs: float = option(
        _LIMITS,
        Seconds(),
        60.0,
        "The time that a slow client has to read its output. The time starts when more than 64 KiB of "
        "output wait for the client, and stops when at most 16 KiB are left. When the time is up, the "
        "daemon closes the connection. When the daemon closes a connection for any other reason, the daemon "
        "first lets the client read the remaining output, for at most this time. 0 means no limit.",
        key="limits.write_timeout_secs",
        reload=True,
    )
    idle_timeout_secs: float = option(
        _LIMITS,
        Seconds(),
        0.0,
        "The daemon closes a connection after this time without a request. 0 means no limit.",
        key="limits.idle_timeout_secs",
        reload=True,
    )
    idle_exit_secs: float = option(
        _LIMITS,
        Seconds(),
        0.0,
        "The daemon stops after this time without a connected client. With 0, the daemon never stops by "
        "itself.",
        reload=True,
    )
    max_frame_bytes: int = option(
        _LIMITS,
        Integer(1024, 64 * 1024 * 1024),
        65536,
        "The maximum length of a request line, in bytes.",
        key="limits.max_frame_bytes",
        reload=True,
    )
    max_attachment_bytes: int = option(
        _LIMITS,
        Integer(1024, 128 * 1024 * 1024),
        64 * 1024 * 1024,
        "The maximum size of one attachment, in bytes.",
        key="limits.max_attachment_bytes",
        reload=True,
    )
    max_input_memory_bytes: int = option(
        _LIMITS,
        Integer(1024, 2**40),
        384 * 1024 * 1024,
        "The maximum memory in bytes for the attachments and long lines of all requests together. A request "
        "that would exceed this maximum is refused. A user who already holds a part of this memory may in "
        "total hold at most half of the memory that the other users leave. A request that would exceed this "
        "share is refused, too.",
        key="limits.max_input_memory_bytes",
        reload=True,
    )
    memory_budget_bytes: int = option(
        _LIMITS,
        Integer(0, 2**48),
        0,
        "The maximum memory in bytes for all local models together. To load a model that a request names, "
        "the daemon may unload idle models; if the model does not fit even then, the request is refused. 0 "
        "means four fifths of the memory that is available at the time of the load.",
        key="limits.memory_budget_bytes",
        reload=True,
    )
    gpu_memory_budget_bytes: int = option(
        _LIMITS,
        Integer(0, 2**48),
        0,
        "The maximum memory in bytes for all models together on each GPU. To load a model, the daemon may "
        "unload idle models from the GPU, as for memory_budget_bytes. 0 means four fifths of the sum of the "
        "free memory and the memory that models take, at the time of the load. With 0, a model of the "
        "configuration may take all the free memory.",
        key="limits.gpu_memory_budget_bytes",
        reload=True,
    )
    engine_memory_factor: int = option(
        _LIMITS,
        Integer(0, 1000),
        2,
        "Limits the memory of a model's process on Linux, if the process uses no GPU. The limit is the "
        "memory that inferd estimates from the model file, times this factor. Memory for threads and caches "
        "is added to the result. 0 means no limit.",
        key="limits.engine_memory_factor",
        reload=True,
    )
    keep_alive_secs: float = option(
        _LIMITS,
        Seconds(),
        900.0,
        "A model that was loaded for a request is unloaded after this time without a request. With 0, such "
        "a model stays loaded until another model needs its memory. A model of the configuration always "
        "stays loaded, unless its config entry has `preload` false.",
        key="limits.keep_alive_secs",
        reload=True,
    )
    keep_alive_max_secs: float = option(
        _LIMITS,
        Seconds(),
        86400.0,
        "The maximum `keep_alive` that a request may set. Requests of root and of the user who runs the "
        "daemon have no maximum.",
        key="limits.keep_alive_max_secs",
        reload=True,
    )
    max_connections: int = option(
        _LIMITS,
        Integer(1, 1_000_000),
        1024,
        "The maximum number of open connections. A further connection is closed at once.",
        key="limits.max_connections",
        reload=True,
    )
    max_connections_per_uid: int = option(
        _LIMITS,
        Integer(0, 1_000_000),
        0,
        "The maximum number of open connections of one user or, over TCP, of one host. A further connection"
        " is closed at once. 0 means no limit.",
        key="limits.max_connections_per_uid",
        reload=True,
    )
    auto_pull: bool = option(
        _STORE,
        Boolean(),
        True,
        "Download a configured model that is not in the store.",
        key="auto_pull",
        reload=True,
    )
    models_home: Path = option(
        _STORE,
        FilePath(),
        paths.models_home,
        "The directory of the model store.",
        env=None,
        key="models_home",
        default_doc="`$MODELS_HOME`, else `$XDG_DATA_HOME/models`, else `~/.local/share/models`"
        " (macOS: `~/Library/Application Support/models`)",
        reload=True,
    )
    verify: str = option(
        _STORE,
        Choice(("auto", "always")),
        "auto",
        "When the daemon checks the hash of a stored model. `always`: at every load. `auto`: if the file "
        "may have changed.",
        reload=True,
    )
    log_level: str = option(
        _LOG,
        LogLevel(),
        "info",
        "Events below this level are not logged.",
        env="INFERD_LOG",
        key="log_level",
        reload=True,
    )
    log_dir: Path = option(
        _LOG,
        FilePath(),
        paths.log_dir,
        "The directory of the activity log.",
        default_doc="`~/.inferd/logs`",
    )
    core_dumps: bool = option(
        _LOG,
        Boolean(),
        False,
        "Allow debuggers of the same user, and core dumps. A core dump contains prompts and answers.",
        key="core_dumps",
    )
