"""Resolves the model names in requests.

A request may name a model by its own name, by this name with ``:latest``, or by an alias of the configuration
(``claude-*`` = NAME). The name ``default`` means the daemon's first backend that supports the request. A
request may also contain the name of a backend, an alias of a backend, the name of a pool, or the name of a
model in the daemon's store. The daemon loads a model of the store when a request names it.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from inferd.http.failures import HttpFailure, UnknownModel

DEFAULT_ALIAS = "default"
LATEST = ":latest"

Task = Literal["v2", "embed", "rerank"]
NO_DAEMON = "no daemon is running; start one with `inferd serve`"
STOPPING = "the daemon is stopping"
LOADING = "the daemon is not ready; its models are being loaded"
_LACKING: dict[Task, str] = {
    "v2": "generates no text",
    "embed": "computes no embeddings",
    "rerank": "ranks no documents",
}
_TASKS: tuple[Task, ...] = ("v2", "embed", "rerank")


@dataclass(frozen=True, slots=True)
class Model:
    """A model that requests can name. A value that the daemon does not know is 0 or empty.

    ``n_ctx`` is the context size in tokens, ``size`` the size of the file in bytes, and ``width`` the length
    of an embedding. ``wire_name`` is the name in the bridge's requests to the daemon. For the models of a
    pool, ``wire_name`` is the name of the pool. If ``wire_name`` is empty, the daemon chooses its first
    backend that supports the request. ``on_demand`` is true if a request loaded the model. While the model is
    being loaded, ``load`` is the finished share of the current step, from 0 to 1. Otherwise ``load`` is
    ``None``.
    """

    name: str
    tasks: frozenset[Task]
    n_ctx: int = 0
    tools: bool = False
    thinking: bool = False
    vision: bool = False
    audio: bool = False
    wire_name: str = ""
    loaded: bool = True
    on_demand: bool = False
    load: float | None = None
    size: int = 0
    parameters: int = 0
    width: int = 0
    family: str = ""
    quantization: str = ""
    digest: str = ""

    @property
    def state(self) -> str:
        """``loaded``, ``loading``, or ``stored`` (not loaded)."""
        return "loaded" if self.loaded else "stored" if self.load is None else "loading"

    @property
    def capabilities(self) -> list[str]:
        """The model's capabilities in the terms of Ollama's API."""
        able = [("completion", "v2" in self.tasks), ("tools", self.tools), ("thinking", self.thinking)]
        able += [("vision", self.vision), ("audio", self.audio), ("embedding", "embed" in self.tasks)]
        return [name for name, has in able if has]


class Models:
    """The models that the daemon serves now. ``aliases`` maps patterns of model names to model names."""

    def __init__(self, aliases: Mapping[str, str]) -> None:
        self._aliases = dict(aliases)
        self._served: dict[Task, Model] = {}
        self._further: list[Model] = []
        self._names: list[tuple[set[str], Model]] = []
        """The names of each backend."""
        self._stored: list[Model] = []
        self._files: dict[str, Mapping[str, Any]] = {}
        self._entries: dict[str, str] = {}
        self._loads: dict[str, float] = {}
        self.ready = False
        self.why_not = NO_DAEMON
        """The reason why the daemon is not ready."""

    def update(self, frames: Sequence[Mapping[str, Any]]) -> None:
        """Replaces the backends. ``frames`` are the daemon's ``capabilities`` frames, one for each backend,
        in the order of the backends."""
        self._served = {}
        self._further = []
        self._names = []
        pinned: list[tuple[set[str], Model]] = []
        first: dict[Task, Mapping[str, Any]] = {}
        for frame in frames:
            for task in _TASKS:
                if frame.get(task):
                    first.setdefault(task, frame)
        for task, frame in first.items():
            self._served[task] = _of_frame(frame, [other for other in _TASKS if first.get(other) is frame])
        for frame in frames:
            name, pool = str(frame.get("name") or ""), str(frame.get("pool") or "")
            model = _of_frame(frame, filter(frame.get, _TASKS), pool or name)
            if all(chosen is not frame for chosen in first.values()):
                self._further.append(model)
            self._names.append(({model.name, pool, *frame.get("aliases", ())} - {""}, model))
            pinned.append(({name} - {""}, replace(model, wire_name=name)))
        self._names += pinned  # last, since a pool may have the name of one of its backends

    def update_stored(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Replaces the models that the daemon can load on request.

        Each model that generates text is listed with support for tools, because tools work with every
        template: if a template has no place for tools, the engine describes the tools in the system message.
        """
        self._stored = [
            Model(
                name=str(row["name"]),
                tasks=frozenset(
                    ("embed",) if row.get("embed") else ("rerank",) if row.get("rerank") else ("v2",)
                ),
                n_ctx=int(row.get("context") or 0),
                tools=not (row.get("embed") or row.get("rerank")),
                thinking=bool(row.get("thinking")),
                wire_name=str(row["name"]),
                loaded=bool(row.get("resident")),
                on_demand=bool(row.get("resident")),
            )
            for row in rows
        ]
        self._files = {str(row["name"]): row for row in rows}
        self._entries = {alias: str(row["name"]) for row in rows for alias in row.get("aliases", ())}

    def tell(self, name: str, state: str, details: Mapping[str, Any]) -> None:
        """Records an event with the progress or the end of loading a model."""
        if state == "loading":
            share = details.get("progress")
            self._loads[name] = float(share) if isinstance(share, float | int) else 0.0
        else:
            self._loads.pop(name, None)

    def all(self) -> list[Model]:
        """Returns all models, each once."""
        models: dict[str, Model] = {}
        for model in (*self._served.values(), *self._further, *self._stored):
            models.setdefault(model.name, self._with_file(model))
        return list(models.values())

    def _with_file(self, model: Model) -> Model:
        """Adds the metadata of the model's file and the progress of loading, if the file is in the store."""
        row = self._files.get(model.name)
        if row is None:
            return model
        return replace(
            model,
            load=self._loads.get(model.wire_name),
            size=int(row.get("bytes") or 0),
            parameters=int(row.get("parameters") or 0),
            width=int(row.get("width") or 0),
            family=str(row.get("architecture") or ""),
            quantization=str(row.get("quantisation") or ""),
            digest=str(row.get("sha256") or ""),
        )

    def find(self, name: str, task: Task | None = None) -> Model:
        """Returns the model that ``name`` means. With ``task``, returns only a model that supports this task.

        Raises UnknownModel if no model matches, and HttpFailure while the daemon is not ready.
        """
        if not self.ready:
            raise HttpFailure("unavailable", self.why_not)
        if task is not None and name == DEFAULT_ALIAS and task in self._served:
            return self._served[task]
        wanted = {name, name.removesuffix(LATEST), self._aliased(name), self._entries.get(name)}
        known = [model for model in self.all() if task is None or task in model.tasks]
        for model in known:
            if model.name in wanted or (name == DEFAULT_ALIAS and task is None):
                return model
        for names, model in self._names:
            if names & wanted and (task is None or task in model.tasks):
                return self._with_file(model)
        served = ", ".join(model.name for model in known) or "none for this endpoint"
        if task is not None and any(model.name in wanted for model in self.all()):
            raise UnknownModel(name, served, lacking=_LACKING[task])
        raise UnknownModel(name, served)

    def _aliased(self, name: str) -> str | None:
        return next(
            (model for pattern, model in self._aliases.items() if fnmatch.fnmatchcase(name, pattern)), None
        )


def _of_frame(frame: Mapping[str, Any], tasks: Iterable[Task], wire_name: str = "") -> Model:
    return Model(
        name=str(frame.get("model") or frame.get("name") or frame["backend"]),
        tasks=frozenset(tasks),
        n_ctx=int(frame.get("n_ctx") or 0),
        tools=bool(frame.get("tools")),
        thinking=bool(frame.get("thinking")),
        vision=bool(frame.get("vision")),
        audio=bool(frame.get("audio")),
        wire_name=wire_name,
    )
