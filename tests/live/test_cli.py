"""The real commands, each in a process of its own, against a real daemon. The model is real where it
matters."""

from __future__ import annotations

import concurrent.futures
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from inferd.client import AdminClient
from inferd.config.settings import DEFAULT_MODEL
from inferd.store.runtime import Lock
from tests.daemon_process import DaemonProcess, until
from tests.shell import INFERD, PATIENCE_SECS, Shell, Terminal

Daemon = Callable[..., DaemonProcess]


@pytest.fixture
def shell(short_dir: Path) -> Iterator[Shell]:
    """A user with the mock backend and no daemon yet; a started daemon is stopped afterwards."""
    user = Shell(short_dir, INFERD_BACKEND="mock")
    yield user
    user.stop()


def beside(daemon: DaemonProcess, **env: str) -> Shell:
    """The user of the daemon."""
    return Shell(daemon.dir, **env)


def finish(process: subprocess.Popen[bytes]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=PATIENCE_SECS)
    return process.returncode, out.decode(), err.decode()


def read_exactly(process: subprocess.Popen[bytes], size: int) -> bytes:
    assert process.stdout is not None
    return process.stdout.read(size)


# A daemon in the background.


def test_differing_settings_of_a_running_daemon_are_named(shell: Shell) -> None:
    config = shell.home / ".inferd" / "config.json"
    assert shell("run", "hi").returncode == 0
    assert shell("run", "hi", INFERD_MODEL=DEFAULT_MODEL, INFERD_BACKEND="mock").stderr == ""
    told = shell("run", "hi", INFERD_MODEL="other", INFERD_QUEUE_DEPTH="3")
    assert told.returncode == 0
    assert told.stderr.startswith("(the running daemon has another INFERD_MODEL and INFERD_QUEUE_DEPTH; ")
    assert len(told.stderr.splitlines()) == 1
    config.write_text('{"engine": {"active_permits": 2}}')
    config.chmod(0o600)
    assert "has another config `engine.active_permits`" in shell("run", "hi").stderr
    assert shell("run", "hi", "--address", str(shell.runtime / "infer.sock")).stderr == ""


def test_run_starts_a_daemon_that_the_next_run_finds(shell: Shell) -> None:
    first = shell("run", "hi")
    assert (first.returncode, first.stdout) == (0, "mock-response\n")
    assert first.stderr in ("", "Looking for the model …\n")
    pid = shell.pid()
    assert os.getpgid(pid) == os.getsid(pid) == pid
    assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")
    second = shell("run", "-", stdin="hi")
    assert (second.returncode, second.stdout, second.stderr) == (0, "mock-response\n", "")
    assert shell.pid() == pid
    status = json.loads(shell("status", "--json").stdout)
    assert (status["running"], status["pid"], status["status"]) == (True, pid, "ready")
    assert [backend["backend"] for backend in status["backends"]] == ["mock"]
    assert "ready" in shell("status").stdout
    stopped = shell("stop")
    assert stopped.stdout == f"the daemon, process {pid}, has stopped\n"
    gone = shell("status")
    assert (gone.returncode, gone.stdout) == (3, "")
    assert gone.stderr.startswith("inferd: no daemon is running")
    assert gone.stderr.count("\n") == 1


def test_runs_at_the_same_moment_share_one_daemon(shell: Shell) -> None:
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: shell("run", "hi"), range(4)))
    assert [(each.returncode, each.stdout) for each in done] == [(0, "mock-response\n")] * 4
    assert len(shell.events("starting")) == 1


def test_run_waits_for_a_daemon_that_is_just_ending(shell: Shell) -> None:
    """The old daemon holds the lock but does not answer; a new one can start only after it ends."""
    shell.runtime.mkdir(mode=0o700)
    lock = Lock.acquire(shell.runtime / "inferd.lock")
    process = shell.start("run", "hi")
    until(lambda: (shell.runtime / "start.lock").exists())
    assert process.poll() is None
    lock.release()
    assert finish(process)[:2] == (0, "mock-response\n")


