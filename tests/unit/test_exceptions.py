"""No exception object outlives the request that raised it.

An exception keeps the frames of every raise alive through its traceback. An instance that lives as long as
its module therefore keeps every request that it ended.
"""

from __future__ import annotations

import gc
import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FunctionType, ModuleType

import inferd
from inferd.engine.mock import Mock
from inferd.serve.surface import RequestContext
from inferd.serve.surfaces.vectors import EmbedSurface
from tests import left_behind
from tests.in_process import Gate, serving, until
from tests.requests import generate_request


def instances(value: object, where: str, seen: set[int]) -> Iterator[str]:
    """The path of every exception instance in a module: globals, containers, classes, defaults, closures."""
    if id(value) in seen:
        return
    seen.add(id(value))
    inner: Iterator[tuple[str, object]] = iter(())
    if isinstance(value, BaseException):
        yield where
    elif isinstance(value, Mapping):
        inner = ((f"[{key!r}]", item) for key, item in list(value.items()))
    elif isinstance(value, list | tuple | set | frozenset):
        inner = ((f"[{i}]", item) for i, item in enumerate(value))
    elif isinstance(value, type) and value.__module__.startswith("inferd"):
        inner = ((f".{name}", item) for name, item in list(vars(value).items()))
    elif isinstance(value, FunctionType) and value.__module__.startswith("inferd"):
        cells = inspect.getclosurevars(value).nonlocals if value.__closure__ else {}
        inner = ((".defaults", kept) for kept in (value.__defaults__, value.__kwdefaults__, cells))
    for name, item in inner:
        yield from instances(item, where + name, seen)


def modules() -> Iterator[ModuleType]:
    for info in pkgutil.walk_packages(inferd.__path__, "inferd."):
        if info.name.endswith("__main__"):
            continue
        try:
            yield importlib.import_module(info.name)
        except ImportError:  # modules of another system or another build
            continue


def test_no_module_holds_an_exception_instance() -> None:
    seen: set[int] = set()
    found = [path for module in modules() for path in instances(dict(vars(module)), module.__name__, seen)]
    assert found == []


def test_the_walk_finds_an_instance_anywhere() -> None:
    error = ValueError()

    class Holder:
        __module__ = "inferd.example"
        kept = ({"a": [error]},)

    def default(error: Exception = error) -> None: ...

    default.__module__ = "inferd.example"
    for value in (error, (error,), {"k": error}, Holder, default):
        assert list(instances(value, "it", set()))


async def test_a_request_that_met_its_deadline_is_not_kept(short_dir: Path) -> None:
    gate = Gate()
    async with serving(short_dir / "s", Mock(pace=gate), surface=EmbedSurface()) as server:
        client = await server.connect()
        for _ in range(3):
            await client.send({"id": "late", "input": ["a"], "deadline_ms": 20})
            assert (await client.frame())["code"] == "deadline_exceeded"
        await until(lambda: gate.waiting == 0)
        gc.collect()
        contexts = [kept for kept in left_behind.requests() if isinstance(kept, RequestContext)]
        assert "late" not in [context.request.id for context in contexts]


def test_an_object_of_a_request_is_seen_while_it_lives() -> None:
    """The fixture `no_leaks` fails a test that leaks such an object."""
    request = generate_request(messages=())
    assert [each for each in left_behind.requests() if each is request]
