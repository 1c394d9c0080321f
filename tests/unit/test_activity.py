"""The activity log of real requests: their callers (F-7) and their ends, but never their text."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from inferd import log
from inferd.engine.mock import Mock
from inferd.errors import BackendInternal, InvalidRequest
from inferd.serve import session
from inferd.serve.log_limit import Burst
from tests.in_process import serving

PROMPT, ANSWER, GRAMMAR = "a-private-question", "a-private-answer", "a-private-grammar"


class Activity:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._log = log.setup("trace", directory, stderr=False)

    def close(self) -> None:
        self._log.close()

    @property
    def text(self) -> str:
        self.close()
        return (self._directory / log.FILE_NAME).read_text()

    @property
    def entries(self) -> dict[str, dict[str, Any]]:
        """The last event of each name."""
        return {entry["msg"]: entry for entry in map(orjson.loads, self.text.splitlines())}


@pytest.fixture
def activity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Activity]:
    for name in ("accepted", "closed"):  # the connections of a test before are no flood of this one
        events = Burst(log.get("session"), f"connection_{name}", f"connections_{name}")
        monkeypatch.setattr(session, f"_{name}", events)
    running = Activity(tmp_path)
    yield running
    running.close()


def ask(request_id: str = "q7", **more: Any) -> dict[str, Any]:
    return {"id": request_id, "messages": [{"role": "user", "content": PROMPT}], **more}


async def converse(
    address: Path | str, mock: Mock, *requests: bytes | dict[str, Any], **options: Any
) -> None:
    async with serving(address, mock, **options) as server:
        client = await server.connect()
        await client.send(*requests)
        client.finish_sending()
        await client.rest()


async def test_a_request_is_recorded_with_its_process(activity: Activity, short_dir: Path) -> None:
    await converse(short_dir / "s", Mock(tape=(ANSWER,)), ask())
    us = {"peer": "unix", "peer_uid": os.getuid(), "peer_gid": os.getgid(), "peer_pid": os.getpid()}
    entries = activity.entries
    for name in ("connection_accepted", "request_done", "connection_closed"):
        assert us.items() <= entries[name].items()
    done = entries["request_done"]
    assert (done["req_id"], done["backend"], done["stop_reason"], done["surface"]) == (
        "q7",
        "mock",
        "end",
        "v1",
    )
    assert (done["prompt_tokens"], done["completion_tokens"], done["cached_tokens"]) == (0, 1, 0)
    assert {"conn", "queue_ms", "ttft_ms", "total_ms"} <= done.keys()


async def test_over_tcp_with_its_address(activity: Activity) -> None:
    await converse("127.0.0.1:0", Mock(), ask())
    for name in ("connection_accepted", "request_done", "connection_closed"):
        assert activity.entries[name]["peer"] == "tcp:127.0.0.1"


async def test_a_wrong_key_is_recorded_and_not_shown(activity: Activity) -> None:
    await converse("127.0.0.1:0", Mock(), {"type": "auth", "key": "wrong-key-9"}, api_key="right-key-9")
    assert activity.entries["tcp_auth_rejected"]["peer"] == "tcp:127.0.0.1"
    assert "key-9" not in activity.text


@pytest.mark.parametrize("failure", [None, BackendInternal("boom"), InvalidRequest(f"bad: {PROMPT}")])
async def test_neither_prompts_nor_answers_are_written_at_any_level(
    activity: Activity, short_dir: Path, failure: Exception | None
) -> None:
    requests = (
        ask(),
        ask(grammar=GRAMMAR, stop=[PROMPT]),
        ask(temperature=-1),
        ask(messages=[{"role": PROMPT, "content": PROMPT}]),
    )
    await converse(short_dir / "s", Mock(tape=(ANSWER, ANSWER), error=failure), *requests)
    await converse(short_dir / "t", Mock(), f'{{"messages":"{PROMPT}'.encode())
    await converse(short_dir / "u", Mock(), f'{{"x":"{PROMPT * 99}"}}\n'.encode(), max_frame_bytes=1024)
    assert "request_oversized" in activity.entries
    for word in (PROMPT, ANSWER, GRAMMAR):
        assert word not in activity.text
