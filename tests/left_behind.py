"""Finds the live objects of requests: instances of the classes that exist once for each connection or
request."""

from __future__ import annotations

import gc
import sys
from collections.abc import Mapping

# Modules that no test has imported have no such objects.
OF_A_REQUEST = {
    "inferd.serve.session": ("Session",),
    "inferd.serve.connection": ("Connection",),
    "inferd.serve.surface": ("RequestContext",),
    "inferd.engine.requests": ("GenerateRequest", "EmbedRequest", "RankRequest"),
}


def requests() -> list[object]:
    """All live objects of requests, except those under :func:`gc.freeze`."""
    kinds = {
        getattr(sys.modules[module], name)
        for module, names in OF_A_REQUEST.items()
        if module in sys.modules
        for name in names
    }
    objects = gc.get_objects()
    if kinds.isdisjoint(map(type, objects)):  # the usual case, and ten times as fast
        return []
    return [each for each in objects if type(each) in kinds]


def forget_tracebacks(values: object) -> None:
    """Removes the tracebacks of exceptions among the values, which would keep the frames of a test alive."""
    if isinstance(values, BaseException):
        values.__traceback__ = values.__context__ = values.__cause__ = None
    elif isinstance(values, Mapping):
        forget_tracebacks(list(values.values()))
    elif isinstance(values, (list, tuple)):
        for each in values:
            forget_tracebacks(each)
