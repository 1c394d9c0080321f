"""The units and the property list, and their installation by ``inferd service``.

The service manager is a script that records its calls; systemd's own checker verifies the units if it is
installed.
"""

from __future__ import annotations

import os
import plistlib
import re
import shutil
import stat
import subprocess
import sys
from configparser import RawConfigParser
from pathlib import Path

import pytest

from inferd import cli
from inferd.cli import units
from inferd.store.runtime import Lock
from tests.cases import cases

PACKAGING = Path(__file__).parents[2] / "packaging"
COMMAND = [sys.executable, "-m", "inferd", "serve"]

PRIVILEGES = {
    "NoNewPrivileges": "yes",
    "LockPersonality": "yes",
    "MemoryDenyWriteExecute": "yes",
    "RestrictNamespaces": "yes",
    "RestrictRealtime": "yes",
    "RestrictSUIDSGID": "yes",
    "RestrictAddressFamilies": "AF_UNIX AF_INET AF_INET6",
    "SystemCallArchitectures": "native",
    "LimitCORE": "0",
    "UMask": "0077",
}
SYSTEM_PRIVILEGES = {
    **PRIVILEGES,
    "User": "inferd",
    "CapabilityBoundingSet": "",
    "PrivateDevices": "yes",
    "PrivateTmp": "yes",
    "ProtectHome": "yes",
    "ProtectSystem": "strict",
    "ProtectKernelModules": "yes",
    "ProtectKernelTunables": "yes",
    "ProtectControlGroups": "yes",
}
MOST_EXPOSURE = 20
"""The exposure of the system unit in tenths; a service without any of its options has 96."""


def section(unit: str) -> dict[str, str]:
    parser = RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(unit)
    return dict(parser["Service"])


@cases("path", units.files())
def test_the_files_for_packagers_are_those_of_this_version(path: str) -> None:
    assert (PACKAGING / path).read_bytes() == units.files()[path], "run: python -m inferd.cli.units packaging"


def test_packaging_has_no_other_files() -> None:
    folders = {name.split("/")[0] for name in units.files()}
    there = {str(path.relative_to(PACKAGING)) for path in PACKAGING.glob("*/**/*") if path.is_file()}
    assert {name for name in there if name.split("/")[0] in folders} == set(units.files())


def test_the_units_give_up_privileges() -> None:
    assert PRIVILEGES.items() <= section(units.user_unit(COMMAND)).items()
    assert SYSTEM_PRIVILEGES.items() <= section(units.system_unit(COMMAND)).items()
    assert "MemoryDenyWriteExecute" not in section(units.user_unit(COMMAND, gpu=True))


def test_restarts_after_a_crash_but_not_after_a_refusal() -> None:
    for unit in (units.user_unit(COMMAND), units.system_unit(COMMAND)):
        found = section(unit)
        assert (found["Restart"], found["RestartPreventExitStatus"]) == ("on-failure", "1 2")
        assert found["Type"] == "notify"
        assert int(found["WatchdogSec"]) > 0
        assert found["WorkingDirectory"] == "/"  # Python would import what lies in another
    agent = plistlib.loads(units.launch_agent(COMMAND, Path("/l")))
    assert agent["WorkingDirectory"] == "/"
    assert agent["KeepAlive"] == {"SuccessfulExit": False}


def test_the_property_list_says_the_same() -> None:
    content = units.launch_agent(COMMAND, Path("/log"))
    agent = plistlib.loads(content)
    assert agent["Label"] == units.LABEL
    assert agent["ProgramArguments"] == COMMAND
    assert agent["Umask"] == 0o077
    assert agent["HardResourceLimits"] == {"Core": 0}
    assert agent["StandardErrorPath"] == "/log"


@pytest.mark.skipif(shutil.which("plutil") is None, reason="plutil is not installed")
def test_plutil_accepts_the_property_list(tmp_path: Path) -> None:
    (tmp_path / "agent.plist").write_bytes(units.launch_agent(COMMAND, Path("/log")))
    subprocess.run(["plutil", "-lint", str(tmp_path / "agent.plist")], check=True)


def test_words_are_quoted_for_systemd() -> None:
    line = units.user_unit(["/a b/python", "100%", "$HOME", 'q"\\']).splitlines()
    assert 'ExecStart="/a b/python" 100%% $$HOME "q\\"\\\\"' in line


