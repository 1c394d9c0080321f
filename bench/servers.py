"""The compared servers, each in a separate process, all with equal settings.

A context manager starts a server: it returns when the server accepts requests, and ends the process at its
exit. The stderr of a server is shown only if the server did not start. ``Unavailable`` gives the reason why a
contestant cannot take part, and the remedy.

(This file has over 400 lines, because it is one list of contestants and how each is started.)
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from bench import quiet
from bench.builds import python_of
from bench.clients import Address, BlockStream, NdjsonStream, SseStream, Stream

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / "bench" / "peers"
END_SECS = 1.0
START_SECS = 120

Contestant = TypeVar("Contestant", bound=AbstractContextManager[Any])
T = TypeVar("T")


_FOLDERS = re.compile(r"(?<![\w.:/])/(?:[^\s/:'\"]+/)+")


class Unavailable(Exception):
    """A contestant cannot take part; the text gives the reason and the remedy. An absolute path is cut to the
    name of its file, because the text becomes part of the report."""

    def __init__(self, reason: str) -> None:
        super().__init__(_FOLDERS.sub("", reason))


def started(
    stack: ExitStack, makers: Mapping[str, Callable[[], Contestant]], missing: dict[str, str]
) -> list[Contestant]:
    """Starts the contestants, which run until ``stack`` ends. ``missing`` gets the reasons of the unavailable
    ones by name."""
    running = []
    for name, make in makers.items():
        try:
            running.append(stack.enter_context(make()))
        except Unavailable as reason:
            missing[name] = str(reason)
    return running


def in_turn(running: Sequence[T], number: int) -> list[T]:
    """The contestants in the order of round ``number``: each round begins with another one."""
    first = number % len(running)
    return [*running[first:], *running[:first]]


class Process:
    """A process in its own temporary directory; ``keep`` is a directory that stays."""

    def __init__(self, keep: Path | None = None) -> None:
        self._kept = keep is not None
        self.home = keep or Path(tempfile.mkdtemp(prefix="ifd-", dir="/tmp"))

    def start(self, command: Sequence[str | Path], **streams: int) -> subprocess.Popen[str]:
        self.log = (self.home / "log").open("w+")
        home = str(self.home)
        environment = environment_of(command[0])
        environment |= {"HOME": home, "XDG_RUNTIME_DIR": home, "INFERD_LOG_DIR": home}
        # The spare engine process starts seconds after a load, in the middle of a measurement.
        environment["INFERD_SPARE_ENGINE"] = "false"
        self.popen = subprocess.Popen(
            [str(part) for part in command],
            env=environment,
            text=True,
            stderr=self.log,
            **({"stdout": self.log} | streams),
        )
        quiet.SERVERS.add(self.popen.pid)
        return self.popen

    def stop(self) -> None:
        quiet.SERVERS.discard(self.popen.pid)
        died = self.popen.poll()
        if died is not None:
            self.log.seek(0)
            print(f"{self.popen.args} ended with {died}: {self.log.read()[-4000:]}", file=sys.stderr)
        else:
            self.popen.send_signal(signal.SIGTERM)
            try:
                self.popen.wait(15)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait()
        self.log.close()
        if not self._kept:
            shutil.rmtree(self.home, ignore_errors=True)

    def failed(self) -> Unavailable:
        """The reason why the process does not run, with the signal that ended it."""
        self.log.seek(0)
        return Unavailable(f"does not run{self._ending()}: {self.log.read().strip()[-800:]}")

    def _ending(self) -> str:
        try:
            code = self.popen.wait(END_SECS)
        except subprocess.TimeoutExpired:
            return ""
        return f" ({signal.Signals(-code).name})" if code < 0 else f" (exit status {code})"

    def ended(self) -> bool:
        """Whether the process has ended by itself. Waits up to a second for a process that is about to
        end."""
        return bool(self._ending())

    def cpu_seconds(self) -> float:
        """The processor time that the process and its descendants have used."""
        return sum(map(quiet.cpu_seconds, quiet.family(self.popen.pid)))

    def memory(self) -> dict[str, float]:
        """Resident MiB of the process and its children: in all, and without mapped files such as weights."""
        names = {"VmRSS": "resident", "RssAnon": "resident, not mapped"}
        sizes: dict[str, float] = {}
        for pid in quiet.family(self.popen.pid):
            try:
                lines = [line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
            except OSError:
                continue
            for name, shown in names.items():
                size = next((int(line[1]) for line in lines if line[0] == f"{name}:"), 0)
                sizes[shown] = sizes.get(shown, 0.0) + size / 1024
        return sizes


class Server(Process):
    """A server that streams answers; ``stream`` makes the client's side of one request."""

    name: str
    address: Address

    def command(self) -> Sequence[str | Path]:
        raise NotImplementedError

    def stream(self, messages: list[dict[str, str]], max_tokens: int) -> Stream:
        raise NotImplementedError

    def __enter__(self) -> Server:
        self.start(self.command())
        deadline = time.monotonic() + START_SECS
        while not self.listens():
            if self.popen.poll() is not None or time.monotonic() > deadline:
                problem = self.failed()
                self.stop()
                raise problem
            time.sleep(0.02)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def listens(self) -> bool:
        try:
            self.address.connect().close()
        except OSError:
            return False
        return True


