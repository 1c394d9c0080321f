"""The named pipes of Windows, for :mod:`inferd.serve.pipes`. Not yet run.

Reads and writes are overlapped: on a handle without that, a write would wait for the read before it. The
pipe's list of access rights names this user and nobody else, and clients of other machines are rejected.
"""

from __future__ import annotations

import sys

if sys.platform == "win32":
    import _winapi
    import ctypes
    from ctypes import wintypes

    from inferd.serve.peer import Peer

    _FIRST_PIPE_INSTANCE = 0x0008_0000
    _REJECT_REMOTE_CLIENTS = 0x0000_0008
    _BUFFER_BYTES = 64 * 1024
    _TOKEN_QUERY = 0x0008
    _TOKEN_USER = 1
    _SDDL_REVISION_1 = 1
    _GONE = (_winapi.ERROR_BROKEN_PIPE, _winapi.ERROR_NO_DATA, _winapi.ERROR_OPERATION_ABORTED)

    _kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
    _advapi32 = ctypes.WinDLL("advapi32", use_last_error=True)

    # Without these, handles and pointers would be cut to 32 bits.
    _kernel32.GetCurrentProcess.restype = wintypes.HANDLE
    _kernel32.CloseHandle.argtypes = (wintypes.HANDLE,)
    _kernel32.CancelIoEx.argtypes = (wintypes.HANDLE, ctypes.c_void_p)
    _kernel32.LocalFree.argtypes = (ctypes.c_void_p,)
    _kernel32.LocalFree.restype = ctypes.c_void_p
    _kernel32.GetNamedPipeClientProcessId.argtypes = (wintypes.HANDLE, ctypes.POINTER(wintypes.ULONG))
    _advapi32.OpenProcessToken.argtypes = (
        wintypes.HANDLE,
        wintypes.DWORD,
        ctypes.POINTER(wintypes.HANDLE),
    )
    _advapi32.GetTokenInformation.argtypes = (
        wintypes.HANDLE,
        ctypes.c_int,
        ctypes.c_void_p,
        wintypes.DWORD,
        ctypes.POINTER(wintypes.DWORD),
    )
    _advapi32.ConvertSidToStringSidW.argtypes = (ctypes.c_void_p, ctypes.POINTER(wintypes.LPWSTR))
    _advapi32.ConvertStringSecurityDescriptorToSecurityDescriptorW.argtypes = (
        wintypes.LPCWSTR,
        wintypes.DWORD,
        ctypes.POINTER(ctypes.c_void_p),
        ctypes.POINTER(wintypes.ULONG),
    )

    class _SecurityAttributes(ctypes.Structure):
        _fields_ = (
            ("nLength", wintypes.DWORD),
            ("lpSecurityDescriptor", ctypes.c_void_p),
            ("bInheritHandle", wintypes.BOOL),
        )

    def _checked(succeeded: int) -> None:
        if not succeeded:
            raise ctypes.WinError(ctypes.get_last_error())

    def own_sid() -> str:
        """The security identifier of the user that this process runs as, as text."""
        token = wintypes.HANDLE()
        _checked(_advapi32.OpenProcessToken(_kernel32.GetCurrentProcess(), _TOKEN_QUERY, ctypes.byref(token)))
        try:
            size = wintypes.DWORD()
            _advapi32.GetTokenInformation(token, _TOKEN_USER, None, 0, ctypes.byref(size))
            user = ctypes.create_string_buffer(size.value)
            _checked(_advapi32.GetTokenInformation(token, _TOKEN_USER, user, size.value, ctypes.byref(size)))
        finally:
            _kernel32.CloseHandle(token)
        sid = ctypes.cast(user, ctypes.POINTER(ctypes.c_void_p)).contents  # the first field of TOKEN_USER
        text = wintypes.LPWSTR()
        _checked(_advapi32.ConvertSidToStringSidW(sid, ctypes.byref(text)))
        try:
            return str(text.value)
        finally:
            _kernel32.LocalFree(ctypes.cast(text, ctypes.c_void_p))

    class Pipes:
        """A :class:`~inferd.serve.pipes.PipeSystem`."""

        def __init__(self) -> None:
            self._sid = own_sid()

        def create(self, name: str, *, first: bool) -> int:
            descriptor = ctypes.c_void_p()
            _checked(
                _advapi32.ConvertStringSecurityDescriptorToSecurityDescriptorW(
                    f"D:P(A;;GA;;;{self._sid})", _SDDL_REVISION_1, ctypes.byref(descriptor), None
                )
            )
            try:
                security = _SecurityAttributes(ctypes.sizeof(_SecurityAttributes), descriptor, False)
                return _winapi.CreateNamedPipe(
                    name,
                    _winapi.PIPE_ACCESS_DUPLEX
                    | _winapi.FILE_FLAG_OVERLAPPED
                    | (_FIRST_PIPE_INSTANCE if first else 0),
                    _winapi.PIPE_WAIT | _REJECT_REMOTE_CLIENTS,  # and bytes, not messages: both are 0
                    _winapi.PIPE_UNLIMITED_INSTANCES,
                    _BUFFER_BYTES,
                    _BUFFER_BYTES,
                    _winapi.NMPWAIT_WAIT_FOREVER,
                    ctypes.addressof(security),
                )
            finally:
                _kernel32.LocalFree(descriptor)

        def wait_for_client(self, handle: int) -> Peer:
            _winapi.ConnectNamedPipe(handle, overlapped=True).GetOverlappedResult(True)
            pid = wintypes.ULONG()
            known = _kernel32.GetNamedPipeClientProcessId(handle, ctypes.byref(pid))
            return Peer("pipe", pid=pid.value if known else None, sid=self._sid)

        def stop_waiting(self, name: str) -> None:
            access = _winapi.GENERIC_READ | _winapi.GENERIC_WRITE
            _winapi.CloseHandle(
                _winapi.CreateFile(name, access, 0, _winapi.NULL, _winapi.OPEN_EXISTING, 0, _winapi.NULL)
            )

        def read(self, handle: int, size: int) -> bytes:
            try:
                reading, _ = _winapi.ReadFile(handle, size, overlapped=True)
                reading.GetOverlappedResult(True)
            except OSError as error:
                if error.winerror in _GONE:
                    return b""
                raise
            return bytes(reading.getbuffer() or b"")

        def write(self, handle: int, data: bytes) -> None:
            writing, _ = _winapi.WriteFile(handle, data, overlapped=True)
            written, problem = writing.GetOverlappedResult(True)
            if problem or written != len(data):
                raise ctypes.WinError(problem)

        def cancel(self, handle: int) -> None:
            _kernel32.CancelIoEx(handle, None)

        def close(self, handle: int) -> None:
            _winapi.CloseHandle(handle)
