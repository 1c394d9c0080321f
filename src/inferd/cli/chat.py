"""``inferd chat``: a conversation in the terminal."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from inferd.cli import background
from inferd.cli.options import Target, connection_options, sampling, sampling_options, target
from inferd.cli.output import Answer, check_done
from inferd.cli.progress import Progress
from inferd.cli.say import say
from inferd.client import Done
from inferd.config import paths
from inferd.controls import one_line
from inferd.errors import InferdError, UsageError
from inferd.store.runtime import ensure_private_dir

_HELP = """\
/help          this text
/system TEXT   set the system message and start over; without TEXT, remove it
/reset         start over
/exit          leave, as Ctrl-D does
Ctrl-C ends an answer early."""


@click.command("chat")
@sampling_options
@connection_options
def chat_command(system: str | None, address: str | None, api_key_file: Path | None, **options: Any) -> None:
    """Talk with the model. Starts a daemon in the background when none runs."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("a chat needs a terminal; use `inferd run` in scripts and pipes")
    chat = Chat(target(address, api_key_file), system, sampling(**options))
    chat.connect()
    _converse(chat)


class Chat:
    """The conversation so far; a turn is added when it has been answered, if only in part."""

    def __init__(self, daemon: Target, system: str | None, choices: dict[str, Any]) -> None:
        self._daemon = daemon
        self._choices = choices
        self._client = daemon.client()
        self.system = system
        self.turns: list[dict[str, str]] = []

    def connect(self) -> None:
        """Makes sure of the daemon, which is started again if it has left meanwhile."""
        with Progress() as progress:
            background.connect(self._client, self._daemon, progress.frame)

    def ask(self, text: str) -> None:
        """Writes the answer to ``text`` as it comes. Ctrl-C ends it, an error is told: the chat goes on."""
        question = {"role": "user", "content": text}
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        said: list[str] = []
        answer = Answer(sys.stdout)
        try:
            self.connect()
            with self._client.generate([*system, *self.turns, question], **self._choices) as events:
                for event in events:
                    if isinstance(event, Done):
                        answer.end()
                        check_done(event)
                    else:
                        said.append(event.content)
                        answer.write(event.content)
        except KeyboardInterrupt:
            answer.end()
            say("(ended)", err=True)
        except InferdError as error:
            answer.end()
            say(f"inferd: {one_line(error)}", err=True)
        if said:
            self.turns += [question, {"role": "assistant", "content": "".join(said)}]

    def command(self, line: str) -> bool:
        """Obeys a line that starts with a slash; ``False`` ends the chat."""
        word, _, rest = line.partition(" ")
        if word == "/exit":
            return False
        if word in ("/reset", "/system"):
            self.turns.clear()
            if word == "/system":
                self.system = rest.strip() or None
            say("(a new conversation)", err=True)
        else:
            say(_HELP if word == "/help" else f"{word} is no command; /help lists them", err=True)
        return True

    def close(self) -> None:
        self._client.close()


def _converse(chat: Chat) -> None:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory

    history = _history_file()
    prompt: PromptSession[str] = PromptSession(history=FileHistory(str(history)))
    say("/help lists the commands; Ctrl-D leaves.", err=True)
    try:
        while True:
            try:
                line = prompt.prompt("> ").strip()
                if line.startswith("/"):
                    if not chat.command(line):
                        return
                elif line:
                    chat.ask(line)
            except KeyboardInterrupt:
                continue
            except EOFError:
                return
    finally:
        chat.close()


def _history_file() -> Path:
    """The history, made for its owner's eyes only."""
    path = paths.history_path()
    ensure_private_dir(path.parent)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    path.chmod(0o600)
    return path
