"""A request names a stored model: it is loaded in addition to the others, answers, and is reported."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from inferd.client import Client
from inferd.client.admin import AdminClient
from inferd.errors import RequestFailed
from inferd.store.gguf import read_card
from inferd.store.models import ModelStore
from inferd.wire import admin as wire
from tests.daemon_process import PATIENCE_SECS, DaemonProcess, until
from tests.http_bridge import free_port
from tests.shell import Shell
from tests.tiny_bert import write_bert
from tests.tiny_llama import random_llama, write_adapter, write_llama
from tests.tiny_model import stock

Start = Callable[..., DaemonProcess]


@pytest.fixture(scope="module")
def shared() -> Iterator[DaemonProcess]:
    """A daemon with a small configured embedding model; its store has two chat models and one for vectors."""
    with tempfile.TemporaryDirectory(prefix="i", dir="/tmp") as name:
        directory = Path(name)
        home, config = directory / "models", directory / "config.json"
        store = ModelStore(home)
        stock(store, "talker", random_llama().read_bytes())
        stock(store, "small", write_llama(directory / "small", keys={"general.file_type": 0}).read_bytes())
        stock(store, "vectors", write_bert(directory / "vectors", name="vectors").read_bytes())
        path = str(write_bert(directory / "own"))
        own = {"kind": "llamacpp", "name": "own", "model_path": path, "embed": True}
        config.write_text(json.dumps({"backends": [own], "models_home": str(home)}))
        options = {"backend": "", "config": config, "embed": "true", "MODELS_HOME": home}
        process = DaemonProcess(directory / "0", {**options, "threads": 1, "active_permits": 1}, {})
        yield process.wait_ready()
        assert not (problems := process.end()), problems


@pytest.fixture
def process(shared: DaemonProcess) -> Iterator[DaemonProcess]:
    """The shared daemon; models that a test has loaded are unloaded after it."""
    yield shared
    with AdminClient(shared.admin) as admin:
        for row in admin.status().backends:
            if row["name"] != "own":
                admin.unload(row["name"])


def ask(process: DaemonProcess, **more: Any) -> dict[str, Any]:
    with process.connect() as client:
        client.send({"id": "q", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, **more})
        return [*client.frames()][-1]


def test_a_model_of_the_store_answers_a_request_that_names_it(process: DaemonProcess) -> None:
    with AdminClient(process.admin) as admin:
        admin.snapshot()
        done = ask(process, model="talker")
        assert (done["type"], done["model"]) == ("done", "talker")
        told = []
        while told[-1:] != ["resident"]:
            event = next(admin.events())
            told += [event["state"]] if event["status"] == "model" and event["model"] == "talker" else []
        assert told[0] == "loading"
        rows = {row["name"]: row for row in admin.status().backends}
        assert rows["talker"]["engine"]["pid"] not in (0, rows["own"]["engine"]["pid"])
        assert ask(process, model="talker")["type"] == "done"
        again = {row["name"]: row for row in admin.status().backends}
        assert again["talker"]["engine"]["pid"] == rows["talker"]["engine"]["pid"]


def test_a_list_knows_what_a_template_supports_without_a_load(daemon: Start, tmp_path: Path) -> None:
    template = Path(__file__).parents[2] / "vendor/llama.cpp/models/templates/LFM2-8B-A1B.jinja"
    model = write_llama(tmp_path / "model.gguf", template=template.read_text())
    stock(ModelStore(tmp_path / "store"), "thinker", model.read_bytes())
    web = f"127.0.0.1:{free_port()}"
    process = daemon(MODELS_HOME=tmp_path / "store", http=web).wait_ready()

    def shown() -> Any:
        return httpx.post(f"http://{web}/api/show", json={"model": "thinker"}).json()["capabilities"]

    assert shown() == ["completion", "tools"]
    process.note_resources()  # the bridge is connected
    until(lambda: shown() == ["completion", "tools", "thinking"])
    row = rows_of(process)["thinker"]
    assert (row["tools"], row["thinking"], row["resident"]) == (True, True, False)


def rows_of(process: DaemonProcess) -> dict[str, dict[str, Any]]:
    """The daemon's list of models, by their names."""
    with process.subscribe() as admin:
        admin.send(wire.MODELS_REQUEST)
        while (frame := admin.frame())["status"] != "models":
            pass
    return {row["name"]: row for row in frame["models"]}


