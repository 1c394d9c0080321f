"""Each part of the package imports only parts of lower layers, and no files import each other in a circle.

The table lists, for every part of `inferd` (a module or package directly under it), the parts it may import.
Imports in an `if TYPE_CHECKING` block or a function body, and `cimport`, count like any other.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.cases import cases

SOURCE = Path(__file__).parents[2] / "src" / "inferd"
PYTHON = {".py", ".pyi"}
CYTHON = {".pyx", ".pxd", ".pxi"}
FILES = sorted(file for file in SOURCE.rglob("*") if file.suffix in PYTHON | CYTHON)

GROUND = {"collecting", "controls", "coredump", "errors", "log", "private"}
FAST = {"fastpath", "_fastpath", "_purepath", "_json", "_text", "_floats", "_line_splitter", "_records"}
BELOW_WIRE = GROUND | FAST | {"config", "sampling", "progress"}
BELOW_SERVE = BELOW_WIRE | {"wire", "engine", "store"}
BELOW_CLI = BELOW_SERVE | {"serve", "daemon", "client"}

ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "collecting": set(),
    "redaction": set(),
    "controls": set(),
    "coredump": set(),
    "private": set(),
    "log": {"controls", "errors", "fastpath", "private", "redaction"},
    "sampling": set(),
    "progress": set(),
    "config": GROUND,
    **dict.fromkeys(FAST, {"errors", "redaction"} | FAST),
    "wire": BELOW_WIRE,
    "engine": BELOW_WIRE | {"redaction", "client"},
    "store": BELOW_WIRE,
    "serve": BELOW_SERVE,
    "daemon": BELOW_SERVE | {"serve"},
    "client": {"errors", "wire", "config.paths", "config.surfaces"},
    "http": GROUND | {"client", "wire", "config"},
    "cli": BELOW_CLI | {"http"},
    "ray": GROUND | {"client", "config", "engine", "http", "cli"},
    "__init__": BELOW_CLI,
    "__main__": {"cli"},
}


def part_of(file: Path) -> str:
    """The row of the table for a file."""
    first = file.relative_to(SOURCE).parts[0]
    return first.split(".")[0]


def package_of(file: Path) -> list[str]:
    """The names that make up the dotted name of a file's package."""
    return ["inferd", *file.relative_to(SOURCE).parent.parts]


def names_in_python(source: str, package: list[str]) -> Iterator[str]:
    """Each absolute dotted name that the source imports; for `from a import b` that is `a.b`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def names_in_cython(source: str) -> Iterator[str]:
    """The same for a Cython file, where only absolute names at the start of a line are found."""
    for module, names in re.findall(r"^\s*from\s+([\w.]+)\s+c?import\s+(.+)$", source, re.MULTILINE):
        yield from (f"{module}.{name}" for name in re.findall(r"[\w*]+", names))
    yield from re.findall(r"^\s*c?import\s+([\w.]+)", source, re.MULTILINE)


def upward(file: Path, source: str) -> list[str]:
    """The imports of a file that its row of the table does not allow."""
    part = part_of(file)
    python = file.suffix in PYTHON
    names = names_in_python(source, package_of(file)) if python else names_in_cython(source)
    bad = []
    for name in names:
        root, _, inner = name.partition(".")
        imported = inner.split(".")[0]
        if root != "inferd" or imported == part or imported not in ALLOWED:
            continue
        allowed = ALLOWED[part]
        if imported not in allowed and not any(inner == a or inner.startswith(f"{a}.") for a in allowed):
            bad.append(name)
    return bad


def module_of(file: Path) -> str:
    """The dotted name of a file's module. The files of a compiled module share its name."""
    if "loop" in file.parts or file.stem == "_llama":
        return "inferd.engine.local._llama"
    return ".".join([*package_of(file), *([] if file.stem == "__init__" else [file.stem])])


def imports_of_modules(sources: Mapping[Path, str]) -> dict[str, set[str]]:
    """For each module the modules that it imports. `from a import b` is the module `a.b`, or else `a`."""
    modules = {module_of(file) for file in sources}
    graph: dict[str, set[str]] = {module: set() for module in modules}
    for file, source in sources.items():
        package = package_of(file)
        for name in names_in_python(source, package) if file.suffix in PYTHON else names_in_cython(source):
            found = next((each for each in (name, name.rpartition(".")[0]) if each in modules), None)
            if found not in (None, module_of(file)):
                graph[module_of(file)].add(found)
    return graph


