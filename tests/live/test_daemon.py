"""The daemon's life: boot in order, readiness, signals at any point, drain, idle exit."""

from __future__ import annotations

import os
import signal
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.daemon_process import DaemonProcess, Wire, until

Start = Callable[..., DaemonProcess]
ASK = {"id": "q", "messages": [{"role": "user", "content": "hi"}]}
TOKEN = b'{"type":"token","id":"q","content":"mock-response"}\n'
DONE = (
    b'{"type":"done","id":"q","content":"mock-response","usage":{"prompt_tokens":0,"completion_tokens":1},'
    b'"stop_reason":"end","backend":"mock","model":"mock"}\n'
)


def test_a_request_is_answered(daemon: Start) -> None:
    process = daemon().wait_ready()
    with process.connect() as wire:
        wire.send(ASK)
        assert wire.line() == TOKEN
        assert wire.line() == DONE