class Inferd(Server):
    """``inferd serve`` on a Unix socket, or on TCP if a port is given.

    A ``model`` of ``None`` is the mock. Its files stay in the directory ``keep``; ``more`` are further
    arguments.
    """

    def __init__(
        self,
        model: Path | None = None,
        *,
        threads: int = 0,
        n_ctx: int = 2048,
        slots: int = 1,
        queue: int = 64,
        tcp: bool = False,
        name: str = "inferd",
        python: str | Path = sys.executable,
        drafts: str | None = None,
        keep: Path | None = None,
        more: Sequence[object] = (),
    ) -> None:
        super().__init__(keep)
        self.name = name
        self._python = python
        self.address = Address.tcp(free_port()) if tcp else Address.unix(self.home / "i.sock")
        backend: list[object] = ["--backend", "mock"]
        if model is not None:
            backend = ["--model-path", model, "--threads", threads, "--n-ctx", n_ctx]
        self._arguments = [*backend, "--active-permits", slots, "--queue-depth", queue, *more]
        self._arguments += [] if drafts is None else ["--drafts", drafts]

    def command(self) -> list[str | Path]:
        where = ["--tcp", str(self.address)] if self.address.port else ["--uds", self.address.path]
        arguments = [str(argument) for argument in self._arguments]
        return [self._python, "-m", "inferd", "serve", *where, *arguments]

    def stream(self, messages: list[dict[str, str]], max_tokens: int) -> Stream:
        return NdjsonStream(self.address, messages, max_tokens)

    def v2_stream(self, messages: list[dict[str, str]], max_tokens: int) -> Stream:
        """The same server with typed blocks, on the socket that the daemon opens for them."""
        return BlockStream(Address.unix(self.home / "infer.v2.sock"), messages, max_tokens)


EARLIER = "inferd, earlier"
"""The name of the build in ``--against``."""


def earlier(options: Namespace, model: Path, **room: Any) -> dict[str, Callable[[], Server]]:
    """The factory of the build in ``--against``, by its name; empty without the option."""
    if options.against is None:
        return {}
    python = python_of(options.against)
    return {EARLIER: lambda: Inferd(model, **room, python=python, name=EARLIER)}


