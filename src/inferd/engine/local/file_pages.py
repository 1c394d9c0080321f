"""Releases the memory of a mapped model file after a load.

llama.cpp maps the model file into memory. It copies some weights to a GPU, and makes a rearranged copy of
other weights for the processor. The pages of the originals stay resident although nothing reads them again.
So ``give_back`` releases all pages of the file after a load. If a page is still needed, the system reads it
again, from its page cache or from the disk.

``give_back`` reads the list of mappings, /proc/self/maps. The sandbox of an engine forbids opening files, so
``hold`` opens the list before the engine enters the sandbox. On a system without this list, nothing is
released.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

_MAPS = "/proc/self/maps"
_MADV_DONTNEED = 4  # of Linux, which alone has _MAPS


_held: list[int] = []


def hold() -> None:
    """Opens the list of mappings, which stays open for the life of the process."""
    with suppress(OSError):
        _held.append(os.open(_MAPS, os.O_RDONLY | os.O_CLOEXEC))


def give_back(*files: int) -> int:
    """Releases the resident pages of the open ``files``. Returns the size of their mappings in bytes."""
    wanted = {str(os.fstat(file).st_ino) for file in files}
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    size = 0
    for line in _lines():
        # 7f0c6a200000-7f0c6a400000 r--s 00000000 fe:01 1234  /path
        # Devices are not compared: some file systems show another device here than in fstat. Giving back a
        # shared mapping that is never written loses nothing, whatever its file.
        place, access, _, _, inode = line.split(None, 5)[:5]
        if access == "r--s" and inode in wanted:
            begin, end = (int(number, 16) for number in place.split("-"))
            if libc.madvise(begin, end - begin, _MADV_DONTNEED) == 0:
                size += end - begin
    return size


def _lines() -> list[str]:
    try:
        with open(_held[0] if _held else _MAPS, "rb", buffering=0, closefd=not _held) as maps:
            maps.seek(0)
            return maps.readall().decode("utf-8", "replace").splitlines()
    except OSError:
        return []
