"""The limit of open file descriptors."""

from __future__ import annotations

import contextlib
import resource

from inferd import log
from inferd.config.limit_options import OTHER_DESCRIPTORS

_log = log.get("daemon")


def raise_descriptor_limit(connections: int) -> None:
    """Raises the limit of open file descriptors as far as ``connections`` connections need, but at most to
    the system's maximum."""
    wanted = connections + OTHER_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        possible = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(ValueError, OSError):  # a system may refuse a value below its hard limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (possible, hard))
        if possible < wanted:
            _log.warn("max_connections exceeds the open files allowed to this process", allowed=possible)
