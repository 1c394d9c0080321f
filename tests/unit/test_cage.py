"""The operations that the sandbox denies, each tried in a real sandboxed process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from inferd.engine.local import _llama
from inferd.engine.local.child.load import cage_profile
from inferd.engine.local.child.messages import Load

SCRIPT = """
import asyncio, ctypes, json, os, socket, subprocess, sys, threading
from inferd.engine.local.child import cage

listener = socket.socket()
listener.bind(("127.0.0.1", 0))
listener.listen()
allowed = open(sys.argv[1], "rb")
other = open(sys.argv[2], "rb")
held = cage.enter("cpu", [allowed.fileno()])
libc = ctypes.CDLL(None, use_errno=True)

def system(number, *arguments):
    if libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "")

def write(path, flags):
    os.close(os.open(path, flags))

there = sys.argv[1]
tries = {
    "socket": lambda: socket.socket(),
    "unix socket": lambda: socket.socket(socket.AF_UNIX),
    "datagrams": lambda: socket.socketpair(type=socket.SOCK_DGRAM),
    "accept": lambda: listener.accept(),
    "exec": lambda: os.execv(sys.executable, [sys.executable, "-c", ""]),
    "fork": lambda: os._exit(7) if os.fork() == 0 else None,
    "program": lambda: subprocess.run([sys.executable, "-c", ""]),
    "read a file": lambda: open(sys.argv[2]),
    "read another descriptor's file": lambda: open(f"/dev/fd/{other.fileno()}", "rb"),
    "list a directory": lambda: os.listdir("/"),
    "write": lambda: write(there, os.O_WRONLY),
    "write its own descriptor's file": lambda: write(f"/dev/fd/{allowed.fileno()}", os.O_RDWR),
    "create": lambda: write(there + ".new", os.O_WRONLY | os.O_CREAT),
    "remove": lambda: os.unlink(there),
    "rename": lambda: os.rename(there, there + ".moved"),
    "link": lambda: os.symlink(there, there + ".link"),
    "mode": lambda: os.chmod(there, 0o777),
    "truncate": lambda: os.truncate(there, 0),
    "signal": lambda: os.kill(os.getppid(), 0),
    "trace": lambda: system(101, 16, os.getppid(), 0, 0),
    "read memory": lambda: system(310, os.getppid(), 0, 0, 0, 0, 0),
    "io_uring": lambda: system(425, 1, 0),
    "namespace": lambda: system(272, 0x10000000),
    "type into a terminal": lambda: system(16, 0, 0x5412, b"x"),
}
found = {}
for name, attempt in tries.items():
    try:
        attempt()
        found[name] = "done"
    except OSError as error:
        found[name] = "refused" if error.errno in (1, 13) else error.errno
may = {
    "its model": lambda: open(f"/dev/fd/{allowed.fileno()}", "rb").read(1),
    "a thread": lambda: (lambda t: (t.start(), t.join()))(threading.Thread(target=int)),
    "memory": lambda: os.close(os.memfd_create("x")) or bytearray(1 << 24),
    "an event loop": lambda: asyncio.new_event_loop().close(),
    "chance": lambda: os.urandom(8),
    "chance, as a wheel's C++ library asks for it": lambda: open("/dev/urandom", "rb").read(8),
    "the listener": lambda: listener.fileno(),
}
for name, attempt in may.items():
    attempt()
print(json.dumps({"held": held, "found": found}))
"""


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    directory = tmp_path_factory.mktemp("cage")
    allowed, other = directory / "model", directory / "secret"
    allowed.write_bytes(b"model")
    other.write_bytes(b"secret")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(allowed), str(other)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in directory.iterdir()) == ["model", "secret"]
    assert allowed.read_bytes() == b"model"
    result: dict[str, dict[str, str]] = json.loads(done.stdout)
    return result


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the cage is Linux's")
def test_everything_but_computing_is_refused(tried: dict[str, dict[str, str]]) -> None:
    found = dict(tried["found"])
    if tried["held"]["landlock"] != "yes":  # an old kernel: seccomp alone does not hide what can be read
        for name in ("read a file", "read another descriptor's file", "list a directory"):
            del found[name]
    assert found == dict.fromkeys(found, "refused")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the cage is Linux's")
def test_reports_the_guards_in_force(tried: dict[str, dict[str, str]]) -> None:
    assert tried["held"]["no_new_privs"] == tried["held"]["seccomp"] == "yes"


def test_a_crash_in_the_cage_still_ends_the_process_and_leaves_no_core(tmp_path: Path) -> None:
    script = "from inferd.engine.local.child import cage; import os; cage.enter('cpu'); os.abort()"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=False, capture_output=True)
    assert done.returncode == -6
    assert list(tmp_path.iterdir()) == []


GPU = ("gpu", "CUDA0", "a graphics card", 1)
CPU = ("cpu", "CPU", "a processor", 0)


@pytest.mark.parametrize(
    ("devices", "options", "profile"),
    [
        ([CPU], {}, "cpu"),
        ([CPU, GPU], {}, "gpu"),
        ([CPU, GPU], {"n_gpu_layers": 0}, "cpu"),
        ([CPU, GPU], {"force_backend": "cpu"}, "cpu"),
        ([CPU, GPU], {"cage": "off"}, "off"),
    ],
)
def test_only_a_model_on_a_gpu_gets_the_looser_cage(
    devices: list[tuple[str, str, str, int]],
    options: dict[str, Any],
    profile: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_llama, "devices", lambda: devices)
    assert cage_profile(Load(name="m", model="m", path="m", **options)) == profile


RPC = """
import ctypes, json, socket, sys
from inferd.engine.local.child import cage

profile, use = sys.argv[1:]
other = "bind" if use == "connect" else "connect"
ports = []
for _ in range(2):
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    ports.append(listener.getsockname()[1])
    if use == "connect":
        listener.listen()
        globals()[f"kept{len(ports)}"] = listener
    else:
        listener.close()
held = cage.enter(profile, ports=ports[:1])
tries = {
    "the port": lambda: getattr(socket.socket(), use)(("127.0.0.1", ports[0])),
    "another port": lambda: getattr(socket.socket(), use)(("127.0.0.1", ports[1])),
    "a Unix socket": lambda: socket.socket(socket.AF_UNIX),
    "IPv6": lambda: socket.socket(socket.AF_INET6),
    "datagrams": lambda: socket.socket(type=socket.SOCK_DGRAM),
    "a file": lambda: open("/etc/passwd"),
    "the other way": lambda: getattr(socket.socket(), other)(("127.0.0.1", 1)),
}
found = {}
for name, attempt in tries.items():
    try:
        attempt()
        found[name] = "done"
    except OSError as error:
        found[name] = "refused" if error.errno in (1, 13) else error.errno
version = ctypes.CDLL(None).syscall(444, None, 0, 1)
print(json.dumps({"held": held, "found": found, "landlock_version": version}))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the cage is Linux's")
@pytest.mark.parametrize(("profile", "use"), [("rpc", "connect"), ("worker", "bind")])
def test_the_engine_and_the_worker_of_a_split_model_use_their_ports_only(profile: str, use: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RPC, profile, use], capture_output=True, text=True, check=True
    )
    told = json.loads(done.stdout)
    found: dict[str, str] = told["found"]
    assert told["held"]["seccomp"] == "yes"
    if told["landlock_version"] < 4:  # before Linux 6.7
        found.pop("another port")
    if told["landlock_version"] < 1:
        found.pop("a file")
    assert found.pop("the port") == "done"
    assert found == dict.fromkeys(found, "refused")
