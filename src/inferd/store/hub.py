"""Queries the Hugging Face hub: selects the files of a model in a repository, and gets a file's sha256.

``hf:ORG/REPO[:QUANT][@REVISION]`` names a repository. :func:`choose` selects the GGUF file of the
quantisation QUANT in this repository, and the projector. The hub's responses are untrusted:
:mod:`inferd.store.https` checks each file name in a response before the name is used. Every file is pinned by
the sha256 that the hub reports.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TypeVar

import msgspec

from inferd.errors import FetchError
from inferd.store.gguf import part_names, plain_name
from inferd.store.https import Head, Https, Setback, attempt, hub_access, persist, refused, whole_number

MAX_LISTING_BYTES = 16 << 20
USUAL_QUANTS = ("Q4_K_M", "Q4_0", "Q8_0")
"""The quantisations to choose from if none is requested. The first quantisation that the repository has is
chosen. A repository without these quantisations must have only one model."""
USUAL_PROJECTORS = ("F16", "BF16", "Q8_0")

_DIGEST_HEADER = "X-Linked-Etag"
_REPOSITORY = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::(?P<quant>[\w.-]+))?(?:@(?P<revision>[\w.-]+))?",
    re.ASCII,
)

R = TypeVar("R")


@dataclass(frozen=True)
class Chosen:
    """The files selected from a repository. ``source`` is the source of the model's first file, and
    ``projector`` is the source of the projector. Both sources name the commit."""

    source: str
    projector: str | None
    license: str


class _File(msgspec.Struct):
    rfilename: str


class _Listing(msgspec.Struct):
    sha: str
    siblings: list[_File]
    tags: list[str] = []


def is_repository(text: str) -> bool:
    """Whether ``text`` names a repository of the hub, and not a file in a repository."""
    return text.startswith("hf:") and _REPOSITORY.fullmatch(text[3:]) is not None


def choose(text: str, cancelled: threading.Event) -> Chosen:
    """Selects the files of a model in the repository that ``text`` names. Raises BootCancelled or FetchError.
    If no file or several files fit, the message of the FetchError lists the files to choose from."""
    match = _REPOSITORY.fullmatch(text.removeprefix("hf:"))
    if match is None:
        raise FetchError(f"{text} is not of the form hf:ORG/REPO or hf:ORG/REPO:QUANT")
    repo, quant = match["repo"], match["quant"]
    listing = _list(repo, match["revision"], cancelled)
    files = [each.rfilename for each in listing.siblings if each.rfilename.lower().endswith(".gguf")]
    projectors = [name for name in files if PurePosixPath(name).name.lower().startswith("mmproj")]
    models = [name for name in files if name not in projectors and not _is_later_part(name)]
    if not models:
        raise FetchError(f"{repo} has no GGUF file; look for a repository whose name ends in -GGUF")
    found = _of_quant(models, [quant] if quant else USUAL_QUANTS)
    if found is None and not quant and len(models) == 1:
        found = models[0]
    if found is None:
        wanted = f"no file of the quantisation {quant}" if quant else "several files"
        shown = ", ".join(sorted(plain_name(PurePosixPath(name).name) for name in models)[:20])
        raise FetchError(f"{repo} has {wanted}; name one as hf:{repo}:QUANT, of: {shown}")
    projector = _of_quant(projectors, USUAL_PROJECTORS) or min(projectors, default=None)
    licenses = [tag.removeprefix("license:") for tag in listing.tags if tag.startswith("license:")]
    return Chosen(
        f"hf:{repo}/{found}@{listing.sha}",
        None if projector is None else f"hf:{repo}/{projector}@{listing.sha}",
        licenses[0] if licenses else "",
    )


def _is_later_part(name: str) -> bool:
    return plain_name(name) != name.removesuffix(".gguf") and not part_names(name)


def _of_quant(names: Sequence[str], quants: Sequence[str]) -> str | None:
    """Takes the first of ``quants`` that is a whole word in any of ``names``, and returns the shortest name
    with this word. Returns ``None`` if no name contains any of ``quants``."""
    for quant in quants:
        word = re.compile(rf"(?:^|[-._/]){re.escape(quant)}(?:[-._/]|$)", re.IGNORECASE)
        found = [name for name in names if word.search(name)]
        if found:
            return min(found, key=lambda name: (len(name), name))
    return None


def _list(repo: str, revision: str | None, cancelled: threading.Event) -> _Listing:
    hub, headers = hub_access()
    where = f"{hub}/api/models/{repo}" + (f"/revision/{revision}" if revision else "")
    body = bytearray()

    def take(parts: Generator[Head | bytes]) -> Setback | None:
        body.clear()
        for part in parts:
            if isinstance(part, bytes):
                body.extend(part)
                if len(body) > MAX_LISTING_BYTES:
                    raise FetchError("the hub's list of its files has no end")
            elif part.status != 200:
                return refused(part)
        return None

    _ask(
        repo,
        lambda: attempt("GET", where, {**headers, "Accept-Encoding": "identity"}, cancelled, take),
        cancelled,
    )
    try:
        listing = msgspec.json.decode(body, type=_Listing)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FetchError(f"the hub's list of the files of {repo} cannot be read") from error
    if not re.fullmatch(r"[0-9a-f]{40}", listing.sha):
        raise FetchError(f"the hub reports no commit of {repo}")
    return listing


def digest_of(source: Https, cancelled: threading.Event) -> tuple[Https, str, int | None]:
    """Returns the source of the same file at a fixed commit, and the sha256 and size that the hub reports for
    the file. The commit is the current commit of the revision in ``source``."""
    heads: list[Head] = []

    def take(parts: Generator[Head | bytes]) -> Setback | None:
        for head in parts:
            if isinstance(head, Head):
                heads.append(head)
                told = _DIGEST_HEADER in head.headers or head.status == 200
                return None if told else refused(head)
        return Setback("the hub gives no answer")

    _ask(
        source.url,
        lambda: attempt("HEAD", source.location, source.headers, cancelled, take, stop_at=_DIGEST_HEADER),
        cancelled,
    )
    headers = heads[-1].headers
    digest = re.fullmatch(r'"([0-9a-f]{64})"', headers.get(_DIGEST_HEADER, ""))
    if digest is None:
        raise FetchError(f"the hub reports no sha256 of {source.url}; give it with --sha256")
    commit = headers.get("X-Repo-Commit", "")
    if re.fullmatch(r"[0-9a-f]{40}", commit):
        source = Https.of_hub(f"{source.origin.repo}/{source.origin.filename}@{commit}")
    return source, digest[1], whole_number(headers.get("X-Linked-Size", ""))


def _ask(what: str, once: Callable[[], Setback | None], cancelled: threading.Event) -> None:
    try:
        persist(once, cancelled, lambda *_: None, lambda: 0)
    except FetchError as error:
        raise FetchError(f"cannot ask for {what}: {error}") from error