@pytest.mark.parametrize(
    ("env", "reason"),
    [
        ({"INFERD_BACKEND": "llamacpp", "INFERD_MODEL": "nonsense"}, "no model 'nonsense'"),
        ({"INFERD_BACKEND": "llamacpp", "INFERD_MODEL_PATH": "/nowhere"}, "/nowhere"),
        ({"INFERD_GROUP": "no such group"}, "no such group"),
    ],
)
def test_a_daemon_that_cannot_start_says_why(env: dict[str, str], reason: str, shell: Shell) -> None:
    failed = shell("run", "hi", **env)
    assert (failed.returncode, failed.stdout) == (1, "")
    last = failed.stderr.splitlines()[-1]
    assert last.startswith("inferd: ")
    assert reason in last
    until(lambda: not shell.is_running())  # it tells the reason before it exits


def test_the_background_daemon_stops_without_clients(shell: Shell) -> None:
    assert shell("run", "hi", INFERD_IDLE_EXIT_SECS="0.2").returncode == 0
    until(lambda: len(shell.events("stopped")) == 1)
    until(lambda: not shell.is_running())
    assert shell.events("stopping")[0]["idle_secs"] == 0.2


def test_relative_paths_mean_the_same_in_the_background(shell: Shell) -> None:
    env = {"INFERD_UDS": "here.sock", "INFERD_ADMIN_ADDR": "there.sock"}
    done = subprocess.run(
        [*INFERD, "run", "hi"], env={**shell.env, **env}, cwd=shell.home, capture_output=True, check=True
    )
    assert done.stdout == b"mock-response\n"
    assert (shell.home / "here.sock").is_socket()


# One answer.


def test_text_is_streamed(daemon: Daemon) -> None:
    served = daemon(mock={"tape": ["one ", "two ", "three"], "gate": True}).wait_ready()
    process = beside(served).start("run", "hi")
    served.release()
    assert read_exactly(process, 4) == b"one "
    served.release()
    assert read_exactly(process, 4) == b"two "
    served.release(10)
    assert finish(process) == (0, "three\n", "")


def test_ctrl_c_cancels_the_generation_and_not_the_daemon(daemon: Daemon) -> None:
    served = daemon(mock={"tape": ["one ", "two "], "gate": True}, active_permits=1).wait_ready()
    process = beside(served).start("run", "hi")
    served.release()
    assert read_exactly(process, 4) == b"one "
    process.send_signal(signal.SIGINT)
    assert finish(process) == (130, "", "")
    served.wait_event("request_cancelled")
    served.release(10)
    assert beside(served)("run", "hi").stdout == "one two \n"


def test_a_reader_that_leaves_ends_the_run_quietly(daemon: Daemon) -> None:
    served = daemon(mock={"tape": ["word "] * 10_000}).wait_ready()
    process = beside(served).start("run", "hi")
    assert read_exactly(process, 5) == b"word "
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(PATIENCE_SECS) == 141


def test_json_is_one_object(daemon: Daemon) -> None:
    served = daemon(mock={"tape": ["grü", "ße"]}).wait_ready()
    done = beside(served)("run", "--json", "hi")
    answer = json.loads(done.stdout)
    assert (answer["content"], answer["stop_reason"], answer["backend"]) == ("grüße", "end", "mock")
    assert done.stdout.count("\n") == 1


def test_errors_have_their_exit_codes(daemon: Daemon) -> None:
    served = daemon(mock={"gate": True}, active_permits=1, queue_depth=0).wait_ready()
    user = beside(served)
    running = user.start("run", "hi")
    with AdminClient(served.admin, timeout=PATIENCE_SECS) as admin:
        until(lambda: len(admin.status().running) == 1)
    full = user("run", "hi")
    assert (full.returncode, full.stderr) == (4, "inferd: queue full\n")
    served.release(10)
    assert finish(running)[0] == 0
    bad = user("run", "hi", "--temperature", "1000")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert "temperature" in bad.stderr
    refused = user("run", "hi", "--model", "none")
    assert (refused.returncode, refused.stdout) == (5, "")
    away = user("run", "hi", "--address", str(served.dir / "none"))
    assert away.returncode == 3