def test_a_request_waiting_for_its_model_gets_load_progress(process: DaemonProcess) -> None:
    shell = Shell(process.dir, INFERD_ADDRESS=str(process.uds), INFERD_ADMIN_ADDR=str(process.admin))
    for surface, content in (("v1", "hi"), ("v2", [{"type": "text", "text": "hi"}])):
        messages = [{"role": "user", "content": content}]
        request = {"id": "q", "messages": messages, "max_tokens": 1, "model": "small", "progress": True}
        with process.connect(surface) as client:
            client.send(request)
            loading, frames = [], client.frames()
            while (frame := next(frames))["type"] == "progress":
                loading.append(frame)
            assert [*frames][-1]["type"] == "done"
            client.send(request)  # it is there now
            assert {frame["type"] for frame in client.frames()} <= {"token", "frame", "done"}
        assert {(frame["id"], frame["model"]) for frame in loading} == {("q", "small")}
        phases = [frame["phase"] for frame in loading]
        assert (phases[0], phases[-1]) == ("waiting", "loaded")
        assert {"mmap", "kv_cache"} <= set(phases)
        assert any(0 < frame.get("progress", 0) <= 1 for frame in loading)
        assert str(process.dir.parent) not in json.dumps(loading)
        assert shell("unload", "small").returncode == 0
    run = shell("run", "--model", "small", "--max-tokens", "1", "hi")
    assert (run.returncode, "Loading the model" in run.stderr) == (0, True)
    assert "Loading" not in run.stdout


def test_without_a_name_the_models_of_the_configuration_serve(process: DaemonProcess) -> None:
    assert ask(process, model="talker")["type"] == "done"
    refused = ask(process)
    assert refused["type"] == "error"  # the daemon's own model makes vectors only
    assert refused["code"] != "model_not_found"


def test_every_surface_takes_a_name(process: DaemonProcess) -> None:
    with Client(process.uds) as client:
        assert client.embed("text", model="vectors").model == "vectors"
        assert client.embed("text").model != "vectors"
        with pytest.raises(RequestFailed, match="talker") as caught:
            client.embed("text", model="talker")
        assert caught.value.wire_code == "embed_unsupported"


def test_an_unknown_name_ends_the_request_and_not_the_connection(process: DaemonProcess) -> None:
    with process.connect() as client:
        for name, words in (("talkr", "did you mean 'talker'"), ("no-such-thing", "inferd list")):
            client.send({"id": "q", "messages": [{"role": "user", "content": "hi"}], "model": name})
            error = [*client.frames()][-1]
            assert (error["type"], error["code"]) == ("error", "model_not_found")
            assert words in error["message"]


def test_the_admin_socket_lists_available_models(process: DaemonProcess) -> None:
    rows = rows_of(process)
    assert set(rows) == {"small", "talker", "vectors"}
    assert (rows["small"]["quantisation"], rows["small"]["resident"]) == ("F32", False)
    assert rows["vectors"]["embed"] is True


def test_ps_lists_and_unload_removes_loaded_models(process: DaemonProcess) -> None:
    shell = Shell(process.dir, INFERD_ADMIN_ADDR=str(process.admin), INFERD_UDS=str(process.uds))
    size = random_llama().stat().st_size
    assert ask(process, model="talker", keep_alive=-1)["type"] == "done"
    loaded = {row["name"]: row for row in json.loads(shell("ps", "--json").stdout)["loaded"]}
    assert {"own", "talker"} == set(loaded)
    assert (loaded["talker"]["pinned"], loaded["talker"]["engine"]["file_bytes"]) == (True, size)
    heading, *lines = shell("ps").stdout.splitlines()
    assert heading.startswith("model")
    assert [line.split()[-1] for line in lines] == ["always", "always"]
    assert shell("unload", "talker").stdout == "talker is unloaded\n"
    again = shell("unload", "talker")
    assert (again.returncode, "'talker' is not loaded" in again.stderr) == (5, True)
    assert "keeps 'own' loaded" in shell("unload", "own").stderr
    assert shell("load", "vectors", "--keep-alive", "60").stdout == "vectors is loaded\n"
    row = next(line for line in shell("ps").stdout.splitlines() if line.startswith("vectors"))
    assert row.endswith(" s")
    assert shell("unload", "vectors").returncode == 0


def test_an_entry_gives_its_names_template_and_system_prompt(daemon: Start, short_dir: Path) -> None:
    template = short_dir / "template.jinja"
    template.write_text("{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}")
    entry = {"kind": "llamacpp", "model_path": str(random_llama()), "n_ctx": 256}
    backends = [
        {**entry, "name": "plain", "chat_template_file": str(template)},
        {
            **entry,
            "name": "pirate",
            "aliases": ["captain"],
            "preload": False,
            "system": "Answer\nas a pirate.",
        },
    ]
    config = short_dir / "config.json"
    config.write_text(json.dumps({"backends": backends}))
    process = daemon(backend="", config=config, threads=1, active_permits=1).wait_ready()
    with Client(process.uds) as client:

        def prompt(text: str, model: str, system: str = "") -> int:
            turns = [{"role": "system", "content": system}] if system else []
            asked = client.generate([*turns, {"role": "user", "content": text}], model=model, max_tokens=0)
            return asked.result().prompt_tokens

        words = "one two three"
        assert prompt(words, "plain") < prompt(words, "captain")
        own, none = prompt(words, "captain"), prompt(words, "captain", "x")
        assert own == prompt(words, "pirate", "Answer\nas a pirate.") != none
    process.note_resources()


