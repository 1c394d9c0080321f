"""Sends the errors of asyncio, the interpreter and libraries to the activity log.

By default Python writes these errors to stderr without redaction, and they may quote a prompt or a key. For
an exception, the activity log gets only the class and the place where it was raised. For a log message of a
library, the activity log gets only the format string.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from typing import TYPE_CHECKING, Any

from inferd import log
from inferd.log import faults

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

_log = log.get("library")


class _Handler(logging.Handler):
    """Logs the records of the standard library's ``logging``."""

    def emit(self, record: logging.LogRecord) -> None:
        fields: dict[str, object] = {
            "logger": record.name,
            "where": f"{record.filename}:{record.lineno}",
            # A message with arguments is a format string. A message without arguments may contain data.
            "template": record.msg if record.args and isinstance(record.msg, str) else None,
        }
        if record.exc_info is not None and record.exc_info[1] is not None:
            fields["error"] = faults.describe(record.exc_info[1])
        (_log.error if record.levelno >= logging.ERROR else _log.warn)("library_record", **fields)


_handler = _Handler(logging.WARNING)


def capture(loop: asyncio.AbstractEventLoop) -> None:
    """Starts to redirect the errors of ``loop``, the interpreter and libraries."""
    loop.set_exception_handler(_of_asyncio)
    sys.unraisablehook = _unraisable
    threading.excepthook = _of_thread
    logging.getLogger().addHandler(_handler)


def release() -> None:
    """Restores Python's reporting of the errors of the interpreter and libraries. The event loop keeps its
    handler."""
    sys.unraisablehook = sys.__unraisablehook__
    threading.excepthook = threading.__excepthook__
    logging.getLogger().removeHandler(_handler)


def _of_asyncio(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error = context.get("exception")
    described = None if error is None else faults.describe(error)
    # asyncio's message is a fixed sentence. The other values of the context may show arguments.
    _log.error("asyncio_error", reason=context.get("message"), error=described)


def _unraisable(unraisable: UnraisableHookArgs) -> None:
    error = unraisable.exc_value
    _log.error("unraisable_error", error=None if error is None else faults.describe(error))


def _of_thread(args: threading.ExceptHookArgs) -> None:
    thread = None if args.thread is None else args.thread.name
    error = None if args.exc_value is None else faults.describe(args.exc_value)
    _log.error("thread_failed", thread=thread, error=error)
