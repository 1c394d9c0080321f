"""``inferd chat``: a conversation in the terminal."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from inferd.cli import background, inputs
from inferd.cli.options import (
    Target,
    attachment_options,
    attachments,
    connection_options,
    sampling,
    sampling_options,
    target,
    tool_choices,
    tool_options,
)
from inferd.cli.output import Answer, check_done
from inferd.cli.progress import Progress
from inferd.cli.say import say
from inferd.cli.waiting import Waiting
from inferd.client import Attachment, Done, MessageDone, Text, Token, ToolUse, tool_result
from inferd.client.protocol import OnProgress
from inferd.config import paths
from inferd.controls import one_line
from inferd.errors import InferdError, RequestFailed, UsageError
from inferd.store.runtime import ensure_private_dir

_HELP = """\
/help            this text
/system TEXT     set the system message and start over; without TEXT, remove it
/reset           start over
/retry           ask the last question again
/file PATH       put a text ahead of the next question
/image PATH      show a picture with the next question
/model NAME      use another model; without NAME, the daemon's default
/set NAME VALUE  set temperature, seed or another option of `inferd run`; without VALUE, reset it
/save PATH       write the conversation into a file
/load PATH       continue a saved conversation
/exit, /bye      leave (or Ctrl-D)
Double the slash of a question that starts with one. Ctrl-C ends an answer early."""

SETTABLE = (
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repeat_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "priority",
)

ResultOf = Callable[[ToolUse], str | None]
"""Asks the user for the result of a tool call. Returns ``None`` if the user gives none."""

_LEAVE = ("/exit", "/bye", "/quit", "exit", "quit")


@click.command("chat")
@sampling_options
@attachment_options
@tool_options
@connection_options
def chat_command(
    system: str | None,
    image: Sequence[Path],
    audio: Sequence[Path],
    file: Sequence[Path],
    tools: str | None,
    tool_choice: str | None,
    thinking: bool | None,
    address: str | None,
    api_key_file: Path | None,
    **options: Any,
) -> None:
    """Chat with the model. If no daemon runs, start one in the background.

    Pictures, sounds and files are sent with the first question. If the model calls a tool, the chat asks you
    for the result.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("a chat needs a terminal; use `inferd run` in scripts and pipes")
    chat = Chat(
        target(address, api_key_file),
        system,
        {**sampling(**options), **tool_choices(tools, tool_choice, thinking)},
        attachments(image, audio, ()),
        [inputs.text(path) for path in file],
        _ask_for_result,
    )
    chat.connect(compare=True)
    _converse(chat)


