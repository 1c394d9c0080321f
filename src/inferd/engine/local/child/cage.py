"""The sandbox of an engine process. Inside the sandbox, the process can only compute, and use the descriptors
that it already holds.

The process calls :func:`enter` once, before it reads a byte of a model. A process cannot leave its sandbox.
Model files, chat templates and grammars are untrusted. If one of them exploits a fault of llama.cpp, the
sandbox keeps the process from the network, programs, files and other processes. Three independent layers of
Linux enforce that:

* ``no_new_privs`` and resource limits: exec gives no privileges, and a crash writes no core dump, which would
  contain prompts;
* Landlock: the process can open no path, except the files whose descriptors it was given and the source of
  random numbers;
* seccomp: the kernel refuses system calls for sockets, programs, other processes and changes of a file
  system.

If the system lacks a layer, :func:`enter` skips and reports it. The profiles ``gpu`` and ``worker-gpu`` omit
Landlock, because GPU drivers open devices and libraries whose names inferd cannot know. The profile ``rpc``
permits an engine to connect to its RPC workers over TCP. The profile ``worker`` permits an RPC worker to
accept connections. The profile ``off`` applies no sandbox and is for debugging.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

from inferd import coredump

_WITH_GPU = ("gpu", "worker-gpu")

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_SIGKILL = 9


def enter(profile: str, files: Sequence[int] = (), ports: Sequence[int] = ()) -> dict[str, str]:
    """Applies the sandbox to this process. ``files`` are descriptors whose files the process may open again
    through /dev/fd.

    ``ports`` are the TCP ports to which the profile ``rpc`` may connect, or on which ``worker`` may listen.
    Returns the state of each layer: ``yes``, or the reason why it is missing. Call this before the process
    starts a second thread.
    """
    if profile == "off":
        return {"cage": "off"}
    # If memory runs out, the system kills an engine before the daemon. This file belongs to root afterwards.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")
    coredump.forbid()
    if not sys.platform.startswith("linux"):
        return {"core_dumps": "refused", "cage": f"{sys.platform} has none"}
    libc = ctypes.CDLL(None, use_errno=True)
    held = {"core_dumps": "refused"}
    privileges = libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    held["no_new_privs"] = "yes" if privileges == 0 else os.strerror(ctypes.get_errno())
    if profile in _WITH_GPU:
        held["landlock"] = "not with a GPU, whose driver opens files of its own"
    else:
        held["landlock"] = _landlock(libc, files, ports, _BIND_TCP if profile == "worker" else _CONNECT_TCP)
    held["seccomp"] = _seccomp(libc, profile)
    return held


def die_with_parent(parent: int) -> None:
    """Asks the system to kill this process when the thread that started it ends. ``parent`` is the pid of the
    process that started it. Exits if that process has ended already."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


# Landlock. The numbers are the same on every architecture.

_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_READ_FILE = 1 << 2
# The number of file rights in each version of the interface.
_FILE_RIGHTS = (0, 13, 14, 15, 15, 16, 16, 16)
_BIND_TCP, _CONNECT_TCP = 1, 2
_SCOPES = 0b11  # abstract Unix sockets, signals
_RANDOM = "/dev/urandom"  # which std::random_device of libc++ opens, in wheels