def test_a_daemon_that_stops_mid_answer_is_reported(daemon: Daemon) -> None:
    served = daemon(mock={"tape": ["one ", "two "], "drop_after": 1}).wait_ready()
    broken = beside(served)("run", "hi")
    assert (broken.returncode, broken.stdout) == (4, "one ")
    assert broken.stderr == "inferd: backend ended stream without terminal frame\n"


def test_a_daemon_crash_is_reported(daemon: Daemon) -> None:
    served = daemon(mock={"tape": ["one ", "two "], "gate": True}).wait_ready()
    process = beside(served).start("run", "hi")
    served.release()
    assert read_exactly(process, 4) == b"one "
    served.kill()
    code, _, err = finish(process)
    assert code == 3
    assert "before the answer was complete" in err


def test_over_tcp_with_a_key(daemon: Daemon, tmp_path: Path) -> None:
    served = daemon(tcp="127.0.0.1:0", api_key="right").wait_ready()
    address = f"tcp://{served.wait_event('ready')[0]['address']}"
    user = beside(served)
    done = user("run", "hi", "--address", address, INFERD_API_KEY="right")
    assert (done.returncode, done.stdout) == (0, "mock-response\n")
    (tmp_path / "key").write_text("right\n")
    done = user("run", "hi", "--address", address, "--api-key-file", str(tmp_path / "key"))
    assert done.returncode == 0
    refused = user("run", "hi", "--address", address, INFERD_API_KEY="wrong")
    assert refused.returncode == 3
    assert "check the API key" in refused.stderr
    for command in ("run", "hi"), ("start",):
        elsewhere = user(*command)
        assert elsewhere.returncode == 3
        assert "the daemon that runs serves text at another address" in elsewhere.stderr


# Boot and shutdown.


def test_run_shows_the_loading_and_then_answers(daemon: Daemon) -> None:
    served = daemon(mock={"hold": "build"})
    served.wait_for("loading_model")
    process = beside(served).start("run", "hi")
    assert process.stderr is not None
    assert process.stderr.readline() == "Looking for the model …\n".encode()
    served.release()
    assert finish(process)[:2] == (0, "mock-response\n")


def test_ctrl_c_during_a_load_ends_the_wait_and_not_the_daemon(daemon: Daemon) -> None:
    served = daemon(mock={"hold": "build"})
    served.wait_for("loading_model")
    process = beside(served).start("run", "hi")
    assert process.stderr is not None
    process.stderr.readline()
    process.send_signal(signal.SIGINT)
    status, out, said = finish(process)
    assert (status, out) == (130, "")
    assert "the daemon keeps loading" in said
    served.release()
    served.wait_ready()


def test_stop_lets_a_running_answer_finish(daemon: Daemon) -> None:
    served = daemon(mock={"tape": ["one ", "two"], "gate": True}).wait_ready()
    user = beside(served)
    answer = user.start("run", "hi")
    served.release()
    assert read_exactly(answer, 4) == b"one "
    stopping = user.start("stop")
    served.wait_for("draining")
    assert stopping.poll() is None
    served.release(10)
    assert finish(answer) == (0, "two\n", "")
    assert finish(stopping)[0] == 0
    assert served.wait() == 0


