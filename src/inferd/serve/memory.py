"""Limits the memory for the input of requests: long lines and attachments.

A request reserves its bytes before they are read, and keeps the reservation until the request ends. All
connections share one budget. Over TCP, each host counts as a user. A user that holds no memory may reserve
all free memory at once. A user that already holds memory may in total hold at most half of the memory that
the other users leave. So several requests of one user never take the whole budget.
"""

from __future__ import annotations

import contextlib
import mmap
from collections import Counter
from collections.abc import Hashable

from inferd.errors import AttachmentTooLarge, InputMemoryFull

# Up to this size, zeroed memory from the allocator is cheaper than a mapping from the system.
SMALL_BYTES = 64 * 1024
# From this size on, use huge pages if the system has them: freeing 16,384 small pages takes 6 ms.
HUGE_BYTES = 4 * 1024 * 1024


class InputMemory:
    """The budget of all connections. ``limit`` is the size of the budget in bytes, and may be changed at any
    time. ``reserved`` is the number of bytes that requests hold now."""

    __slots__ = ("_owners", "limit", "reserved")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.reserved = 0
        self._owners: Counter[Hashable] = Counter()

    def of(self, owner: Hashable) -> Reservation:
        """Returns a reservation for one request of ``owner``. The reservation is empty."""
        return Reservation(self, owner)

    def _take(self, owner: Hashable, size: int) -> None:
        if size > self.limit:
            raise AttachmentTooLarge(f"attachments exceed {self.limit} byte cap", self.limit)
        held = self._owners[owner]
        share = (self.limit - (self.reserved - held)) // 2
        if self.reserved + size > self.limit or (held and held + size > share):
            raise InputMemoryFull
        self.reserved += size
        self._owners[owner] += size

    def _give_back(self, owner: Hashable, size: int) -> None:
        self.reserved -= size
        self._owners[owner] -= size
        if not self._owners[owner]:
            del self._owners[owner]


class Reservation:
    """The bytes that one request has reserved."""

    __slots__ = ("_memory", "_owner", "size")

    def __init__(self, memory: InputMemory, owner: Hashable) -> None:
        self._memory = memory
        self._owner = owner
        self.size = 0

    def add(self, size: int) -> None:
        """Reserves ``size`` more bytes. Raises AttachmentTooLarge if ``size`` exceeds the whole budget, and
        InputMemoryFull if the user may not reserve so many bytes now. After an error the reservation is
        unchanged."""
        self._memory._take(self._owner, size)
        self.size += size

    def release(self) -> None:
        """Releases all bytes of the reservation. A second call does nothing."""
        if self.size:
            self._memory._give_back(self._owner, self.size)
            self.size = 0


def room_for(size: int) -> memoryview:
    """Allocates ``size`` bytes for a request. Raises InputMemoryFull if the system has no memory left."""
    if size <= SMALL_BYTES:
        return memoryview(bytearray(size))
    # In a private mapping only written pages take memory, so the announced size alone costs nothing.
    try:
        memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError:
        raise InputMemoryFull from None
    if size >= HUGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)
