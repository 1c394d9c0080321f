"""``inferd rpc-worker``: computes some layers of a model for another host."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time

import click

from inferd.cli.numbers import WholeNumber
from inferd.cli.say import say
from inferd.config.addresses import Workers
from inferd.engine.local.child.spawned import environment
from inferd.engine.local.rpc import workers
from inferd.errors import ConfigError, ModelError

_PROGRAM = "inferd.engine.local.rpc.serve"
_BACK_OFF_SECS = (0.0, 1.0, 5.0, 30.0)
_HEALTHY_SECS = 10.0
_START_SECS = 60.0


@click.command("rpc-worker")
@click.option(
    "--listen",
    metavar="IP:PORT",
    default=workers.DEFAULT_ADDRESS,
    show_default=True,
    help="The IPv4 address to listen on.",
)
@click.option(
    "--threads",
    type=WholeNumber(0, 512),
    metavar="N",
    default=0,
    show_default=True,
    help="The number of CPU threads. 0 means one for each core.",
)
@click.option(
    "--i-know",
    is_flag=True,
    help="Listen on an unprotected network, where everyone can use this worker and read its traffic.",
)
def rpc_worker_command(listen: str, threads: int, i_know: bool) -> None:
    """Compute some layers of a model for an inferd on another host.

    On the other host, list this worker in the key `rpc` of the model's entry. The worker uses the GPUs of
    this machine, or else its CPU. It serves one model at a time and stores nothing.

    The protocol has no encryption and no authentication. Therefore the worker listens only on a loopback
    address, to which SSH can forward a port, or on the address of a WireGuard interface. `--i-know` allows
    other addresses.
    """
    _check(listen, i_know)
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    in_a_row = 0
    while True:
        started = time.monotonic()
        with subprocess.Popen(  # noqa: S603 - our own program, with a checked address
            [sys.executable, "-m", _PROGRAM, listen, str(threads)],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        ) as process:
            try:
                _wait_until_served(listen, process)
                code = process.wait()
            finally:
                process.kill()
        in_a_row = 0 if time.monotonic() - started >= _HEALTHY_SECS else in_a_row + 1
        end = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        say(f"the worker ended ({end}) and is started again", err=True)
        time.sleep(_BACK_OFF_SECS[min(in_a_row, len(_BACK_OFF_SECS) - 1)])


def _check(listen: str, i_know: bool) -> None:
    try:
        (listen,) = Workers().parse(listen)
    except ValueError as error:
        raise click.BadParameter(f"must be one of {error}", param_hint="--listen") from None
    host, port = workers.parts_of(listen)
    if not i_know and not workers.is_protected(host):
        raise ConfigError(
            f"{host} is neither a loopback address nor that of a WireGuard interface, and the protocol has no"
            " encryption and no authentication; listen on 127.0.0.1 and forward the port through SSH, or add"
            " --i-know"
        )
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except OSError as error:
            raise ConfigError(f"cannot listen on {listen}: {error.strerror}") from None


def _wait_until_served(listen: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_SECS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            workers.reach(listen, 0.5, 1.0)
        except ModelError:
            continue
        else:
            say(f"computing for engines at {listen}", err=True)
            return


def _stop(number: int, frame: object) -> None:
    sys.exit(0)