def test_watch_follows_a_daemon_to_its_end(daemon: Daemon) -> None:
    served = daemon(mock={"hold": "ready"})
    served.wait_for("capabilities")
    watching = beside(served).start("watch", "--json")
    assert watching.stdout is not None
    seen = [json.loads(watching.stdout.readline())["status"]]
    served.release()
    while seen[-1] != "ready":
        seen.append(json.loads(watching.stdout.readline())["status"])
    served.signal(signal.SIGTERM)
    assert served.wait() == 0
    code, out, err = finish(watching)
    seen += [json.loads(line)["status"] for line in out.splitlines()]
    assert (seen[0], seen[-2:], code, err) == ("capabilities", ["ready", "draining"], 0, "")


def test_serve_and_doctor(daemon: Daemon) -> None:
    served = daemon().wait_ready()
    checks = json.loads(beside(served, INFERD_BACKEND="mock")("doctor", "--json").stdout)["checks"]
    found = {check["name"]: check for check in checks}
    assert {check["state"] for check in checks} == {"ok"}, checks
    assert found["daemon"]["detail"] == "runs: ready"
    assert found["inference socket"]["detail"].endswith("infer.sock answers")
    assert found["lock"]["detail"].endswith(f"held by process {served.process.pid}")


def test_a_second_daemon_is_refused(daemon: Daemon) -> None:
    served = daemon().wait_ready()
    second = beside(served)("serve", INFERD_LOG="off")
    lock = served.dir / "inferd" / "inferd.lock"
    assert second.returncode == 1
    assert second.stderr == f"inferd: another inferd-daemon already holds the lock at {lock}\n"


def test_a_waiting_request_shows_its_reason(daemon: Daemon) -> None:
    served = daemon(mock={"tape": ["one two."], "gate": True}, active_permits=1).wait_ready()
    user = beside(served)
    with served.connect() as first:
        first.send({"id": "first", "messages": [{"role": "user", "content": "hi"}]})
        served.wait_event("connection_accepted")
        with Terminal(user, "run", "hi") as terminal:
            terminal.expect("1st in the queue, ")
            served.release(2)
            terminal.expect("waiting for the answer, ")  # the mock does not know the share of the prompt
            served.release(2)
            terminal.expect("\rone two.")
            assert terminal.wait() == 0


# A conversation.


def test_chat(daemon: Daemon) -> None:
    served = daemon(mock={"tape": ["one ", "two."], "gate": True}, active_permits=1).wait_ready()
    user = beside(served)
    with Terminal(user, "chat") as terminal:
        terminal.expect("Ctrl-D leaves.")
        terminal.expect(">")
        served.release(3)
        terminal.type("hello\r")
        terminal.expect("one two.")
        terminal.expect(">")
        terminal.type("/help\r")
        terminal.expect("Ctrl-C ends an answer early")
        terminal.expect(">")
        terminal.type("/nonsense\r")
        terminal.expect("/nonsense is not a command")
        terminal.expect(">")
        terminal.type("again\r")
        served.release()
        terminal.expect("one ")
        terminal.type("\x03")
        terminal.expect("(ended)")
        served.wait_event("request_cancelled")
        terminal.expect(">")
        terminal.type("\x03")
        terminal.expect(">")
        served.release(3)
        terminal.type("third\r")
        terminal.expect("one two.")
        terminal.expect(">")
        terminal.type("\x04")
        assert terminal.wait() == 0
    history = user.home / ".inferd" / "history"
    assert history.stat().st_mode & 0o777 == 0o600
    typed = [line for line in history.read_text().splitlines() if line.startswith("+")]
    assert typed == ["+hello", "+/help", "+/nonsense", "+again", "+third"]


def test_chat_restarts_a_stopped_daemon(shell: Shell) -> None:
    with Terminal(shell, "chat") as terminal:
        terminal.expect(">")
        terminal.type("hello\r")
        terminal.expect("mock-response")
        terminal.expect(">")
        pid = shell.pid()
        assert shell("stop").returncode == 0
        terminal.type("hello again\r")
        terminal.expect("mock-response")
        terminal.expect(">")
        assert shell.pid() != pid
        terminal.type("/exit\r")
        assert terminal.wait() == 0