def _landlock(libc: ctypes.CDLL, files: Sequence[int], ports: Sequence[int], use: int) -> str:
    version = libc.syscall(_LANDLOCK_CREATE, None, 0, 1)
    if version < 1:
        return f"this kernel has none ({os.strerror(ctypes.get_errno())})"
    rights = (1 << _FILE_RIGHTS[min(version, len(_FILE_RIGHTS) - 1)]) - 1
    attributes = struct.pack(
        "<QQQ", rights, _BIND_TCP | _CONNECT_TCP if version >= 4 else 0, _SCOPES if version >= 6 else 0
    )
    attributes = attributes[: 24 if version >= 6 else 16 if version >= 4 else 8]
    ruleset = libc.syscall(_LANDLOCK_CREATE, attributes, ctypes.c_size_t(len(attributes)), 0)
    if ruleset < 0:
        return os.strerror(ctypes.get_errno())
    with contextlib.ExitStack() as closing:
        closing.callback(os.close, ruleset)
        readable = list(files)
        with contextlib.suppress(FileNotFoundError):
            readable.append(os.open(_RANDOM, os.O_RDONLY | os.O_CLOEXEC))
            closing.callback(os.close, readable[-1])
        for fd in readable:
            rule = struct.pack("<Qi", _READ_FILE, fd)
            if libc.syscall(_LANDLOCK_ADD, ruleset, 1, rule, 0) < 0:
                return os.strerror(ctypes.get_errno())
        for port in ports if version >= 4 else ():
            if libc.syscall(_LANDLOCK_ADD, ruleset, 2, struct.pack("<QQ", use, port), 0) < 0:
                return os.strerror(ctypes.get_errno())
        if libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0) < 0:
            return os.strerror(ctypes.get_errno())
    return "yes"


# Seccomp: a filter in classic BPF over (number, architecture, arguments) of each system call.

_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}

# The numbers on x86_64 and on aarch64; -1 where an architecture does not have the call.
_DENIED: dict[str, tuple[int, int]] = {
    # network
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
    # programs and processes
    "execve": (59, 221),
    "execveat": (322, 281),
    "fork": (57, -1),
    "vfork": (58, -1),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "kcmp": (312, 272),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "setns": (308, 268),
    "unshare": (272, 97),
    "personality": (135, 92),
    # the kernel
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "reboot": (169, 142),
    # the file system
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    "creat": (85, -1),
    "unlink": (87, -1),
    "unlinkat": (263, 35),
    "rename": (82, -1),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "link": (86, -1),
    "linkat": (265, 37),
    "symlink": (88, -1),
    "symlinkat": (266, 36),
    "mkdir": (83, -1),
    "mkdirat": (258, 34),
    "rmdir": (84, -1),
    "mknod": (133, -1),
    "mknodat": (259, 33),
    "truncate": (76, 45),
    "chmod": (90, -1),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, -1),
    "lchown": (94, -1),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "mount_setattr": (442, 442),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "inotify_init1": (294, 26),
    "fanotify_init": (300, 262),
    "memfd_secret": (447, 447),
}
# CUDA's driver uses local sockets to reach its services.
_ALLOWED = {
    "gpu": ("socket", "connect"),
    "rpc": ("connect",),
    "worker": ("bind", "listen", "accept", "accept4"),
    "worker-gpu": ("socket", "connect", "bind", "listen", "accept", "accept4"),
}

# Calls with arguments in structures, which a filter cannot read. The C library falls back if they do not
# exist.
_MISSING = {"openat2": (437, 437), "clone3": (435, 435)}
_CLONE = (56, 220)
_OPEN, _OPENAT = (2, -1), (257, 56)
_KILL, _TGKILL = (62, 129), (234, 131)
_SOCKET, _SOCKETPAIR = (41, 198), (53, 199)
_AF_INET, _SOCK_STREAM = 2, 1
_IOCTL = (16, 29)
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C  # inject input into a terminal
_CLONE_THREAD = 0x10000
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

_LD, _JEQ, _JSET, _JGE, _AND, _RET = 0x20, 0x15, 0x45, 0x35, 0x54, 0x06
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER, _ARCH, _FIRST_ARG = 0, 4, 16  # offsets of seccomp_data; an argument has 8 bytes, the low half first


def _seccomp(libc: ctypes.CDLL, profile: str) -> str:
    known = _ARCHITECTURES.get(platform.machine())
    if known is None:
        return f"not on {platform.machine()}"
    code = _filter(*known, profile)
    program = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(program))
    seccomp = {"x86_64": 317, "aarch64": 277}[platform.machine()]
    set_filter, all_threads = 1, 1
    if libc.syscall(seccomp, set_filter, all_threads, header) != 0:
        return os.strerror(ctypes.get_errno())
    return "yes"


