"""The daemon contains no code that starts programs or runs code from outside, with three exceptions.

The files of the daemon are all files except those of the commands and the clients. One of them may start pip,
for a model from a package index. Two start the Python interpreter of the daemon, one as the process of a
model and one as the HTTP bridge.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from inferd.config.settings import OPTIONS
from inferd.daemon import bridge
from inferd.engine.local import _llama
from tests.daemon_process import DaemonProcess

SOURCE = Path(__file__).parents[2] / "src" / "inferd"
FILES = sorted(
    path
    for path in SOURCE.rglob("*.py")
    if path.relative_to(SOURCE).parts[0] not in ("cli", "client", "ray", "__main__.py")
)
FETCHES_BY_PIP = SOURCE / "store" / "wheel.py"
STARTS_ENGINES = SOURCE / "engine" / "local" / "child" / "spawned.py"

STARTS_BRIDGE = SOURCE / "daemon" / "bridge.py"

STARTERS = re.compile(
    r"(subprocess|multiprocessing|pty|runpy|code|codeop|pexpect)(\.\w+)*|"
    r"os\.(system|popen|fork|forkpty|exec\w+|spawn\w+|posix_spawn\w*|startfile)|"
    r"asyncio\.(create_)?subprocess\w*|loop\.subprocess_\w+"
)
LOADERS = re.compile(
    r"(builtins\.)?(eval|exec|compile|__import__)|"
    r"(importlib(\.\w+)*|pkgutil|zipimport|pickle|marshal|shelve|imp|ctypes|cffi)(\.\w+)*"
)

KNOWN_LOADERS: dict[str, tuple[str, ...]] = {
    "__init__.py": ("importlib.import_module",),  # two modules of our own, by names that are in its text
    "engine/local/schema/guides.py": ("importlib",),  # the file of llguidance, in the process of a model
    "store/wheel.py": ("importlib.util",),  # looks whether pip is there
    # Looks which companions are there; doctor loads one to say why it cannot be loaded.
    "engine/local/portable.py": ("importlib.metadata", "importlib.util", "ctypes"),
    "engine/local/states.py": ("importlib.util",),  # looks where the compiled engine is
    "daemon/bridge.py": ("importlib.util",),  # looks whether the extra inferd[http] is there
    "coredump.py": ("ctypes",),  # prctl
    "engine/local/child/cage.py": ("ctypes",),  # the system calls that shut an engine in
    "engine/local/file_pages.py": ("ctypes",),  # madvise
}


def names(path: Path) -> Iterator[tuple[str, int]]:
    """What a file imports and calls, by dotted name, with the line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call):
            yield ast.unparse(node.func).replace("self._loop", "loop"), node.lineno


@cache
def names_in(path: Path) -> list[tuple[str, int]]:
    return [*names(path)]


def uses(path: Path, pattern: re.Pattern[str]) -> list[str]:
    return [f"{path}:{line}: {name}" for name, line in names_in(path) if pattern.fullmatch(name)]


def test_the_patterns_find_calls(tmp_path: Path) -> None:
    sample, other = tmp_path / "sample.py", tmp_path / "other.py"
    sample.write_text(
        "import subprocess, os\nfrom os import fork\nos.execv('a', [])\nasyncio.create_subprocess_exec()\n"
    )
    assert len(uses(sample, STARTERS)) == 4
    other.write_text("import pickle\nfrom importlib import import_module\neval('1')\nimport ctypes.util\n")
    assert len(uses(other, LOADERS)) == 4


def test_three_files_of_the_daemon_start_a_program_and_no_other() -> None:
    for path in FILES:
        found = uses(path, STARTERS)
        if path in (FETCHES_BY_PIP, STARTS_ENGINES):
            assert [use.rpartition(" ")[2] for use in found] == ["subprocess", "subprocess.Popen"]
        elif path == STARTS_BRIDGE:
            starts = [use.rpartition(" ")[2] for use in found]
            assert starts == ["subprocess", "subprocess.run", "asyncio.create_subprocess_exec"]
        else:
            assert found == []


def test_the_bridge_and_its_check_are_our_own_interpreter_with_fixed_arguments() -> None:
    assert (sys.executable, "-m", "inferd.http") == bridge.COMMAND
    assert (sys.executable, "-m", "inferd.http.files") == bridge.CHECK


def test_the_engine_starts_no_program() -> None:
    """ggml forks for a debugger's backtrace, which inferd disables; the engine has no other fork."""
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed")
    done = subprocess.run(
        ["nm", "-D", "--undefined-only", _llama.__file__], capture_output=True, text=True, check=True
    )
    needed = {line.split()[-1].partition("@")[0] for line in done.stdout.splitlines()}
    starts = {name for name in needed if re.fullmatch(r"v?fork|exec\w+|posix_spawn\w*|popen|system", name)}
    assert starts <= {"fork", "execlp", "execlpe"}
    assert (
        'os.environ.setdefault("GGML_NO_BACKTRACE", "1")'
        in (SOURCE / "engine" / "local" / "loop" / "_llama.pyx").read_text()
    )


def test_the_daemon_runs_no_code_from_outside() -> None:
    for path in FILES:
        allowed = KNOWN_LOADERS.get(str(path.relative_to(SOURCE)), ())
        assert [use for use in uses(path, LOADERS) if not use.rpartition(" ")[2].startswith(allowed)] == []


def test_no_option_names_code() -> None:
    """inferd has no plug-ins: an extension is a client, with a client's rights."""
    assert [
        option.name
        for option in OPTIONS
        if re.search("plugin|extension|hook|script|module|command", option.name)
    ] == []


def test_a_daemon_has_no_child_and_takes_no_orders_on_its_admin_socket(
    daemon: Callable[..., DaemonProcess],
) -> None:
    process = daemon(mock={"tape": ["a"]}).wait_ready()
    with process.subscribe() as admin:
        admin.send(b'{"type":"stop"}\n{"type":"reload"}\n{"type":"exec","command":"true"}\n\xff\x00\n')
        admin.wait_until_read()
        with process.connect() as client:
            client.send({"id": "q", "messages": [{"role": "user", "content": "hi"}]})
            assert [frame["type"] for frame in client.frames()][-1] == "done"
    process.wait_for("ready")  # it still is
    tasks = Path(f"/proc/{process.process.pid}/task")
    assert [child for task in tasks.iterdir() for child in (task / "children").read_text().split()] == []
