"""``inferd service``: runs the daemon as a user service of systemd or launchd.

The files that the command writes contain a mark. Files without this mark are never replaced or removed. The
service gets its settings from the config file. The service does not get the environment variables of this
command. The command prints the names of inferd's variables that are set.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from pathlib import Path

import click

from inferd.cli import units
from inferd.cli.background import log_path
from inferd.cli.helpful import HelpfulGroup
from inferd.cli.say import say
from inferd.config import paths, sources
from inferd.config.settings import OPTIONS, Settings
from inferd.errors import LockHeld, ServiceError, UsageError
from inferd.private import make_private_dirs
from inferd.store.runtime import explained, holder, is_held, make_private_dir

MARK = "Written by `inferd service install`; `inferd service uninstall` removes it."

PATIENCE_SECS = 60.0
"""The time-out for a call of the service manager, which does not wait until the model is loaded."""


@click.group("service", cls=HelpfulGroup, context_settings={"help_option_names": ["-h", "--help"]})
def service_command() -> None:
    """Run the daemon as a service of your user."""


@service_command.command("install")
@click.option(
    "--on-demand",
    is_flag=True,
    help=("Start the daemon when the first client connects, and stop it when it is idle."),
)
@click.option("--gpu", is_flag=True, help="Omit the restrictions that GPU drivers do not work with.")
def install_command(on_demand: bool, gpu: bool) -> None:
    """Start the daemon now, at each login and after a crash."""
    settings = sources.read({}).settings
    manager = _manager()
    if is_held(settings.lock) and not manager.is_running():
        raise LockHeld(
            f"a daemon runs already, as process {holder(settings.lock) or 'unknown'};"
            " stop it first: inferd stop"
        )
    for path in manager.install(settings, on_demand=on_demand, gpu=gpu):
        say(f"wrote {path}")
    _say_what_it_does_not_see()
    say(
        "the daemon starts with its first client"
        if on_demand
        else "the daemon starts; `inferd watch` shows how"
    )
    say(manager.hint)


@service_command.command("uninstall")
def uninstall_command() -> None:
    """Stop the service and remove its files."""
    removed = _manager().uninstall()
    for path in removed:
        say(f"removed {path}")
    if not removed:
        say("no service is installed")


class Manager(ABC):
    """The service manager of the user. All methods raise ServiceError."""

    hint: str

    def __init__(self, program: str) -> None:
        self._program = program

    @abstractmethod
    def install(self, settings: Settings, *, on_demand: bool, gpu: bool) -> list[Path]:
        """Writes the files of the service and starts the service. Returns the files."""

    @abstractmethod
    def uninstall(self) -> list[Path]:
        """Stops the service and removes its files. Returns the files."""

    @abstractmethod
    def is_running(self) -> bool:
        """Whether the daemon runs as the service."""

    def _try(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(  # noqa: S603 - the words are our own
                [self._program, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=PATIENCE_SECS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ServiceError(f"{self._program} cannot be run: {error}") from None

    def _do(self, *arguments: str, advice: str = "") -> None:
        done = self._try(*arguments)
        if done.returncode:
            name = Path(self._program).name
            reason = done.stderr.strip().rpartition("\n")[2] or f"it ended with {done.returncode}"
            raise ServiceError(f"`{name} {' '.join(arguments)}` failed: {reason}{advice}")


_NO_MANAGER = (
    "; the systemd of your user runs after a login, but not after su or sudo; where it never runs, have"
    " another service manager run `inferd serve`"
)


class Systemd(Manager):
    """The user manager of systemd."""

    hint = "it ends when you log out, unless you run: loginctl enable-linger"

    def __init__(self, program: str) -> None:
        super().__init__(program)
        config = Path(os.environ.get("XDG_CONFIG_HOME", ""))
        directory = (config if config.is_absolute() else Path.home() / ".config") / "systemd" / "user"
        self._service = directory / "inferd.service"
        self._socket = directory / "inferd.socket"

    def install(self, settings: Settings, *, on_demand: bool, gpu: bool) -> list[Path]:
        self._do("--user", "list-units", "inferd.*", advice=_NO_MANAGER)
        wanted = {self._service: units.user_unit(_command(), gpu=gpu, on_demand=on_demand)}
        if on_demand:
            wanted[self._socket] = units.user_socket()
        for path in (self._service, self._socket):
            _check_ours(path)
        self.uninstall()
        for path, text in wanted.items():
            _write(path, f"# {MARK}\n{text}".encode())
        self._do("--user", "daemon-reload")
        self._do("--user", "--no-block", "enable", "--now", list(wanted)[-1].name)
        return list(wanted)

    def uninstall(self) -> list[Path]:
        there = [path for path in (self._socket, self._service) if path.exists()]
        for path in there:
            _check_ours(path)
        for path in there:
            self._do("--user", "disable", "--now", path.name)
            path.unlink()
        if there:
            self._do("--user", "daemon-reload")
        return there

    def is_running(self) -> bool:
        return self._try("--user", "is-active", "inferd.service").returncode == 0


class Launchd(Manager):
    """launchd, in the graphical session of the user."""

    hint = "it ends when you log out"

    def __init__(self, program: str) -> None:
        super().__init__(program)
        self._agent = Path.home() / "Library" / "LaunchAgents" / f"{units.LABEL}.plist"
        self._domain = f"gui/{os.getuid()}"

    def install(self, settings: Settings, *, on_demand: bool, gpu: bool) -> list[Path]:
        if on_demand:
            raise UsageError("--on-demand needs systemd; without it the daemon starts at login")
        _check_ours(self._agent)
        self.uninstall()
        log = log_path(settings)
        make_private_dir(log.parent)
        agent = units.launch_agent(_command(), log)
        _write(self._agent, agent.replace(b"<plist", f"<!-- {MARK} -->\n<plist".encode(), 1))
        self._do("bootstrap", self._domain, str(self._agent))
        return [self._agent]

    def uninstall(self) -> list[Path]:
        if not self._agent.exists():
            return []
        _check_ours(self._agent)
        if self.is_running():
            self._do("bootout", f"{self._domain}/{units.LABEL}")
        self._agent.unlink()
        return [self._agent]

    def is_running(self) -> bool:
        return self._try("print", f"{self._domain}/{units.LABEL}").returncode == 0


def _manager() -> Manager:
    for name, kind in (("launchctl", Launchd), ("systemctl", Systemd)):
        program = shutil.which(name)
        if program is not None:
            made: Manager = kind(program)
            return made
    raise ServiceError(
        "there is neither systemd nor launchd here; have your service manager run `inferd serve`"
    )


def _command() -> list[str]:
    """Returns the command that starts this installation from any directory."""
    return [sys.executable, "-m", "inferd", "serve"]


def _check_ours(path: Path) -> None:
    with explained(f"read {path}"):
        ours = not path.exists() or MARK.encode() in path.read_bytes()
    if not ours:
        raise ServiceError(f"{path} was not written by inferd; move it away first")


def _write(path: Path, content: bytes) -> None:
    with explained(f"write {path}"):
        make_private_dirs(path.parent)
        path.write_bytes(content)


def _say_what_it_does_not_see() -> None:
    names = {option.env for option in OPTIONS if option.env} | {"INFERD_CONFIG", "XDG_DATA_HOME"}
    given = sorted(name for name in names if os.environ.get(name))
    if given:
        say(
            f"note: {', '.join(given)} of this shell is not seen by the service;"
            f" put what it should use into {paths.config_path()}",
            err=True,
        )