def in_a_circle(graph: Mapping[str, set[str]]) -> set[str]:
    """The modules that import each other in a circle, and those between two circles."""
    left = {module: set(imported) for module, imported in graph.items()}
    while ends := {module for module in left if not left[module] & left.keys()}:
        left = {module: imported for module, imported in left.items() if module not in ends}
    while ends := left.keys() - set().union(*left.values()):
        left = {module: imported for module, imported in left.items() if module not in ends}
    return set(left)


def test_no_files_import_each_other_in_a_circle() -> None:
    assert in_a_circle(imports_of_modules({file: file.read_text("utf-8") for file in FILES})) == set()


@cases(
    "sources, circle",
    [
        (
            {"wire/a.py": "from inferd.wire import b", "wire/b.py": "import inferd.wire.a"},
            {"wire.a", "wire.b"},
        ),
        (
            {"wire/a.py": "def f():\n    from .b import X", "wire/b.py": "from .a import Y"},
            {"wire.a", "wire.b"},
        ),
        (
            {"wire/__init__.py": "from .a import X", "wire/a.py": "from inferd.wire import Y"},
            {"wire", "wire.a"},
        ),
        (
            {"wire/a.py": "from . import b, c", "wire/b.py": "from . import c", "wire/c.py": "import json"},
            set(),
        ),
    ],
)
def test_a_circle_is_found(sources: dict[str, str], circle: set[str]) -> None:
    found = in_a_circle(imports_of_modules({SOURCE / file: source for file, source in sources.items()}))
    assert found == {f"inferd.{name}" for name in circle}


def test_every_file_imports_only_lower_layers() -> None:
    assert {part_of(file) for file in FILES} <= set(ALLOWED), "a new part needs its row in the table"
    found = {str(file.relative_to(SOURCE)): upward(file, file.read_text("utf-8")) for file in FILES}
    assert {file: names for file, names in found.items() if names} == {}


@cases(
    "file, source",
    [
        ("wire/v1.py", "from inferd.engine import backend"),
        ("wire/v1.py", "from inferd import engine"),
        ("wire/v1.py", "from ..engine.backend import Message"),
        ("wire/v1.py", "from .. import store"),
        ("store/models.py", "def f():\n    import inferd.serve.session"),
        ("engine/local/loop/_llama.pyx", "from inferd.wire.v1 cimport Frame"),
        ("engine/local/loop/_llama.pyx", "    import inferd.serve"),
        ("client/blocking.py", "from inferd.config import settings"),
        ("client/blocking.py", "from inferd.config.settings import Settings"),
        ("engine/local/loop/_llama.pyx", "from inferd.store.models cimport *"),
        ("errors.py", "import inferd.log"),
        ("serve/session.py", "if TYPE_CHECKING:\n    from inferd.daemon.start import run"),
    ],
)
def test_an_upward_import_is_found(file: str, source: str) -> None:
    assert upward(SOURCE / file, source)


@cases(
    "file, source",
    [
        ("client/blocking.py", "from inferd.config.paths import socket_path"),
        ("client/blocking.py", "from inferd.config import paths"),
        ("client/blocking.py", "from inferd.wire import v1"),
        ("wire/v1.py", "from . import frames"),
        ("wire/v1.py", "from inferd.errors import DecodeError"),
        ("engine/local/loop/_llama.pyx", "from inferd._json cimport json_escape_into"),
        ("cli/__init__.py", "from inferd.daemon import daemon"),
    ],
)
def test_a_downward_import_is_not(file: str, source: str) -> None:
    assert upward(SOURCE / file, source) == []


@cases("module", ["inferd", "inferd.client", "inferd.cli", "inferd.daemon.daemon"])
def test_import_loads_no_llama_cpp(module: str) -> None:
    """The package, its client and its command line start without the 10 MB of the engine."""
    code = f"import {module}, sys; print('inferd.engine.local._llama' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@cases("module", ["inferd", "inferd.client", "inferd.cli.run", "inferd.daemon.daemon"])
def test_import_loads_no_http_server(module: str) -> None:
    """The packages of the extra are loaded by the bridge's own process alone."""
    code = f"import {module}, sys; print({{'starlette', 'uvicorn', 'httptools'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
