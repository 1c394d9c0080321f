"""``inferd embed`` prints embeddings of texts. ``inferd rerank`` ranks documents by relevance to a query."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import click

from inferd.cli import background, inputs
from inferd.cli.options import connection_options, target
from inferd.cli.output import Answer
from inferd.cli.progress import Progress
from inferd.cli.say import say_json
from inferd.client import Client
from inferd.client.address import Surface

_model = click.option(
    "--model",
    metavar="NAME",
    help="A model of the store, which is loaded if necessary. The default is the daemon's first model.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.command("embed")
@click.argument("texts", metavar="TEXT...", nargs=-1)
@_model
@click.option("--task", metavar="NAME", help="What the embeddings are used for, such as retrieval_query.")
@click.option("--dimensions", type=int, metavar="N", help="Shorten each embedding to N numbers.")
@_json
@connection_options
def embed_command(
    texts: tuple[str, ...],
    model: str | None,
    task: str | None,
    dimensions: int | None,
    as_json: bool,
    address: str | None,
    api_key_file: Path | None,
) -> None:
    """Print the embedding of each TEXT as a JSON array on one line.

    Without TEXT, or with `-`, each line of stdin is a text. The daemon must serve an embedding model.
    """
    wanted = inputs.lines(texts, "text")
    with _connected("embed", address, api_key_file) as client:
        found = client.embed(wanted, task=task, dimensions=dimensions, model=model)
    if as_json:
        say_json(asdict(found))
        return
    for vector in found.embeddings:
        say_json(vector)


@click.command("rerank")
@click.argument("query")
@click.argument("documents", metavar="DOCUMENT...", nargs=-1)
@_model
@_json
@connection_options
def rerank_command(
    query: str,
    documents: tuple[str, ...],
    model: str | None,
    as_json: bool,
    address: str | None,
    api_key_file: Path | None,
) -> None:
    """Rank the DOCUMENTs by their relevance to QUERY.

    Print one line for each document, the best document first: its index in the input (from 0), its score and
    its text.

    Without DOCUMENT, or with `-`, each line of stdin is a document. The daemon must serve a reranking model.
    """
    wanted = inputs.lines(documents, "document")
    with _connected("rerank", address, api_key_file) as client:
        found = client.rerank(query, wanted, model=model)
    if as_json:
        say_json(asdict(found))
        return
    shown = Answer(sys.stdout)
    for ranked in found.results:
        text = wanted[ranked.index].replace("\n", " ")
        shown.write(f"{ranked.index}\t{ranked.score:.6g}\t{text}\n")


def _connected(surface: Surface, address: str | None, api_key_file: Path | None) -> Client:
    daemon = target(address, api_key_file, surface)
    client = daemon.client()
    with Progress() as progress:
        background.connect(client, daemon, progress.frame)
    return client
