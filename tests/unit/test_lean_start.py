"""The modules imported at a start, which take most of the time to the first socket or to the end of a
command.

Each module listed here takes milliseconds. Code that needs one imports it in the function that uses it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.cases import cases

# A daemon on the mock backend that ends at an event of the interpreter, and prints its modules.
DAEMON = """
import json, os, sys

def end(event, args):
    if event == "EVENT" and args[1] == sys.argv[1]:
        os.write(1, json.dumps(sorted(sys.modules)).encode())
        os._exit(0)

sys.addaudithook(end)
from inferd.cli import main
sys.exit(main(["serve", "--backend", "mock"]))
"""

# A daemon whose client sends a request before the daemon is imported, and stops it at the answer.
EARLY = """
import os, signal, socket, sys, threading
from importlib.abc import MetaPathFinder
from inferd import cli

def read(sock):
    with sock, sock.makefile("rb") as lines:
        os.write(1, b"".join(line for _, line in zip(range(2), lines)))
    os.kill(os.getpid(), signal.SIGTERM)

class Early(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "inferd.daemon.daemon":
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(sys.argv[1])
            sock.sendall(b'{"id":"1","messages":[{"role":"user","content":"?"}]}\\n')
            threading.Thread(target=read, args=(sock,)).start()

sys.meta_path.insert(0, Early())
sys.exit(cli.main(["serve", "--backend", "mock"]))
"""

# No part of a daemon without a model needs them.
NEVER = {
    "anyio", "attrs", "difflib", "email", "h11", "html", "http", "httpx", "importlib.metadata",
    "inferd.client", "inferd.config.docs", "inferd.config.file", "inferd.daemon.bridge",
    "inferd.engine.local", "inferd.engine.remote", "inferd.http", "inferd.store.catalogue",
    "inferd.store.fetch", "inferd.store.gguf", "jsonschema", "llguidance", "multiprocessing", "numpy",
    "PIL", "prometheus_client", "prompt_toolkit", "referencing", "regex", "rich", "sqlite3", "tempfile",
    "tomllib", "truststore", "urllib.request", "xml", "zipfile",
}  # fmt: skip

# The daemon needs them, but its sockets do not: an early client waits in the socket.
AFTER_THE_SOCKETS = {
    "asyncio", "concurrent", "ctypes", "hashlib", "inferd.engine.backend", "inferd.engine.events",
    "inferd.engine.requests", "inferd.sampling", "inferd.serve.connection", "inferd.serve.session",
    "inferd.serve.surface", "inferd.serve.surfaces", "inferd.wire.frames", "inferd.wire.v1",
    "inferd.wire.v2", "msgspec", "orjson", "random", "typing_extensions",
}  # fmt: skip


def modules(code: str, *arguments: str, **variables: str) -> set[str]:
    """The modules that a program prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        check=True,
    )
    return set(json.loads(done.stdout))


def test_the_sockets_of_a_daemon_are_bound_before_the_rest_is_imported(short_dir: Path) -> None:
    address = str(short_dir / "inferd" / "framed")
    places = {"XDG_RUNTIME_DIR": str(short_dir), "HOME": str(short_dir), "INFERD_FRAMED_ADDR": address}
    # The socket of the framed wire is the last.
    found = modules(DAEMON.replace("EVENT", "socket.bind"), address, **places)
    assert "inferd.daemon.places" in found
    assert found & (NEVER | AFTER_THE_SOCKETS) == set()


def test_an_early_client_waits_in_the_socket_and_is_answered(short_dir: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", EARLY, str(short_dir / "inferd" / "infer.sock")],
        env={**os.environ, "XDG_RUNTIME_DIR": str(short_dir), "HOME": str(short_dir)},
        stdout=subprocess.PIPE,
        check=True,
    )
    assert [json.loads(line)["type"] for line in done.stdout.splitlines()] == ["token", "done"]


def test_a_daemon_without_a_model_imports_nothing_of_models(short_dir: Path) -> None:
    manager = str(short_dir / "manager")
    places = {"XDG_RUNTIME_DIR": str(short_dir), "HOME": str(short_dir), "NOTIFY_SOCKET": manager}
    found = modules(DAEMON.replace("EVENT", "socket.sendto"), manager, **places)
    assert found >= AFTER_THE_SOCKETS, "the list names a module that is not there"
    assert found & NEVER == set()


@cases(
    "command, unwanted",
    [
        ("commands", {"asyncio", "json", "msgspec", "inferd.client", "inferd.config"}),
        ("status", {"asyncio", "msgspec", "inferd.config.settings", "inferd.daemon", "inferd.engine"}),
        ("run", {"asyncio", "hashlib", "msgspec", "inferd.daemon", "inferd.engine", "inferd.serve"}),
    ],
)
def test_a_command_imports_only_what_it_uses(command: str, unwanted: set[str]) -> None:
    imports = f"import inferd.cli.commands, inferd.cli.running, inferd.cli.{command}"
    found = modules(f"{imports}, sys; found = sorted(sys.modules); import json; print(json.dumps(found))")
    assert found & (unwanted | NEVER - {"inferd.client"}) == set()
