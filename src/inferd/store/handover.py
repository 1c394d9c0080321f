"""Runs a blocking generator in a helper thread, so that its consumer can be cancelled while the generator
blocks."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator
from contextlib import closing, suppress
from typing import TypeVar

from inferd.errors import BootCancelled
from inferd.store.runtime import POLL_SECS

T = TypeVar("T")

AHEAD = 16  # items buffered ahead of the consumer


def iterate_in_thread(items: Generator[T], cancelled: threading.Event) -> Generator[T]:
    """Runs the generator ``items`` in a helper thread, and yields its items. Raises BootCancelled at most
    POLL_SECS after ``cancelled`` is set.

    Raises every exception of ``items`` in the consumer's thread. A consumer that stops early does not wait
    for the helper thread. The helper thread ends after its current item, and does not delay the exit of the
    process.
    """
    handed: queue.Queue[tuple[T] | BaseException | None] = queue.Queue(AHEAD)
    left = threading.Event()

    def hand(outcome: tuple[T] | BaseException | None) -> bool:
        while not left.is_set():
            with suppress(queue.Full):
                handed.put(outcome, timeout=POLL_SECS)
                return True
        return False

    def work() -> None:
        end: BaseException | None = None
        try:
            with closing(items):
                for item in items:
                    if not hand((item,)):
                        return
        except BaseException as error:
            end = error
        hand(end)

    threading.Thread(target=work, name="inferd-fetch", daemon=True).start()
    try:
        while not cancelled.is_set():
            try:
                outcome = handed.get(timeout=POLL_SECS)
            except queue.Empty:
                continue
            if outcome is None:
                return
            if isinstance(outcome, BaseException):
                raise outcome
            yield outcome[0]
        raise BootCancelled("the download was cancelled")
    finally:
        left.set()
