"""``inferd ps``, ``load`` and ``unload``, for the models that a daemon has in memory."""

from __future__ import annotations

from pathlib import Path

import click

from inferd.cli import background
from inferd.cli.columns import aligned, cut, duration, megabytes, partly, screen_width
from inferd.cli.numbers import Number
from inferd.cli.options import connection_options, target
from inferd.cli.progress import Progress
from inferd.cli.say import say, say_json
from inferd.cli.status import ANSWER_SECS, admin_address
from inferd.cli.stored import stored_models
from inferd.client.admin import AdminClient, Frame
from inferd.errors import RequestFailed
from inferd.serve.router import NO_TEXT

FOREVER = -1.0
# Before the process of a model ends, it saves its prefix cache, which may take ten seconds.
UNLOAD_SECS = 20.0


@click.command("ps")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def ps_command(as_json: bool) -> None:
    """List the loaded and loading models, and how long each stays loaded. Exit 3 if no daemon runs."""
    with AdminClient(admin_address(), timeout=ANSWER_SECS) as admin:
        state = admin.status()
    if as_json:
        say_json({"loaded": state.backends, "loading": state.loading})
        return
    rows: list[tuple[object, ...]] = [
        ("model", "size", "context", "memory", "device", "running", "waiting", "unused", "stays")
    ]
    rows += map(_loaded, state.backends)
    rows += [(row["name"], "-", "-", "-", "-", "loading", row["waiting"], "-", "-") for row in state.loading]
    width = screen_width()
    for line in aligned(rows):
        say(cut(line, width))


def _loaded(row: Frame) -> tuple[object, ...]:
    engine = row["engine"] or {}
    sizes = [megabytes(engine[key]) if engine.get(key) else "-" for key in ("file_bytes", "memory_bytes")]
    on_gpus = sum(engine.get("gpu_bytes", {}).values())
    unused = "-" if row["running"] else duration(row["idle_secs"])
    name, model = row["name"], row["model"]
    return (
        name if model in ("", name) else f"{model} ({name})",
        sizes[0],
        f"{row['n_ctx']:,}" if row["n_ctx"] else "-",
        sizes[1],
        f"{row['device']}, {megabytes(on_gpus)}{partly(row)}" if on_gpus else row["device"],
        row["running"],
        row["waiting"],
        unused,
        _stays(row),
    )


def _stays(row: Frame) -> str:
    if row["pinned"]:
        return "always"
    return "while there is memory" if row["stays_secs"] is None else duration(row["stays_secs"])


@click.command("load")
@click.argument("name", metavar="NAME", shell_complete=stored_models)
@click.option(
    "--keep-alive",
    type=Number(FOREVER, 1e9),
    metavar="SECONDS",
    help=(
        "The model stays loaded for this time without a request; -1 means forever. The default is "
        "keep_alive_secs."
    ),
)
@connection_options
def load_command(name: str, keep_alive: float | None, address: str | None, api_key_file: Path | None) -> None:
    """Load a stored model into the daemon, before the first request."""
    daemon = target(address, api_key_file)
    with daemon.client() as client, Progress() as progress:
        background.connect(client, daemon, progress.frame, model=name)
        try:
            reply = client.generate(
                "load", model=name, keep_alive=keep_alive, max_tokens=0, on_progress=progress.phase
            )
            name = reply.result().model
        except RequestFailed as error:
            # An embedding model refuses the request, but only after it is loaded.
            if error.details.get("reason") != NO_TEXT:
                raise
    say(f"{name} is loaded")


@click.command("unload")
@click.argument("name", metavar="NAME", shell_complete=stored_models)
def unload_command(name: str) -> None:
    """Unload a model. Requests that run on the model finish first."""
    with AdminClient(admin_address(), timeout=UNLOAD_SECS) as admin:
        running = admin.unload(name)
    if running:
        requests = "request has" if running == 1 else f"{running} running requests have"
        say(f"{name} is unloaded when its {requests} ended")
    else:
        say(f"{name} is unloaded")