def analyze(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed")
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(home), "HOME": str(home)}
    return subprocess.run([program, *arguments], capture_output=True, text=True, env=environment, check=False)


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    (tmp_path / "inferd.service").write_text(units.system_unit(COMMAND))
    done = analyze("verify", str(tmp_path / "inferd.service"), home=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    (tmp_path / "inferd.service").write_text(units.user_unit(COMMAND, on_demand=True))
    (tmp_path / "inferd.socket").write_text(units.user_socket())
    files = [str(tmp_path / "inferd.service"), str(tmp_path / "inferd.socket")]
    done = analyze("--user", "verify", *files, home=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_systemd_finds_the_units_hardly_exposed(tmp_path: Path) -> None:
    path = tmp_path / "inferd.service"
    arguments = ["security", "--offline=true", "--no-pager", f"--threshold={MOST_EXPOSURE}", str(path)]
    path.write_text(units.system_unit(COMMAND))
    assert analyze(*arguments, home=tmp_path).returncode == 0
    path.write_text(re.sub(r"(?m)^(Protect|Private|Restrict|Capab|SystemCall).*\n", "", path.read_text()))
    assert analyze(*arguments, home=tmp_path).returncode != 0  # so the checker looks at it


# The effects of the command.


@pytest.fixture
def asked(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The calls of the scripted service manager, one per line; it refuses the lines of ``fails``."""
    monkeypatch.setenv("PATH", str(home / "bin"))
    return home / "asked"


def manager(home: Path, name: str) -> None:
    program = home / "bin" / name
    program.parent.mkdir(exist_ok=True)
    program.write_text(
        f'#!/bin/sh\necho "$*" >> {home}/asked\n'
        f'if /bin/grep -qsx -- "$*" {home}/fails; then echo "first\nno such thing" >&2; exit 1; fi\n'
    )
    program.chmod(0o755)


def test_install_writes_the_unit_and_starts_it(
    home: Path, asked: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    manager(home, "systemctl")
    monkeypatch.setenv("INFERD_N_CTX", "64")
    assert cli.main(["service", "install"]) == 0
    out, err = capsys.readouterr()
    unit = home / ".config/systemd/user/inferd.service"
    assert unit.read_text().endswith(units.user_unit(COMMAND))
    assert f"wrote {unit}\n" in out
    assert "note: INFERD_N_CTX, XDG_DATA_HOME of this shell is not seen" in err
    assert asked.read_text().splitlines()[-2:] == [
        "--user daemon-reload",
        "--user --no-block enable --now inferd.service",
    ]


def test_install_on_demand_starts_the_socket_in_its_place(home: Path, asked: Path) -> None:
    manager(home, "systemctl")
    assert cli.main(["service", "install", "--gpu"]) == 0
    assert cli.main(["service", "install", "--on-demand"]) == 0
    directory = home / ".config/systemd/user"
    assert "INFERD_IDLE_EXIT_SECS=900" in (directory / "inferd.service").read_text()
    assert "MemoryDenyWriteExecute" in (directory / "inferd.service").read_text()
    assert (directory / "inferd.socket").read_text().endswith(units.user_socket())
    lines = asked.read_text().splitlines()
    assert "--user disable --now inferd.service" in lines
    assert lines[-1] == "--user --no-block enable --now inferd.socket"


def test_uninstall_removes_the_files_of_install(
    home: Path, asked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manager(home, "systemctl")
    assert cli.main(["service", "install", "--on-demand"]) == 0
    assert cli.main(["service", "uninstall"]) == 0
    assert list((home / ".config/systemd/user").iterdir()) == []
    asked.unlink()
    capsys.readouterr()
    assert cli.main(["service", "uninstall"]) == 0
    assert capsys.readouterr().out == "no service is installed\n"
    assert not asked.exists()


def test_foreign_files_are_kept(home: Path, asked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manager(home, "systemctl")
    unit = home / ".config/systemd/user/inferd.service"
    unit.parent.mkdir(parents=True)
    unit.write_text("[Service]\n")
    for command in ("install", "uninstall"):
        assert cli.main(["service", command]) == 1
        assert "was not written by inferd" in capsys.readouterr().err
    assert unit.read_text() == "[Service]\n"


def test_a_daemon_outside_the_service_prevents_the_install(
    home: Path, asked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manager(home, "systemctl")
    (home / "fails").write_text("--user is-active inferd.service\n")
    with Lock.acquire(home / "inferd" / "inferd.lock"):
        assert cli.main(["service", "install"]) == 1
        assert "stop it first: inferd stop" in capsys.readouterr().err
        (home / "fails").unlink()
        assert cli.main(["service", "install"]) == 0  # the one that runs is the service


def test_a_manager_that_refuses_is_quoted(
    home: Path, asked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["service", "install"]) == 1
    assert "neither systemd nor launchd" in capsys.readouterr().err
    manager(home, "systemctl")
    (home / "fails").write_text("--user list-units inferd.*\n")
    assert cli.main(["service", "install"]) == 1
    err = capsys.readouterr().err
    assert err.startswith(
        "inferd: `systemctl --user list-units inferd.*` failed: no such thing; the systemd of "
    )
    assert not (home / ".config").exists()


def test_launchd_gets_the_property_list(home: Path, asked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manager(home, "launchctl")
    (home / "fails").write_text(f"print gui/{os.getuid()}/{units.LABEL}\n")
    assert cli.main(["service", "install"]) == 0
    path = home / "Library/LaunchAgents" / f"{units.LABEL}.plist"
    agent = plistlib.loads(path.read_bytes())
    assert agent["StandardErrorPath"] == str(home / ".inferd/logs/background.log")
    assert stat.S_IMODE((home / ".inferd/logs").stat().st_mode) == 0o700
    assert asked.read_text().splitlines()[-1] == f"bootstrap gui/{os.getuid()} {path}"
    (home / "fails").unlink()
    assert cli.main(["service", "uninstall"]) == 0
    assert not path.exists()
    assert asked.read_text().splitlines()[-1] == f"bootout gui/{os.getuid()}/{units.LABEL}"
    capsys.readouterr()
    assert cli.main(["service", "install", "--on-demand"]) == 2
    assert "needs systemd" in capsys.readouterr().err
