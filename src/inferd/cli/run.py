"""``inferd run``: streams the answer to one prompt to stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from inferd.cli import background, inputs
from inferd.cli.options import (
    attachment_options,
    attachments,
    connection_options,
    sampling,
    sampling_options,
    target,
    tool_choices,
    tool_options,
)
from inferd.cli.output import Answer, check_done, summary
from inferd.cli.progress import Progress
from inferd.cli.say import say, say_json
from inferd.cli.waiting import Waiting
from inferd.client import Client, Done, MessageDone, Text, ToolUse


@click.command("run")
@click.argument("prompt", metavar="[PROMPT]...", nargs=-1)
@sampling_options
@attachment_options
@tool_options
@click.option("--json", "as_json", is_flag=True, help="Print the whole answer as one JSON object.")
@click.option(
    "--verbose", is_flag=True, help=("Print the number of tokens and the times of the answer on stderr.")
)
@connection_options
def run_command(
    prompt: tuple[str, ...],
    system: str | None,
    image: Sequence[Path],
    audio: Sequence[Path],
    file: Sequence[Path],
    tools: str | None,
    tool_choice: str | None,
    thinking: bool | None,
    as_json: bool,
    verbose: bool,
    address: str | None,
    api_key_file: Path | None,
    **options: Any,
) -> None:
    """Answer one prompt: the words of PROMPT, then piped input.

    Without PROMPT, or with `-`, the whole prompt is read from stdin.

    Each tool call of the model is printed as one line of JSON. If no daemon runs, the command starts one in
    the background. That daemon stops after 15 idle minutes.
    """
    attached = attachments(image, audio, file)
    blocks = tool_choices(tools, tool_choice, thinking)
    choices = {**sampling(**options), **blocks}
    typed = bool(attached or blocks)
    question = inputs.prompt(prompt, stdin_taken=inputs.STDIN in file)
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [*attached, question] if typed else question}
    ]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    daemon = target(address, api_key_file, "v2" if typed else "v1")
    with daemon.client() as client:
        with Progress() as progress:
            background.connect(client, daemon, progress.frame, model=options["model"])
        with Waiting(daemon) as waiting:
            choices["on_progress"] = waiting.phase
            done = (_blocks if typed else _text)(client, messages, choices, as_json, waiting)
        if as_json:
            say_json(asdict(done))
        if verbose:
            say(summary(done), err=True)
        check_done(done, choices)


def _text(
    client: Client, messages: list[dict[str, Any]], choices: dict[str, Any], quiet: bool, waiting: Waiting
) -> Done:
    with Answer(sys.stdout) as answer, client.generate(messages, **choices) as events:
        for event in events:
            waiting.over()
            if isinstance(event, Done):
                answer.end()
                return event
            if not quiet:
                answer.write(event.content)
    raise AssertionError("a reply ends with its last event or an error")


def _blocks(
    client: Client, messages: list[dict[str, Any]], choices: dict[str, Any], quiet: bool, waiting: Waiting
) -> MessageDone:
    with Answer(sys.stdout) as answer, client.messages(messages, **choices) as events:
        for event in events:
            waiting.over()
            if isinstance(event, MessageDone):
                answer.end()
                return event
            if quiet:
                continue
            if isinstance(event, Text):
                answer.write(event.text)
            elif isinstance(event, ToolUse):
                answer.end()
                answer.write(json.dumps(asdict(event), ensure_ascii=False) + "\n")
    raise AssertionError("a reply ends with its last event or an error")