class RustInferd(Server):
    """The mock daemon of the Rust inferd 0.2.1. cargo downloads and builds it below ``cache``."""

    VERSION = "0.2.1"

    def __init__(self, cache: Path, *, slots: int = 1, queue: int = 64) -> None:
        super().__init__()
        self.name = f"inferd {self.VERSION} (Rust), Unix"
        self.address = Address.unix(self.home / "i.sock")
        if shutil.which("cargo") is None:
            raise Unavailable("there is no cargo; install Rust from https://rustup.rs")
        self._program = cache / f"inferd-daemon-{self.VERSION}" / "bin" / "inferd-daemon"
        if not self._program.exists():
            root = self._program.parents[1]
            wanted = ["--root", str(root), f"inferd-daemon@{self.VERSION}"]
            built = subprocess.run(["cargo", "install", "-q", "--locked", *wanted], check=False)
            if built.returncode:
                raise Unavailable(f"cargo cannot build inferd-daemon {self.VERSION}")
        self._arguments = ["--active-permits", str(slots), "--queue-depth", str(queue)]

    def command(self) -> list[str | Path]:
        places = ["--lock", self.home / "lock", "--admin-addr", self.home / "a.sock"]
        return [self._program, "--uds", self.address.path, *places, *self._arguments]


class LlamaServer(Server):
    """llama-server from the xllamacpp wheel, with as many slots as inferd.

    Unless it ``keeps_prompts``, it reuses no prefix, so that every prompt is computed in full.
    """

    def __init__(
        self,
        python: Path,
        model: Path,
        *,
        threads: int,
        n_ctx: int = 2048,
        slots: int = 1,
        flash_attention: str = "off",
        name: str = "llama-server",
        n_grams: bool = False,
        keeps_prompts: bool = False,
    ) -> None:
        super().__init__()
        require_module(python, "xllamacpp", "xllamacpp")
        self.name = name
        self._keeps_prompts = keeps_prompts
        self.address = Address.tcp(free_port())
        self._python = python
        self._settings = {
            "model": str(model),
            "port": self.address.port,
            "threads": threads,
            "n_ctx": n_ctx,
            "slots": slots,
            "flash_attention": flash_attention,
            "n_grams": n_grams,
        }

    def command(self) -> list[str | Path]:
        return [self._python, PEERS / "llama_server.py", json.dumps(self._settings)]

    def listens(self) -> bool:
        """Waits until the model is loaded: the server accepts connections earlier."""
        try:
            with self.address.connect() as sock:
                sock.sendall(b"GET /health HTTP/1.0\r\n\r\n")
                return b" 200 " in sock.recv(64)
        except OSError:
            return False

    def stream(self, messages: list[dict[str, str]], max_tokens: int) -> Stream:
        return SseStream(self.address, messages, max_tokens, {"cache_prompt": self._keeps_prompts})


class LlamaCppPython(Server):
    """llama-cpp-python's own server."""

    def __init__(self, python: Path, model: Path, *, threads: int, n_ctx: int = 2048) -> None:
        super().__init__()
        require_module(python, "llama_cpp.server.app", "'llama-cpp-python[server]'")
        self.name = "llama-cpp-python"
        self.address = Address.tcp(free_port())
        self._command: list[str | Path] = [python, "-m", "llama_cpp.server", "--model", model]
        self._command += ["--host", "127.0.0.1", "--port", str(self.address.port), "--n_ctx", str(n_ctx)]
        self._command += ["--n_threads", str(threads), "--n_threads_batch", str(threads)]
        self._command += ["--flash_attn", "false", "--verbose", "false"]

    def command(self) -> list[str | Path]:
        return self._command

    def stream(self, messages: list[dict[str, str]], max_tokens: int) -> Stream:
        return SseStream(self.address, messages, max_tokens, {})


