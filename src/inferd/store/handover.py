"""Letting a thread of its own wait for what cannot be interrupted."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator
from contextlib import closing, suppress
from typing import TypeVar

from inferd.errors import BootCancelled
from inferd.store.runtime import POLL_SECS

T = TypeVar("T")

AHEAD = 16  # items that may wait for their consumer


def iterate_in_thread(items: Generator[T], cancelled: threading.Event) -> Generator[T]:
    """``items``, made in another thread; ends with BootCancelled within POLL_SECS of ``cancelled``.

    An exception of the generator is raised here. When the consumer leaves early, the thread is not waited
    for: it ends when its present item comes, and the end of the process does not wait for it either.
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
