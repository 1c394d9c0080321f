"""``inferd agent``: runs a coding agent on the models of this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import httpx

from inferd.cli.agents import AGENTS, DIRECTORY, INSTALL, Launch, Served
from inferd.cli.say import say
from inferd.config import sources
from inferd.config.addresses import HttpAddress
from inferd.errors import DaemonUnreachable, KeyRefused, UsageError

LEAST_WINDOW = 16_384
"""The smallest useful context. The first requests of agents have 5,000 to 16,000 tokens."""

UNKNOWN_WINDOW = 32_768
"""The assumed context of a remote model whose context the daemon does not know."""

_TIMEOUT_SECS = 10.0
_NO_KEY = "inferd"
"""A placeholder: agents require a key even if the server needs none."""


@click.command("agent", context_settings={"ignore_unknown_options": True})
@click.option(
    "--url",
    metavar="URL",
    help=("The URL of the HTTP bridge. The default is the address in the configuration."),
)
@click.option("--model", metavar="NAME", help="The model. The default is the daemon's first model.")
@click.argument("agent", type=click.Choice(tuple(AGENTS)))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def agent_command(url: str | None, model: str | None, agent: str, arguments: tuple[str, ...]) -> int:
    """Run a coding agent on the models of this machine.

    The agent must be installed, and a daemon with an HTTP bridge must run (`inferd serve --http`). The
    command configures the agent with the address of the bridge, the API key, the model and the context
    window. The key is that of INFERD_API_KEY. ARGUMENTS are passed to the agent. Write `--` before ARGUMENTS
    if one of them is also an option of `inferd agent`.

        inferd agent claude -- -p "Explain this repository."
    """
    served = find(url, model)
    launch = AGENTS[agent](served)
    program = shutil.which(launch.program)
    if program is None:
        raise UsageError(f"{launch.program} is not installed; run: {INSTALL[agent]}")
    if served.window < LEAST_WINDOW:
        say(
            f"inferd: the context of {served.model} is {served.window} tokens, and agents need {LEAST_WINDOW}"
            " or more for their first request alone; serve with a larger --n-ctx or another model",
            err=True,
        )
    return run(launch, program, arguments)


def find(url: str | None, model: str | None) -> Served:
    """Asks the HTTP bridge at ``url`` for its models. Returns the model to use, with its address, key and
    context window. Raises DaemonUnreachable if no bridge answers, and UsageError for an unknown model."""
    settings, _ = sources.load({}, serving=False)
    if url is None:
        scheme = "http" if settings.http_cert is None else "https"
        url = f"{scheme}://{settings.http or HttpAddress().bare}"
    key = settings.api_key.reveal() if settings.api_key is not None else _NO_KEY
    base = url.rstrip("/").removesuffix("/v1")
    if "://" not in base:
        base = f"http://{base}"
    try:
        answer = httpx.get(
            f"{base}/v1/models", headers={"Authorization": f"Bearer {key}"}, timeout=_TIMEOUT_SECS
        )
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            raise KeyRefused(f"the HTTP bridge at {base} refuses the key; set INFERD_API_KEY to its key")
        listed: list[dict[str, Any]] = answer.json()["data"]
    except httpx.InvalidURL as error:
        raise UsageError(f"{base} is not an address: {error}") from None
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        reason = str(error) if isinstance(error, httpx.HTTPError) else "another server answers"
        raise DaemonUnreachable(
            f"no HTTP bridge answers at {base} ({reason}); start one with `inferd serve --http`"
        ) from None
    writers = [each for each in listed if "completion" in each.get("capabilities", ())]
    names = [each["id"] for each in writers]
    if not writers or (model is not None and model not in names):
        wanted = "a model that writes text" if model is None else repr(model)
        raise UsageError(f"{wanted} is not served at {base}; served are: {', '.join(names) or 'none'}")
    chosen = next(each for each in writers if model in (None, each["id"]))
    window = chosen["context_window"] or UNKNOWN_WINDOW
    return Served(base=base, key=key, model=chosen["id"], window=window)


def run(launch: Launch, program: str, arguments: tuple[str, ...]) -> int:
    """Runs the agent until it ends. Returns its exit status."""
    with tempfile.TemporaryDirectory(prefix="inferd-agent-") as directory:
        for name, text in launch.files.items():
            Path(directory, name).write_text(text, "utf-8")
        command = [program, *(word.replace(DIRECTORY, directory) for word in launch.arguments), *arguments]
        sys.stdout.flush()
        done = subprocess.run(command, env=environment(os.environ, launch, directory), check=False)  # noqa: S603
    return done.returncode if done.returncode >= 0 else 128 - done.returncode


def environment(given: Mapping[str, str], launch: Launch, directory: str) -> dict[str, str]:
    """Returns the environment for the agent."""
    own = {name: value.replace(DIRECTORY, directory) for name, value in launch.env.items()}
    return {**{name: value for name, value in given.items() if name not in launch.unset}, **own}
