"""The service definitions of the daemon: systemd units and a launchd property list.

``inferd service install`` uses the functions of this module. ``python -m inferd.cli.units packaging`` writes
the service definitions as files for packagers, and a test checks that the files in ``packaging/`` are up to
date.
"""

from __future__ import annotations

import plistlib
import sys
from collections.abc import Sequence
from pathlib import Path

LABEL = "org.inferd.daemon"
"""launchd's name of the daemon."""

ON_DEMAND_IDLE_SECS = 900
"""A daemon started by its first client stops when no client has been connected for this long."""

_LIFE = """\
WorkingDirectory=/
# After exit status 1 or 2 a restart would fail again: a person must correct the cause.
Restart=on-failure
RestartSec=1
RestartPreventExitStatus=1 2
# The daemon may download a model before it is ready.
TimeoutStartSec=infinity
# Running requests may take this long to finish.
TimeoutStopSec=60
WatchdogSec=60
"""

_HARDENED = """\
# The memory contains prompts and answers, which must not reach a core dump.
LimitCORE=0
LimitNOFILE=8192
TasksMax=512
UMask=0077
NoNewPrivileges=yes
LockPersonality=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallErrorNumber=EPERM
SystemCallFilter=@system-service
SystemCallFilter=~@privileged
# The process of a model restricts itself further, with these calls.
SystemCallFilter=seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self
# The daemon sets the group of its sockets.
SystemCallFilter=@chown
"""

_WITHOUT_GPU = """\
# Remove the next line to use a GPU: its driver generates code at run time.
MemoryDenyWriteExecute=yes
"""

_SYSTEM_ONLY = """\
CapabilityBoundingSet=
AmbientCapabilities=
DevicePolicy=closed
KeyringMode=private
PrivateDevices=yes
PrivateMounts=yes
PrivateTmp=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHome=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
ProtectSystem=strict
RemoveIPC=yes
"""


def user_unit(command: Sequence[str], *, gpu: bool = False, on_demand: bool = False) -> str:
    """Returns the unit of a user's daemon, for the service manager of that user.

    The unit sets no option that needs namespaces, because many systems deny namespaces to users and would not
    start a unit with such an option.
    """
    idle = f"Environment=INFERD_IDLE_EXIT_SECS={ON_DEMAND_IDLE_SECS}\n" if on_demand else ""
    return f"""\
[Unit]
Description=Local inference daemon

[Service]
Type=notify
ExecStart={_line(command)}
ExecReload=/bin/kill -HUP $MAINPID
{idle}{_LIFE}{_HARDENED}{"" if gpu else _WITHOUT_GPU}
[Install]
WantedBy=default.target
"""


def system_unit(command: Sequence[str]) -> str:
    """Returns the unit of a system-wide daemon, which runs as the user ``inferd`` (see :func:`sysusers`).

    The daemon keeps its state in /var/lib/inferd, its log in /var/log/inferd, and its sockets in /run/inferd.
    """
    return f"""\
[Unit]
Description=Local inference daemon
After=network.target

[Service]
Type=notify
ExecStart={_line(command)}
ExecReload=/bin/kill -HUP $MAINPID
User=inferd
Group=inferd
Environment=HOME=/var/lib/inferd XDG_RUNTIME_DIR=/run INFERD_LOG_DIR=/var/log/inferd INFERD_GROUP=inferd
StateDirectory=inferd
StateDirectoryMode=0700
LogsDirectory=inferd
LogsDirectoryMode=0700
# Members of the group may connect.
RuntimeDirectory=inferd
RuntimeDirectoryMode=0750
{_LIFE}{_HARDENED}{_WITHOUT_GPU}{_SYSTEM_ONLY}
[Install]
WantedBy=multi-user.target
"""


def user_socket() -> str:
    """Returns the socket unit by which systemd starts a user's daemon when its first client connects.

    The unit does not listen on the admin socket, since a status query must not start a daemon.
    """
    return """\
[Unit]
Description=Local inference daemon, started by its first client

[Socket]
ListenStream=%t/inferd/infer.sock
ListenStream=%t/inferd/infer.v2.sock
ListenStream=%t/inferd/inferd.sock
SocketMode=0660
DirectoryMode=0700
RemoveOnStop=yes

[Install]
WantedBy=sockets.target
"""


def sysusers() -> str:
    """Returns the definition of the user ``inferd`` for systemd-sysusers. The system unit runs as
    this user."""
    return 'u inferd - "Local inference daemon" /var/lib/inferd\n'


def launch_agent(command: Sequence[str], log: Path) -> bytes:
    """Returns the property list of a user's daemon, for launchd. The daemon's output goes to ``log``."""
    agent: dict[str, object] = {
        "Label": LABEL,
        "ProgramArguments": list(command),
        "WorkingDirectory": "/",
        "RunAtLoad": True,
        # Restarted after a crash, not after a stop.
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": 10,
        "ExitTimeOut": 60,
        "ProcessType": "Interactive",
        "Umask": 0o077,
        "HardResourceLimits": {"Core": 0},
        "SoftResourceLimits": {"Core": 0, "NumberOfFiles": 8192},
        "StandardOutPath": str(log),
        "StandardErrorPath": str(log),
    }
    return plistlib.dumps(agent, sort_keys=False)


def _line(command: Sequence[str]) -> str:
    return " ".join(_quoted(word) for word in command)


def _quoted(word: str) -> str:
    """Quotes one word of a command for a systemd unit. Doubles each ``%`` and ``$``, since systemd expands a
    single ``%`` or ``$``."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return escaped if escaped and not set(escaped) & set(" \t\"';") else f'"{escaped}"'


def files() -> dict[str, bytes]:
    """Returns the files for packagers: the path of each file below ``packaging/``, and its content."""
    texts = {
        "systemd/inferd.service": system_unit(["/usr/bin/inferd", "serve"]),
        "systemd/inferd.sysusers.conf": sysusers(),
        "systemd/user/inferd.service": user_unit(["/usr/bin/inferd", "serve"]),
        "systemd/user/inferd.socket": user_socket(),
    }
    made = {path: text.encode() for path, text in texts.items()}
    log = Path("/Library/Logs/inferd.log")
    made[f"launchd/{LABEL}.plist"] = launch_agent(["/usr/local/bin/inferd", "serve"], log)
    return made


if __name__ == "__main__":
    for path, content in files().items():
        target = Path(sys.argv[1], path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