def test_a_request_names_an_adapter_of_its_model(daemon: Start, short_dir: Path) -> None:
    path = str(write_adapter(short_dir / "pirate.gguf", seed=1))
    lora = [{"name": "pirate", "path": path}, {"name": "mute", "path": path, "scale": 0}]
    entry = {
        "kind": "llamacpp",
        "name": "chat",
        "model_path": str(random_llama()),
        "n_ctx": 512,
        "lora": lora,
    }
    config = short_dir / "config.json"
    config.write_text(json.dumps({"backends": [entry]}))
    web = f"127.0.0.1:{free_port()}"
    process = daemon(backend="", config=config, threads=1, active_permits=1, http=web).wait_ready()
    shell = Shell(process.dir, INFERD_ADDRESS=str(process.uds), INFERD_CONFIG=str(config))

    def answer(*options: str) -> str:
        run = shell("run", "--temperature", "0", "--max-tokens", "6", *options, "hi")
        assert run.returncode == 0, run.stderr
        return run.stdout

    plain = answer()
    pirate = answer("--lora", "pirate")
    assert pirate != plain
    assert answer("--lora", "mute") == answer() == plain
    hi = {"role": "user", "content": "hi"}
    body = {"model": "chat", "messages": [hi], "max_tokens": 6, "temperature": 0}
    with httpx.Client(base_url=f"http://{web}", timeout=PATIENCE_SECS, verify=False) as client:
        until(lambda: serves(client))
        told = client.post("/v1/chat/completions", json=body, headers={"X-Inferd-Lora": "pirate"}).json()
        assert told["choices"][0]["message"]["content"].strip() == pirate.strip()
        unknown = client.post("/v1/chat/completions", json=body, headers={"X-Inferd-Lora": "parrot"})
        assert (unknown.status_code, "it has pirate" in unknown.text) == (400, True)
    refused = ask(process, lora="parrot")
    assert (refused["code"], "it has pirate" in refused["message"]) == ("invalid_request", True)
    with AdminClient(process.admin) as admin:
        assert admin.snapshot().capabilities[0]["lora"] == ["pirate", "mute"]
    shown = json.loads(shell("show", "--json", str(random_llama())).stdout)
    assert shown["lora"] == ["pirate", "mute"]
    process.note_resources()


def serves(client: httpx.Client) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return client.get("/health").status_code == 200
    return False


@pytest.mark.parametrize(("models", "room"), [(2, 1), (5, 2)])
def test_models_share_the_room_for_fewer(models: int, room: int, daemon: Start, short_dir: Path) -> None:
    """Several clients of each model send their requests at the same time; each is answered by its model."""
    store = ModelStore(short_dir / "models")
    names = [f"m{number}" for number in range(models)]
    for number, name in enumerate(names):
        path = stock(store, name, write_llama(short_dir / "m.gguf", temp=number / 10).read_bytes())
    with path.open("rb") as file:
        need = read_card(file.fileno()).memory_bytes(8192, 1)
    options = {"active_permits": 1, "memory_budget_bytes": room * need + need // 2}
    process = daemon(MODELS_HOME=store.home, threads=1, **options).wait_ready()
    question = [{"role": "user", "content": "hi"}]
    with ExitStack() as open_wires:
        wires = [(name, open_wires.enter_context(process.connect())) for name in names * 3]
        for name, wire in wires:
            wire.send({"id": name, "messages": question, "max_tokens": 8, "model": name})
        for name, wire in wires:
            done = [*wire.frames()][-1]
            assert (done["type"], done.get("model")) == ("done", name), done
    loaded: set[str] = set()
    process.wait_event("model_resident", models)
    for event in process.events():
        if event["msg"] == "model_resident":
            loaded.add(event["model"])
            assert len(loaded) <= room
        elif event["msg"] == "model_unloaded":
            loaded.remove(event["model"])
    process.note_resources()


def test_a_damaged_model_costs_its_own_requests_and_nothing_else(daemon: Start, short_dir: Path) -> None:
    store = ModelStore(short_dir / "models")
    sound = write_llama(short_dir / "m.gguf").read_bytes()
    tensors = sound.index(b"blk.0.ffn_down")
    garbled = sound[:tensors] + bytes(range(256)) + sound[tensors + 256 :]
    for name, data in {
        "sound": sound,
        "cut": sound[:-5000],
        "garbled": garbled,
        "short": sound[:100],
    }.items():
        stock(store, name, data)
    process = daemon(MODELS_HOME=store.home, threads=1, active_permits=1).wait_ready()
    for _ in range(2):
        for name in ("cut", "garbled", "short"):
            refused = ask(process, model=name)
            assert (refused["type"], refused["code"]) == ("error", "internal"), refused
            assert "load" in refused["message"] or "damaged" in refused["message"]
    assert ask(process, model="sound")["type"] == "done"
    process.note_resources()