class Chat:
    """The conversation. A question is added to the conversation as soon as any text of its answer has
    arrived."""

    def __init__(
        self,
        daemon: Target,
        system: str | None,
        choices: dict[str, Any],
        attached: Sequence[Attachment] = (),
        files: Sequence[str] = (),
        result_of: ResultOf = lambda call: None,
    ) -> None:
        self._daemon = daemon
        self._choices = choices
        self._client = daemon.client()
        self.system = system
        self.turns: list[dict[str, Any]] = []
        self._attached = [*attached]
        self._files = [*files]
        self._result_of = result_of
        self._last: str | list[Any] = ""
        self._asked_at = 0

    def connect(self, *, compare: bool = False) -> None:
        """Connects to the daemon. Starts a new daemon if the old one has stopped."""
        with Progress() as progress:
            background.connect(
                self._client,
                self._daemon,
                progress.frame,
                compare=compare,
                model=self._choices.get("model"),
            )

    def ask(self, text: str) -> None:
        """Sends ``text`` with the attachments that have not been sent yet, and writes the answer."""
        text = "\n\n".join((*self._files, text))
        attached: list[Any] = [*self._attached]
        self._files.clear()
        self._attached.clear()
        self._ask([*attached, text] if attached else text)

    def _ask(self, question: str | list[Any]) -> None:
        """Sends the question. As long as the model calls tools, asks the user for the results and sends the
        results. If the user gives no result, removes the question from the conversation."""
        self._last, self._asked_at = question, len(self.turns)
        choices = dict(self._choices)
        calls = self._answer(question, choices)
        choices.pop("tool_choice", None)  # it applies to the first answer only
        while calls:
            results = []
            for call in calls:
                result = self._result_of(call)
                if result is None:
                    del self.turns[self._asked_at :]  # no model accepts a tool call without its result
                    say("(the question is taken back)", err=True)
                    return
                results.append(tool_result(call, result))
            calls = self._answer(results, choices)

    def _answer(self, content: str | list[Any], choices: dict[str, Any]) -> list[ToolUse]:
        """Streams one answer, and returns its tool calls.

        Ctrl-C ends the answer, but not the chat. An error is printed and does not end the chat, either.
        """
        question = {"role": "user", "content": content}
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        turns = [*system, *self.turns, question]
        said: list[str] = []
        calls: list[ToolUse] = []
        answer = Answer(sys.stdout)
        try:
            self.connect()
            with Waiting(self._daemon) as waiting:
                for event in self._events(turns, choices, waiting.phase):
                    waiting.over()
                    if isinstance(event, Done | MessageDone):
                        answer.end()
                        check_done(event, choices)
                        if calls:
                            self.turns += [question, {"role": "assistant", "content": [*event.content]}]
                            return calls
                    elif isinstance(event, ToolUse):
                        answer.end()
                        answer.write(json.dumps(asdict(event), ensure_ascii=False) + "\n")
                        calls.append(event)
                    elif isinstance(event, Token | Text):
                        piece = event.content if isinstance(event, Token) else event.text
                        said.append(piece)
                        answer.write(piece)
        except KeyboardInterrupt:
            answer.end()
            say("(ended)", err=True)
        except InferdError as error:
            answer.end()
            say(f"inferd: {one_line(error)}", err=True)
            details = error.details if isinstance(error, RequestFailed) else {}
            if self.turns and details.get("reason") == "prompt_too_long":
                say("(/reset starts a new conversation)", err=True)
        if said:
            self.turns += [question, {"role": "assistant", "content": "".join(said)}]
        return []

    def _events(
        self, turns: list[dict[str, Any]], choices: dict[str, Any], on_progress: OnProgress
    ) -> Iterator[Any]:
        """Yields the events of the answer.

        A request with nothing but text is sent on v1, which every daemon serves. Any other request is sent on
        v2.
        """
        text_alone = all(isinstance(turn["content"], str) for turn in turns)
        if text_alone and not {"tools", "thinking"} & choices.keys():
            with self._client.generate(turns, on_progress=on_progress, **choices) as tokens:
                yield from tokens
        else:
            with self._client.messages(turns, on_progress=on_progress, **choices) as events:
                yield from events

    def command(self, line: str) -> bool:
        """Runs a line that starts with a slash. Returns False to end the chat."""
        word, _, rest = line.partition(" ")
        if word in _LEAVE:
            return False
        obey = self._commands().get(word)
        if obey is None:
            say(f"{word} is not a command; /help lists them, and // begins a question with a slash", err=True)
            return True
        try:
            obey(rest.strip())
        except InferdError as error:
            say(f"inferd: {one_line(error)}", err=True)
        return True

    def _commands(self) -> dict[str, Callable[[str], None]]:
        return {
            "/help": lambda _: say(_HELP, err=True),
            "/system": self._start_over,
            "/reset": lambda _: self._start_over(self.system or ""),
            "/retry": self._retry,
            "/file": self._attach,
            "/image": self._show,
            "/model": self._choose,
            "/set": self._set,
            "/save": self._save,
            "/load": self._load,
        }

    def _start_over(self, system: str) -> None:
        self.turns.clear()
        self.system = system or None
        say("(a new conversation)", err=True)

    def _retry(self, _: str) -> None:
        if not self._last:
            raise UsageError("nothing was asked yet")
        if [turn["content"] for turn in self.turns[self._asked_at :][:1]] == [self._last]:
            del self.turns[self._asked_at :]
        self._ask(self._last)

    def _attach(self, name: str) -> None:
        path = Path(name).expanduser()
        self._files.append(inputs.text(path))
        say(f"({path} goes with the next question)", err=True)

    def _show(self, name: str) -> None:
        path = Path(name).expanduser()
        self._attached.append(inputs.media("image", path))
        say(f"({path} goes with the next question)", err=True)

    def _choose(self, name: str) -> None:
        self._choices["model"] = name or None
        say(f"(model: {name or 'the own one of the daemon'})", err=True)

    def _set(self, words: str) -> None:
        """Sets an option. The value is parsed and checked as on the command line."""
        name, _, value = words.partition(" ")
        flag = f"--{name.replace('_', '-')}"
        option = next((each for each in chat_command.params if flag in each.opts and name in SETTABLE), None)
        if option is None:
            raise UsageError(f"{name!r} cannot be set; one of {', '.join(SETTABLE)} can")
        try:
            given = option.type.convert(value.strip(), option, None) if value.strip() else None
        except click.BadParameter as error:
            raise UsageError(f"/set {name}: {error.message}") from None
        self._choices[name] = given
        say(f"({name} is {'reset' if given is None else given})", err=True)

    def _save(self, name: str) -> None:
        path = Path(name).expanduser()
        if not all(isinstance(turn["content"], str) for turn in self.turns):
            raise UsageError("a conversation with pictures, sounds or calls cannot be saved")
        document = json.dumps({"system": self.system, "turns": self.turns}, indent=2, ensure_ascii=False)
        try:
            with os.fdopen(
                os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8"
            ) as file:
                file.write(document + "\n")
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror}") from None
        say(f"({len(self.turns)} turns are in {path})", err=True)

    def _load(self, name: str) -> None:
        found = inputs.json_object(str(Path(name).expanduser()))
        try:
            turns = [{"role": turn["role"], "content": turn["content"]} for turn in found["turns"]]
            sound = all(isinstance(text, str) for turn in turns for text in turn.values())
        except (KeyError, TypeError):
            sound = False
        if not sound or not isinstance(found.get("system"), str | None):
            raise UsageError(f"{name} was not written by /save")
        self.turns, self.system = turns, found["system"]
        say(f"({len(turns)} turns)", err=True)

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
                if line in _LEAVE:
                    return
                if line.startswith("/") and not line.startswith("//"):
                    if not chat.command(line):
                        return
                elif line:
                    chat.ask(line[1:] if line.startswith("//") else line)
            except KeyboardInterrupt:
                continue
            except EOFError:
                return
    finally:
        chat.close()


def _ask_for_result(call: ToolUse) -> str | None:
    """Asks in the terminal for the result of a tool call. Returns ``None`` after Ctrl-C or Ctrl-D."""
    from prompt_toolkit import PromptSession

    try:
        return PromptSession[str]().prompt(f"{one_line(call.name)} returns> ")
    except (KeyboardInterrupt, EOFError):
        return None


def _history_file() -> Path:
    """Returns the path of the history file. Creates the file so that only its owner can read it."""
    path = paths.history_path()
    ensure_private_dir(path.parent)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    path.chmod(0o600)
    return path
