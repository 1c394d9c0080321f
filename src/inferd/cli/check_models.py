"""The checks of ``inferd doctor`` for the models and the remote servers.

A model is hashed only if the daemon would hash it, too. The check of a server connects to it, but sends no
request.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import threading
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from inferd.cli.finding import Finding, Findings
from inferd.config.entries import BedrockEntry, InferdEntry, LlamaCppEntry, ModelSpec, OpenAICompatEntry
from inferd.config.settings import Settings
from inferd.errors import HashMismatch, ModelError, StoreError

CONNECT_SECS = 5.0


def models(settings: Settings) -> Findings:
    for entry in settings.backends:
        if isinstance(entry, LlamaCppEntry):
            if entry.model is None:
                yield _file(Path(str(entry.model_path)), entry.model_sha256)
            else:
                yield _stored(settings, entry.model)
            if isinstance(entry.mmproj, ModelSpec):
                yield _stored(settings, entry.mmproj)
            elif entry.mmproj is not None:
                yield _file(entry.mmproj, None)
            for adapter in entry.lora:
                yield _file(adapter.path, None)
            if entry.draft is not None:
                yield _draft(settings, entry, entry.draft)


def _draft(settings: Settings, entry: LlamaCppEntry, draft: Path | ModelSpec) -> Finding:
    """Whether the draft model of an entry exists and has the same vocabulary as the entry's model."""
    from inferd.store.gguf import read_vocabulary, same_vocabulary

    found = _stored(settings, draft) if isinstance(draft, ModelSpec) else _file(draft, None)
    if found.state == "fail":
        return found
    vocabularies = []
    for source in (entry.model or entry.model_path, draft):
        try:
            with _path(settings, source).open("rb") as file:
                vocabularies.append(read_vocabulary(file.fileno(), source))
        except (OSError, ModelError, StoreError):
            return found  # another finding reports the unreadable file
    if not same_vocabulary(*vocabularies):
        return Finding(
            "model",
            "fail",
            f"the draft model of {entry.name} has another vocabulary than its model",
            "choose a draft model of the same family",
        )
    return found


def _path(settings: Settings, source: Path | ModelSpec | None) -> Path:
    from inferd.store import fetch
    from inferd.store.models import ModelStore

    if isinstance(source, ModelSpec):
        store = ModelStore(settings.models_home)
        return store.blob_path(fetch.resolve(store, source).sha256)
    return Path(str(source))


def _stored(settings: Settings, spec: ModelSpec) -> Finding:
    from inferd.store import fetch
    from inferd.store.models import ModelStore

    store = ModelStore(settings.models_home)
    model = fetch.resolve(store, spec)
    path = store.blob_path(model.sha256)
    size = store.blob_size(model.sha256)
    pull = f"run: inferd pull {model.name}"
    if size is None and settings.auto_pull and model.sources:
        return Finding(
            "model", "warn", f"{model.name} is not in the store yet; the daemon will fetch it", pull
        )
    if size is None:
        return Finding("model", "fail", f"{model.name} is not in the store", pull)
    if store.is_stamped(model.sha256, path.stat()):
        return _fits(path) or Finding("model", "ok", f"{model.name} is in the store and was verified")
    return _file(path, model.sha256)


def _file(path: Path, sha256: str | None) -> Finding:
    from inferd.store import verify

    try:
        verify.open_file(path, sha256, progress=lambda *_: None, cancelled=threading.Event()).close()
    except HashMismatch as error:
        return Finding("model", "fail", str(error), "remove the file, or mend the sha256 of its entry")
    except (ModelError, StoreError) as error:
        return Finding("model", "fail", str(error), "check the path and its permissions")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            return Finding("model", "fail", f"{path} is not a GGUF file", "convert it, or fetch one that is")
    return _fits(path) or Finding("model", "ok", f"{path} is {'readable' if sha256 is None else 'verified'}")


def _fits(path: Path) -> Finding | None:
    """Returns a finding if the model is too large for the memory. Returns ``None`` if it fits or its size is
    unknown."""
    if not {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= set(getattr(os, "sysconf_names", ())):
        return None
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    size = path.stat().st_size
    if size < memory:
        return None
    detail = f"{path} has {size / 1e9:.1f} GB, and this machine has {memory / 1e9:.1f} GB of memory"
    return Finding("model", "warn", detail, "choose a smaller model, or a smaller quantisation of it")


def remotes(settings: Settings) -> Findings:
    for entry in settings.backends:
        if isinstance(entry, OpenAICompatEntry):
            yield _openai(entry)
        elif isinstance(entry, BedrockEntry):
            yield _bedrock(entry)
        elif isinstance(entry, InferdEntry):
            yield from _daemons(entry)


def _daemons(entry: InferdEntry) -> Findings:
    for address in filter(None, (entry.address, entry.embed_address, entry.rerank_address)):
        name = f"backend {entry.name}"
        silent = _unserved(address) if "/" in address else _unreachable(f"tcp://{address}")
        if silent:
            yield Finding(name, "fail", silent, "start that daemon, or mend the address")
        else:
            yield Finding(name, "ok", f"{address} can be reached")


def _unserved(path: str) -> str:
    """Returns the reason why no process serves the Unix socket, or an empty string if one does."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(CONNECT_SECS)
        try:
            connection.connect(path)
        except OSError as error:
            return f"{path} cannot be reached: {error.strerror or error}"
    return ""


def _openai(entry: OpenAICompatEntry) -> Finding:
    name = f"backend {entry.name}"
    silent = _unreachable(entry.base_url)
    if silent:
        return Finding(name, "fail", silent, "start that server, or mend its base_url")
    if entry.api_key is None and not _is_here(entry.base_url):
        advice = "set OPENAI_API_KEY, or the variable that its api_key_env names"
        return Finding(name, "warn", f"{entry.base_url} gets requests without a key", advice)
    return Finding(name, "ok", f"{entry.base_url} can be reached")


def _bedrock(entry: BedrockEntry) -> Finding:
    name = f"backend {entry.name}"
    if find_spec("botocore") is None:
        advice = "run: pip install botocore"
        return Finding(name, "fail", "it needs botocore, which is not installed", advice)
    url = entry.endpoint or f"https://bedrock-runtime.{entry.region}.amazonaws.com"
    silent = _unreachable(url)
    if silent:
        return Finding(name, "fail", silent, "check the region, the endpoint and this machine's network")
    return Finding(name, "ok", f"{url} can be reached")


def _is_here(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _unreachable(url: str) -> str:
    """Returns the reason why ``url`` cannot be reached, or an empty string if it can."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), CONNECT_SECS).close()
    except OSError as error:
        return f"{url} cannot be reached: {error.strerror or error}"
    return ""
