"""Limits, the model store, and logging."""

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
    """Rows of :class:`inferd.config.settings.Settings`."""

    active_permits: int = option(
        _LIMITS,
        Integer(0, 1_000_000),
        4,
        "Requests that run at the same time; 0 counts as 1. A local model decodes at most 256 of them.",
        key="engine.active_permits",
        reload=True,
    )
    queue_depth: int = option(
        _LIMITS,
        Integer(0, 1_000_000),
        10,
        "Requests that may wait; the next one is refused.",
        key="engine.queue_depth",
        reload=True,
    )
    spill_after_ms: int = option(
        _LIMITS,
        Integer(0, 3_600_000),
        500,
        "The longest expected wait for a local model, in milliseconds; beyond it a request goes to a "
        "remote backend of the same pool. 0 does not wait.",
        key="engine.spill_after_ms",
        reload=True,
    )
    ready_timeout_secs: float = option(
        _LIMITS,
        Seconds(),
        30.0,
        "Time for a backend to become ready after it is built; with 0 it must be ready at once.",
        reload=True,
    )
    drain_timeout_secs: float = option(
        _LIMITS,
        Seconds(),
        10.0,
        "Time for requests to finish after a stop.",
        reload=True,
    )
    write_timeout_secs: float = option(
        _LIMITS,
        Seconds(),
        60.0,
        "Time for which a client may leave its answer unread before it is dropped; 0 sets no limit.",
        key="limits.write_timeout_secs",
        reload=True,
    )
    idle_timeout_secs: float = option(
        _LIMITS,
        Seconds(),
        0.0,
        "Time for which a connection may stay open without a request; 0 sets no limit.",
        key="limits.idle_timeout_secs",
        reload=True,
    )
    idle_exit_secs: float = option(
        _LIMITS,
        Seconds(),
        0.0,
        "Stop after this time without a connected client; 0 never stops.",
        reload=True,
    )
    max_frame_bytes: int = option(
        _LIMITS,
        Integer(1024, 64 * 1024 * 1024),
        65536,
        "The longest request line in bytes.",
        key="limits.max_frame_bytes",
        reload=True,
    )
    max_attachment_bytes: int = option(
        _LIMITS,
        Integer(1024, 128 * 1024 * 1024),
        64 * 1024 * 1024,
        "The largest attachment in bytes.",
        key="limits.max_attachment_bytes",
        reload=True,
    )
    max_input_memory_bytes: int = option(
        _LIMITS,
        Integer(1024, 2**40),
        384 * 1024 * 1024,
        "Memory for the attachments and long lines of all requests together, in bytes; a request "
        "beyond it is refused. One user may hold half of the memory that the others leave free.",
        key="limits.max_input_memory_bytes",
        reload=True,
    )
    memory_budget_bytes: int = option(
        _LIMITS,
        Integer(0, 2**48),
        0,
        "Memory for all local models together, in bytes. A model that a request names is loaded only "
        "if it fits after idle models are unloaded. 0 is four fifths of the memory available at the "
        "load.",
        key="limits.memory_budget_bytes",
        reload=True,
    )
    engine_memory_factor: int = option(
        _LIMITS,
        Integer(0, 1000),
        2,
        "Memory limit of the process of a model on a CPU, as a multiple of the estimate from its "
        "file, besides its threads and caches; 0 sets no limit.",
        key="limits.engine_memory_factor",
        reload=True,
    )
    keep_alive_secs: float = option(
        _LIMITS,
        Seconds(),
        900.0,
        "Time for which a model that was loaded for a request stays loaded after its last request; 0 "
        "keeps it until its memory is needed. The models of the configuration always stay.",
        key="limits.keep_alive_secs",
        reload=True,
    )
    keep_alive_max_secs: float = option(
        _LIMITS,
        Seconds(),
        86400.0,
        "The longest keep_alive that a request of another user than the daemon's may set.",
        key="limits.keep_alive_max_secs",
        reload=True,
    )
    max_connections: int = option(
        _LIMITS,
        Integer(1, 1_000_000),
        1024,
        "Connections that may be open; the next one is closed at once.",
        key="limits.max_connections",
        reload=True,
    )
    max_connections_per_uid: int = option(
        _LIMITS,
        Integer(0, 1_000_000),
        0,
        "Connections that one user may have open; the next one is closed at once. 0 sets no limit.",
        key="limits.max_connections_per_uid",
        reload=True,
    )
    auto_pull: bool = option(
        _STORE,
        Boolean(),
        True,
        "Download a model that is not in the store.",
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
        "When to hash a stored model again; auto hashes it only if the file may have changed.",
        reload=True,
    )
    log_level: str = option(
        _LOG,
        LogLevel(),
        "info",
        "The least severe level that is logged.",
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
        "Allow core dumps, which hold prompts and answers, and debuggers of the same user.",
        key="core_dumps",
    )