def _filter(architecture: int, column: int, profile: str) -> bytes:
    """Returns the BPF program. Jumps are relative and go forward. The instructions for each system call end
    with a return."""
    out: list[tuple[int, int, int, int]] = []

    def load(offset: int) -> None:
        out.append((_LD, 0, 0, offset))

    def leave(value: int) -> None:
        out.append((_RET, 0, 0, value))

    def only(number: int, *checks: tuple[int, int, int, int]) -> None:
        """Adds the instructions ``checks``, which run for the system call ``number`` alone."""
        if number >= 0:
            out.append((_JEQ, 0, len(checks), number))
            out.extend(checks)

    refused = _ERRNO | errno.EPERM
    load(_ARCH)
    out.append((_JEQ, 1, 0, architecture))
    leave(_KILL_PROCESS)
    load(_NUMBER)
    if column == 0:  # the numbers of the x32 interface of x86_64
        out.append((_JGE, 0, 1, 0x40000000))
        leave(_KILL_PROCESS)
    if profile in ("rpc", "worker"):  # TCP alone
        only(
            _SOCKET[column],
            (_LD, 0, 0, _FIRST_ARG),
            (_JEQ, 0, 4, _AF_INET),
            (_LD, 0, 0, _FIRST_ARG + 8),
            (_AND, 0, 0, 0xF),
            (_JEQ, 0, 1, _SOCK_STREAM),
            (_RET, 0, 0, _ALLOW),
            (_RET, 0, 0, refused),
        )
    skip = _ALLOWED.get(profile, ())
    for name, numbers in _DENIED.items():
        if name not in skip:
            only(numbers[column], (_RET, 0, 0, refused))
    for numbers in _MISSING.values():
        only(numbers[column], (_RET, 0, 0, _ERRNO | errno.ENOSYS))
    # A new thread, not a new process.
    only(
        _CLONE[column],
        (_LD, 0, 0, _FIRST_ARG),
        (_JSET, 1, 0, _CLONE_THREAD),
        (_RET, 0, 0, refused),
        (_RET, 0, 0, _ALLOW),
    )
    # A signal to this process, as abort() sends it, and to no other.
    for numbers in (_KILL, _TGKILL):
        only(
            numbers[column],
            (_LD, 0, 0, _FIRST_ARG),
            (_JEQ, 1, 0, os.getpid()),
            (_RET, 0, 0, refused),
            (_RET, 0, 0, _ALLOW),
        )
    # An event loop wakes itself through a pair of stream sockets. A datagram socket could send anywhere.
    only(
        _SOCKETPAIR[column],
        (_LD, 0, 0, _FIRST_ARG + 8),
        (_AND, 0, 0, 0xF),
        (_JEQ, 1, 0, _SOCK_STREAM),
        (_RET, 0, 0, refused),
        (_RET, 0, 0, _ALLOW),
    )
    only(
        _IOCTL[column],
        (_LD, 0, 0, _FIRST_ARG + 8),
        (_JEQ, 1, 0, _TIOCSTI),
        (_JEQ, 0, 1, _TIOCLINUX),
        (_RET, 0, 0, refused),
        (_RET, 0, 0, _ALLOW),
    )
    # Nothing may open a file for writing, except a GPU driver, which writes to its devices.
    if profile not in _WITH_GPU:
        for argument, numbers in ((1, _OPEN), (2, _OPENAT)):
            only(
                numbers[column],
                (_LD, 0, 0, _FIRST_ARG + 8 * argument),
                (_JSET, 0, 1, _WRITING),
                (_RET, 0, 0, _ERRNO | errno.EACCES),
                (_RET, 0, 0, _ALLOW),
            )
    leave(_ALLOW)
    return b"".join(struct.pack("<HBBI", *line) for line in out)
