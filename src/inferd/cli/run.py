"""``inferd run``: one prompt, its answer on stdout as it comes."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from inferd.cli import background
from inferd.cli.options import connection_options, sampling, sampling_options, target
from inferd.cli.output import Answer, check_done
from inferd.cli.progress import Progress
from inferd.client import Client, Done
from inferd.errors import UsageError


@click.command("run")
@click.argument("prompt", required=False)
@sampling_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object when the answer is complete.")
@connection_options
def run_command(
    prompt: str | None,
    system: str | None,
    as_json: bool,
    address: str | None,
    api_key_file: Path | None,
    **options: Any,
) -> None:
    """Answer one prompt. Without PROMPT, or with `-`, it is read from stdin.

    Starts a daemon in the background when none runs; it stops after 15 idle minutes.
    """
    messages = [{"role": "user", "content": _prompt(prompt)}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    choices = sampling(**options)
    daemon = target(address, api_key_file)
    client = Client(daemon.address, daemon.api_key)
    with Progress() as progress:
        background.connect(client, daemon, progress.frame)
    answer = Answer(sys.stdout)
    with client, client.generate(messages, **choices) as events:
        for event in events:
            if isinstance(event, Done):
                if as_json:
                    click.echo(json.dumps(asdict(event), ensure_ascii=False))
                else:
                    answer.end()
                check_done(event)
            elif not as_json:
                answer.write(event.content)


def _prompt(argument: str | None) -> str:
    if argument not in (None, "-"):
        return str(argument)
    if argument is None and sys.stdin.isatty():
        raise UsageError('no prompt was given; write `inferd run "…"`, or pipe one in')
    try:
        text = sys.stdin.buffer.read().decode().strip()
    except UnicodeDecodeError:
        raise UsageError("stdin is not UTF-8 text") from None
    if not text:
        raise UsageError("stdin is empty; it must hold the prompt")
    return text
