"""The memory of an attachment: its bytes are read once, into one buffer, which is freed."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.daemon_process import DaemonProcess, Wire, until
from tests.demo_model import demo_model
from tests.tiny_projector import write_vision_projector

SIZE = 20_000_000
WIDTH, HEIGHT = 2500, SIZE // 3 // 2500
RGB = WIDTH * HEIGHT * 3
KINDS = {
    "image": ({"kind": "image", "width": WIDTH, "height": HEIGHT}, b"\n" * RGB),
    "audio": ({"kind": "audio", "sample_rate": 16000}, b"\0" * SIZE),
    "file": ({"kind": "image", "mime": "image/png"}, b"\n{}" * (SIZE // 3)),
}


def resident(process: DaemonProcess, what: str) -> int:
    """Bytes; ``VmRSS`` is the present value, ``VmHWM`` the maximum since the last reset."""
    status = Path(f"/proc/{process.process.pid}/status").read_text()
    (kibibytes,) = re.findall(rf"^{what}:\s+(\d+) kB$", status, re.M)
    return int(kibibytes) * 1024


def send(wire: Wire, attachment: dict[str, object], data: bytes) -> None:
    block = {"type": attachment["kind"], "attachment_id": "a"}
    request = {
        "max_tokens": 1,
        "messages": [{"role": "user", "content": [block]}],
        "attachments": [{**attachment, "id": "a", "size": len(data)}],
    }
    wire.send(json.dumps(request).encode() + b"\n")
    wire.send(data)
    assert [frame["type"] for frame in wire.frames()][-1] == "done"


@pytest.mark.parametrize("kind", KINDS)
def test_an_attachment_costs_little_more_than_its_size(
    daemon: Callable[..., DaemonProcess], kind: str
) -> None:
    attachment, data = KINDS[kind]
    process = daemon().wait_ready()
    with process.connect("v2") as wire:
        send(wire, KINDS["file"][0], b"x")  # what is loaded on first use
        Path(f"/proc/{process.process.pid}/clear_refs").write_text("5")  # resets VmHWM
        before = resident(process, "VmRSS")
        for _ in range(3):
            send(wire, attachment, data)
        assert resident(process, "VmHWM") - before <= 1.2 * len(data)
        until(lambda: resident(process, "VmRSS") - before <= 0.1 * len(data))


def test_the_engine_does_not_copy_pixels(daemon: Callable[..., DaemonProcess], tmp_path: Path) -> None:
    """Besides the bytes from the client, only llama.cpp holds copies: two."""
    projector = write_vision_projector(tmp_path / "projector.gguf", 576)
    entry = {"kind": "llamacpp", "name": "eyes", "model_path": str(demo_model()), "mmproj": str(projector)}
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"backends": [{**entry, "n_ctx": 256}], "engine": {"threads": 1}}))
    process = daemon(backend="llamacpp", config=config).wait_ready()
    attachment, data = KINDS["image"]
    with process.connect("v2") as wire:
        send(wire, {"kind": "image", "width": 10, "height": 10}, b"x" * 300)
        Path(f"/proc/{process.process.pid}/clear_refs").write_text("5")
        before = resident(process, "VmRSS")
        send(wire, attachment, data)
        assert resident(process, "VmHWM") - before <= 3.2 * len(data)
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
