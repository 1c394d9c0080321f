"""A store with four models, and the real residency over it. The models are mocks with known memory."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from inferd.config.entries import BackendEntry, LlamaCppEntry
from inferd.config.settings import Settings
from inferd.daemon import memory
from inferd.daemon.directory import Directory
from inferd.daemon.residency import Residency
from inferd.engine.backend import EngineState, GpuRoom, Grant, Need, Needs
from inferd.engine.mock import Mock
from inferd.errors import ModelError
from inferd.progress import Progress
from inferd.serve.models import USUAL, Stay
from inferd.serve.router import Router
from inferd.store.models import ModelStore
from tests.tiny_bert import write_bert
from tests.tiny_model import stock

MIB = 1 << 20


class Model(Mock):
    """A mock with known memory, whose start waits for its gate. It asks for memory as an engine process does:
    with ``needs`` of a GPU always, without one only if it is told to. Asked for fewer layers, it asks again
    with what these need, ``part``."""

    def __init__(self, name: str, gate: asyncio.Event, needs: Needs, part: Needs, estimate: int) -> None:
        super().__init__(name)
        self._part = part
        self.room: GpuRoom | None = None
        self._estimate = estimate
        self.model = name
        self.closed = False
        self._gate = gate
        self._needs = needs
        self._grant: Grant | None = None
        self.contexts: Sequence[int] = ()
        self.granted: Need | None = None
        self.started = False

    def ask_first(self, grant: Grant, contexts: Sequence[int] = (), *, always: bool = False) -> bool:
        self.contexts = contexts
        if always or self._needs.sizes:
            self._grant = grant
        return True

    async def start(self) -> None:
        if self._grant is not None:
            granted = await self._grant(self._needs)
            if isinstance(granted, GpuRoom):
                self.room, granted = granted, await self._grant(self._part)
            assert not isinstance(granted, GpuRoom)
            self.granted = granted
        await self._gate.wait()
        if self.name == "broken":
            raise ModelError("it cannot be loaded")
        self.started = True

    def engine_state(self) -> EngineState:
        granted = self.granted or Need(0, self._estimate)
        return EngineState(
            pid=1, memory_bytes=MIB, estimate_bytes=granted.here, gpu_bytes=granted.gpus, loaded=self.started
        )

    async def close(self) -> None:
        self.closed = True


class Home:
    """A store with models ``a``, ``b``, ``c`` and ``broken``, and the residency over it."""

    def __init__(self, directory: Path, **settings: object) -> None:
        store = ModelStore(directory)
        for name in ("a", "b", "c", "broken"):
            stock(store, name, write_bert(directory / name, name=name).read_bytes())
        self.gate = asyncio.Event()
        self.gate.set()
        self.made: list[Model] = []
        self.entries: list[LlamaCppEntry] = []
        self.needs = Needs()
        self.part = Needs()
        """What the next models need, as their processes say: whole, and with the layers that fit."""
        self.progresses: list[Progress] = []
        self.told: list[tuple[str, str]] = []
        self.router = Router([Mock("main")])
        wanted = {"models_home": directory, "keep_alive_secs": 0.0, **settings}
        self.models = Residency(
            self.router,
            self.build,
            Settings(**wanted),
            lambda name, state, _: self.tell(name, state),  # type: ignore[arg-type]
        )

    def tell(self, name: str, state: str) -> None:
        if (name, state) not in self.told[-1:]:
            self.told.append((name, state))

    def build(
        self, settings: Settings, entry: BackendEntry, progress: Progress, cancelled: threading.Event
    ) -> Model:
        assert isinstance(entry, LlamaCppEntry)
        self.entries.append(entry)
        self.progresses.append(progress)
        card = Directory(self.router, settings).card(entry.name)
        ((_, estimate),) = memory.context_sizes(card, entry.n_ctx, settings.active_permits)
        self.made.append(Model(entry.name, self.gate, self.needs, self.part, estimate))
        return self.made[-1]

    def need(self, name: str) -> int:
        """The estimated memory of a model for one request."""
        return Directory(self.router, self.models.settings).card(name).memory_bytes(48, 1)

    async def use(self, name: str, deadline: float | None = None, stay: Stay = USUAL) -> None:
        async with self.models.hold(name, deadline, stay) as given, AsyncExitStack() as held:
            held.enter_context(self.router.dispatch(model=given))

    def resident(self) -> set[str]:
        return {member.backend.name for member in self.router.all_members()} - {"main"}
