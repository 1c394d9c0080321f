"""The live objects of requests: those of the classes that exist once per connection or request."""

from __future__ import annotations

import gc
import sys

# Modules that no test has imported have no such objects.
OF_A_REQUEST = {
    "inferd.serve.session": ("Session",),
    "inferd.serve.connection": ("Connection",),
    "inferd.serve.surface": ("RequestContext",),
    "inferd.engine.backend": ("GenerateRequest", "EmbedRequest", "RankRequest"),
}


def requests() -> list[object]:
    """All of them, but for those that :func:`gc.freeze` has put aside."""
    kinds = tuple(
        getattr(sys.modules[module], name)
        for module, names in OF_A_REQUEST.items()
        if module in sys.modules
        for name in names
    )
    return [each for each in gc.get_objects() if type(each) in kinds]