class Loop(Process):
    """A bare token loop: it reads prompts from stdin and writes the times of the tokens to stdout."""

    def __init__(self, name: str, command: Sequence[str | Path]) -> None:
        super().__init__()
        self.name = name
        self._command = command

    def __enter__(self) -> Loop:
        process = self.start(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdout is not None
        if process.stdout.readline().strip() != "ready":
            problem = self.failed()
            self.stop()
            raise problem
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        for pipe in (self.popen.stdin, self.popen.stdout):
            assert pipe is not None
            pipe.close()

    def ask(self, line: str) -> dict[str, object]:
        assert self.popen.stdin is not None
        assert self.popen.stdout is not None
        self.popen.stdin.write(line + "\n")
        self.popen.stdin.flush()
        answer = self.popen.stdout.readline()
        if not answer:
            raise self.failed()
        return json.loads(answer)  # type: ignore[no-any-return]


def bare_loop(model: Path, threads: int, n_ctx: int) -> Loop:
    """The C++ loop, compiled with the static libraries of this checkout's build."""
    built = ROOT / "build" / "llama.cpp"
    names = ("libllama.a", "libggml.a", "libggml-rpc.a", "libggml-cpu.a", "libggml-base.a")
    libraries = [next(built.rglob(name), None) for name in names]
    compiler = os.environ.get("CXX") or shutil.which("c++")
    if None in libraries or compiler is None:
        raise Unavailable(
            "needs a C++ compiler and the build/ of an install from this checkout (pip install .)"
        )
    program = Path(tempfile.gettempdir()) / f"inferd-bare-loop-{os.getuid()}"
    headers = [f"-I{ROOT / 'vendor/llama.cpp' / part}" for part in ("include", "ggml/include")]
    # The patched grammars of llama.cpp call functions of the second file.
    sources = [PEERS / "bare_loop.cpp", ROOT / "src/inferd/engine/local/native/guards/grammar_limits.cpp"]
    command = [
        compiler,
        "-O2",
        "-std=c++17",
        *headers,
        *sources,
        "-o",
        program,
        *libraries,
        "-lpthread",
        "-ldl",
    ]
    compiled = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if compiled.returncode != 0:
        raise Unavailable(f"does not compile: {compiled.stderr[-800:]}")
    return Loop("bare loop (C++)", [program, model, str(threads), str(n_ctx)])


def engine_loop(model: Path, threads: int, n_ctx: int) -> Loop:
    """inferd's own backend, without a daemon."""
    return Loop("inferd engine", [sys.executable, PEERS / "engine_loop.py", model, str(threads), str(n_ctx)])


def low_level_loop(python: Path, model: Path, threads: int, n_ctx: int) -> Loop:
    """llama-cpp-python's low-level API."""
    require_module(python, "llama_cpp", "llama-cpp-python")
    return Loop("llama-cpp-python loop", [python, PEERS / "low_level.py", model, str(threads), str(n_ctx)])


def require_module(python: Path, module: str, package: str) -> None:
    """Raises Unavailable when the peers' Python cannot import ``module``."""
    command = [python, "-c", f"import {module}"]
    found = subprocess.run(command, env=environment_of(python), capture_output=True, check=False)
    if found.returncode != 0:
        raise Unavailable(
            f"not installed; run {python} -m pip install {package}, or name a Python with it: --peer-python"
        )


def version_of(python: Path, package: str) -> str:
    """The version of a package in the peers' Python."""
    command = [python, "-c", f"import importlib.metadata as m; print(m.version({package!r}))"]
    found = subprocess.run(command, env=environment_of(python), capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def environment_of(python: str | Path) -> dict[str, str]:
    """The environment for a command. Compiled modules are kept, as for an installed package. The import path
    of this checkout is not passed to the peers' Python."""
    environment = dict(os.environ)
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    if str(python) != sys.executable:
        environment.pop("PYTHONPATH", None)
    return environment


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def model_file(options: Namespace) -> Path:
    """The GGUF file to run: ``--model``, else the default model of the store."""
    if options.model is not None:
        return Path(options.model)
    from inferd.config import sources
    from inferd.store.catalogue import CATALOGUE, DEFAULT_MODEL
    from inferd.store.models import ModelStore

    store = ModelStore(sources.read({}).settings.models_home)
    path = store.blob_path(CATALOGUE[DEFAULT_MODEL].sha256)
    if not path.exists():
        raise SystemExit(f"the model {DEFAULT_MODEL} is not in the store: run `inferd pull {DEFAULT_MODEL}`")
    return path
