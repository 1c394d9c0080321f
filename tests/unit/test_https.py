"""Models over https, from loopback servers that disconnect, stall, lie and redirect.

(This file has over 400 lines, because it is one list of server behaviours, with one store and one set of
helpers.)
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
import trustme

from inferd.errors import BootCancelled, FetchError, HashMismatch, StoreError
from inferd.store import https, sources
from inferd.store.models import ModelStore
from inferd.store.partial import read_mark
from inferd.store.runtime import Lock
from tests.cases import cases
from tests.tiny_model import CONTENT, DIGEST, EVIL, Phases, files, load, tiny
from tests.tls_server import (
    TlsServer,
    chunked,
    cut,
    ignoring_ranges,
    plain,
    redirect,
    stall,
    status,
    tls_server,
    trusted,
)

SIZE = len(CONTENT)
HALF = SIZE // 2
LOCKS = [f"locks/.{DIGEST}.lock", "locks/tiny.lock"]
PARTIAL = f"blobs/sha256/{DIGEST[:2]}/.partial-{DIGEST}"


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(autouse=True)
def network(ca: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes this process trust the servers, with short time-outs."""
    for name, value in trusted(ca, tmp_path).items():
        monkeypatch.setenv(name, value)
    for name in ("HF_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(https, "PAUSE_SECS", 0.001)


@pytest.fixture
def server(ca: trustme.CA) -> Iterator[TlsServer]:
    with tls_server(CONTENT, ca) as server:
        yield server


@pytest.fixture
def other(ca: trustme.CA) -> Iterator[TlsServer]:
    with tls_server(CONTENT, ca) as server:
        yield server


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "home")


def pull(
    store: ModelStore, *texts: str, progress: Phases | None = None, size: int | None = SIZE
) -> ModelStore:
    """Fetch the tiny model; it must be complete, without other files left."""
    with load(store, tiny(*texts, size=size), progress, auto_pull=True) as model:
        assert os.read(model.fd, SIZE + 1) == CONTENT
    assert not store.partial_dir(DIGEST).exists()
    return store


def fail(store: ModelStore, *texts: str, size: int | None = SIZE) -> str:
    """The error of a fetch that must fail."""
    with pytest.raises(FetchError) as caught:
        load(store, tiny(*texts, size=size), auto_pull=True)
    assert store.blob_size(DIGEST) is None
    return str(caught.value)


def leave(store: ModelStore, server: TlsServer, data: bytes, **mark: object) -> None:
    """Makes the leftovers of a process that was killed after receiving ``data``."""
    directory = store.partial_dir(DIGEST)
    directory.mkdir(parents=True)
    (directory / "data.tmp").write_bytes(data)
    known = {"url": server.url, "etag": server.etag, "size": SIZE, **mark}
    (directory / "source.json").write_bytes(orjson.dumps(known))


class TestWell:
    def test_it_is_complete_and_leaves_no_other_file(self, store: ModelStore, server: TlsServer) -> None:
        phases = Phases()
        pull(store, server.url, progress=phases)
        assert phases.names == ["checking_local", "download", "download"]
        for done, (_, details) in zip((0, SIZE), phases[1:], strict=True):
            assert details == {"downloaded_bytes": done, "total_bytes": SIZE, "source_url": server.url}
        (request,) = server.requests
        assert request.method == "GET"
        assert request.headers["accept-encoding"] == "identity"
        assert "range" not in request.headers
        assert "authorization" not in request.headers

    def test_the_manifest_says_where_from_and_that_is_enough_to_fetch_it_again(
        self, store: ModelStore, server: TlsServer
    ) -> None:
        manifest = pull(store, server.url).manifest("tiny")
        assert manifest is not None
        assert manifest.source is not None
        assert manifest.source.text == server.url
        assert sources.parse(manifest.source.text).provenance() == manifest.source

    def test_a_query_is_used_and_never_shown(self, store: ModelStore, server: TlsServer) -> None:
        phases = Phases()
        pull(store, f"{server.url}?signature=hush", progress=phases)
        assert server.requests[0].path == "/m.gguf?signature=hush"
        assert "hush" not in repr(phases)
        assert b"hush" not in store.manifest_path("tiny").read_bytes()
        assert "hush" not in repr(sources.parse(f"{server.url}?signature=hush"))

    @pytest.mark.parametrize("text", ["https://localhost/m?signature=hush", "https://me:hush@localhost/m"])
    def test_a_failure_does_not_show_the_query(self, store: ModelStore, text: str) -> None:
        phases = Phases()
        with Lock.acquire(store.blob_lock(DIGEST)) as other:
            phases.on["download"] = other.release
            with pytest.raises(FetchError) as caught:
                load(store, tiny(text), phases, auto_pull=True)
        assert "from https://localhost/m: " in str(caught.value)
        assert "hush" not in str(caught.value) + repr(phases)

    @pytest.mark.parametrize("behaviour", [chunked(CONTENT), ignoring_ranges])
    def test_an_unknown_size(self, store: ModelStore, server: TlsServer, behaviour: object) -> None:
        server.plan = [behaviour]  # type: ignore[list-item]
        pull(store, server.url, size=None)
        manifest = store.manifest("tiny")
        assert manifest is not None
        assert manifest.size_bytes == SIZE

    def test_room_is_checked_as_soon_as_the_size_is_known(
        self, store: ModelStore, server: TlsServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        size = (os.statvfs("/").f_blocks + 1) * os.statvfs("/").f_frsize * 1000
        server.plan = [plain(b"", Content_Length=size)]
        with pytest.raises(StoreError, match=r"needs \d+ MiB on the disk of .* but only \d+ MiB are free"):
            load(store, tiny(server.url, size=None), auto_pull=True)
        assert files(store.home) == LOCKS


class TestBreakingOff:
    def test_it_resumes_where_it_stopped(self, store: ModelStore, server: TlsServer) -> None:
        server.plan = [cut(HALF), cut(1024)]
        phases = Phases()
        pull(store, server.url, progress=phases)
        assert server.ranges == [None, f"bytes={HALF}-", f"bytes={HALF + 1024}-"]
        assert server.requests[1].headers["if-range"] == '"one"'
        pauses = [details for _, details in phases if "attempt" in details]
        assert [details["attempt"] for details in pauses] == [2, 3]
        assert [details["downloaded_bytes"] for details in pauses] == [HALF, HALF + 1024]
        assert "peer closed connection" in str(pauses[0]["reason"])

    @pytest.mark.parametrize("after", [None, 0, HALF])
    def test_silence_ends_a_try(
        self, store: ModelStore, server: TlsServer, monkeypatch: pytest.MonkeyPatch, after: int | None
    ) -> None:
        monkeypatch.setattr(https, "STALL_SECS", 0.05)
        server.plan = [stall(after)]
        phases = Phases()
        pull(store, server.url, progress=phases)
        assert server.ranges == [None, f"bytes={HALF}-" if after else None]
        assert [details["reason"] for _, details in phases if "reason" in details] == [
            "nothing came for 0.05 s"
        ]

    def test_a_short_body_is_resumed(self, store: ModelStore, server: TlsServer) -> None:
        server.plan = [chunked(CONTENT[:HALF])]
        pull(store, server.url)
        assert server.ranges == [None, f"bytes={HALF}-"]

    def test_five_failures_in_a_row_end_it_and_keep_the_bytes(
        self, store: ModelStore, server: TlsServer
    ) -> None:
        server.plan = [cut(HALF)] + [cut(0)] * 4
        reason = fail(store, server.url)
        assert reason.startswith(f"model 'tiny' could not be fetched from {server.url}: ")
        assert "(5 tries)" in reason
        assert len(server.requests) == 5
        assert files(store.home) == [f"{PARTIAL}/data.tmp", f"{PARTIAL}/source.json", *LOCKS]
        pull(store, server.url)
        assert server.ranges[5:] == [f"bytes={HALF}-"]

    def test_tries_that_bring_much_do_not_count(
        self, store: ModelStore, server: TlsServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(https, "GOOD_TRY_BYTES", 1024)
        server.plan = [cut(1024)] * 12
        pull(store, server.url)
        assert len(server.requests) == 13

    def test_a_server_that_always_restarts_is_given_up_after_five_tries(
        self, store: ModelStore, server: TlsServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(https, "GOOD_TRY_BYTES", 1024)
        server.plan = [plain(CONTENT[:HALF], Content_Length=SIZE)] * 99
        fail(store, server.url)
        assert len(server.requests) == 5

    @pytest.mark.parametrize(("number", "tries"), [(socket.EAI_NONAME, 1), (socket.EAI_AGAIN, 5)])
    def test_only_a_temporary_resolver_error_is_retried(
        self, store: ModelStore, monkeypatch: pytest.MonkeyPatch, number: int, tries: int
    ) -> None:
        asked: list[object] = []

        def look_up(host: object, *_: object, **__: object) -> None:
            asked.append(host)
            raise socket.gaierror(number, "there is no network in this test")

        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        reason = fail(store, "https://host.invalid/m.gguf")
        assert ("no server named host.invalid is known; check the address and the network" in reason) == (
            tries == 1
        )
        assert len(asked) == tries

    def test_a_proxy_that_cannot_be_used_is_named(
        self, store: ModelStore, server: TlsServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("HTTPS_PROXY", "gopher://me:hush@host")
        reason = fail(store, server.url)
        assert "the proxy that the environment names cannot be used: " in reason
        assert "hush" not in reason

    def test_a_non_ascii_etag_is_ignored(self, store: ModelStore, server: TlsServer) -> None:
        server.etag = '"\xe9"'
        server.plan = [cut(HALF)]
        pull(store, server.url)
        assert server.ranges == [None, f"bytes={HALF}-"]

    def test_a_missing_server_is_tried_again(self, store: ModelStore, server: TlsServer) -> None:
        with socket.create_server(("127.0.0.1", 0)) as gone:
            port = gone.getsockname()[1]
        assert "m.gguf: Connection refused (5 tries)" in fail(store, f"https://127.0.0.1:{port}/m.gguf")

    @pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
    def test_a_server_in_trouble_is_asked_again(
        self, store: ModelStore, server: TlsServer, code: int
    ) -> None:
        server.plan = [status(code), status(code, Retry_After=0)]
        pull(store, server.url)
        assert len(server.requests) == 3

    def test_retry_after_is_capped(self, store: ModelStore, server: TlsServer) -> None:
        server.plan = [status(429, Retry_After="9" * 4000), status(429, Retry_After=3600)]
        assert "429 Too Many Requests and wants 3600 s of patience; try again later" in fail(
            store, server.url
        )

    @pytest.mark.parametrize(
        ("code", "reason"),
        [
            (404, "the server answers 404 Not Found"),
            (401, "401 Unauthorized; for a private or gated file of the hub, set HF_TOKEN"),
            (206, "the server answers 206 Partial Content"),
            (204, "the server answers 204 No Content"),
            (418, "the server answers 418"),
        ],
    )
    def test_a_permanent_error_is_not_tried_again(
        self, store: ModelStore, server: TlsServer, code: int, reason: str
    ) -> None:
        server.plan = [status(code)]
        assert reason in fail(store, server.url)
        assert len(server.requests) == 1

    def test_a_failure_continues_with_the_next_source(
        self, store: ModelStore, server: TlsServer, other: TlsServer
    ) -> None:
        server.plan = [status(404)]
        pull(store, server.url, other.url)
        assert other.ranges == [None]


class TestLies:
    def test_a_file_of_another_size_is_not_downloaded(self, store: ModelStore, server: TlsServer) -> None:
        server.plan = [plain(CONTENT[:HALF], Content_Length=HALF)]
        assert f"it has {HALF} bytes, but the model has {SIZE}" in fail(store, server.url)
        assert files(store.home) == LOCKS

    @pytest.mark.parametrize("length", ["9" * 5000, "-1", "1e9", "many"])
    def test_an_invalid_content_length_is_ignored(
        self, store: ModelStore, server: TlsServer, length: str
    ) -> None:
        server.plan = [plain(CONTENT, Content_Length=length)]
        pull(store, server.url, size=None)

    def test_a_body_without_an_end_is_cut_off(self, store: ModelStore, server: TlsServer) -> None:
        server.plan = [chunked(CONTENT * 2)]
        assert f"it is longer than the {SIZE} bytes that the model has" in fail(store, server.url)
        assert files(store.home) == LOCKS

    def test_the_right_size_with_the_wrong_content_goes_to_quarantine(
        self, store: ModelStore, server: TlsServer, other: TlsServer
    ) -> None:
        server.content = EVIL
        with pytest.raises(HashMismatch):
            load(store, tiny(server.url, other.url), auto_pull=True)
        (place,) = (store.home / "locks" / "quarantine").iterdir()
        assert place.read_bytes() == EVIL
        assert not store.partial_dir(DIGEST).exists()
        assert server.ranges == [None]
        assert other.requests == []

    def test_an_encoding_that_was_not_asked_for_is_refused(
        self, store: ModelStore, server: TlsServer
    ) -> None:
        server.plan = [plain(b"x", Content_Encoding="gzip", Content_Length=1)]
        assert "the server sends it compressed" in fail(store, server.url)

    def test_an_untrusted_certificate(
        self, store: ModelStore, server: TlsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in trusted(trustme.CA(), tmp_path).items():
            monkeypatch.setenv(name, value)
        reason = fail(store, server.url)
        assert "the server's certificate is not trusted (" in reason
        assert "tries" not in reason
        assert server.requests == []

    def test_a_certificate_for_another_name(self, store: ModelStore, ca: trustme.CA) -> None:
        with tls_server(CONTENT, ca, "elsewhere") as server:
            assert "the server's certificate is not trusted (" in fail(store, server.url)


class TestChanged:
    def test_a_server_that_ignores_ranges_restarts_the_download(
        self, store: ModelStore, server: TlsServer
    ) -> None:
        server.plan = [cut(HALF), ignoring_ranges]
        pull(store, server.url)
        assert server.ranges == [None, f"bytes={HALF}-"]

    def test_a_new_version_on_the_server_restarts_the_download(
        self, store: ModelStore, server: TlsServer
    ) -> None:
        leave(store, server, EVIL[:HALF])
        server.etag = '"two"'
        pull(store, server.url)
        (request,) = server.requests
        assert (request.headers["range"], request.headers["if-range"]) == (f"bytes={HALF}-", '"one"')

    @pytest.mark.parametrize(
        "headers",
        [
            {"Content_Range": f"bytes {HALF}-{SIZE - 1}/{SIZE}", "ETag": '"two"'},
            {"Content_Range": f"bytes {HALF}-{SIZE}/{SIZE + 1}", "ETag": '"one"'},
            {"Content_Range": f"bytes 1-{SIZE - 1}/{SIZE}", "ETag": '"one"'},
            {"Content_Range": "bytes 8192-", "ETag": '"one"'},
            {"ETag": '"one"'},
        ],
        ids=["etag", "size", "start", "malformed", "none"],
    )
    def test_a_range_of_another_file_is_refused(
        self, store: ModelStore, server: TlsServer, headers: dict[str, str]
    ) -> None:
        server.plan = [cut(HALF), plain(EVIL[HALF:], 206, Content_Length=HALF, **headers)]
        phases = Phases()
        pull(store, server.url, progress=phases)
        assert server.ranges == [None, f"bytes={HALF}-", None]
        reasons = [details["reason"] for _, details in phases if "reason" in details]
        assert reasons[1:] == ["the file has changed on the server"]

    def test_an_unsatisfiable_range_restarts(self, store: ModelStore, server: TlsServer) -> None:
        leave(store, server, CONTENT[:HALF])
        server.plan = [status(416)]
        pull(store, server.url)
        assert server.ranges == [f"bytes={HALF}-", None]

    @pytest.mark.parametrize("etag", ["", 'W/"one"'])
    def test_without_a_strong_etag_the_size_decides(
        self, store: ModelStore, server: TlsServer, etag: str
    ) -> None:
        server.etag = etag
        server.plan = [cut(HALF)]
        pull(store, server.url)
        assert server.ranges == [None, f"bytes={HALF}-"]
        assert "if-range" not in server.requests[1].headers


class TestLaterProcess:
    @pytest.mark.parametrize("size", [SIZE, None])
    def test_it_resumes_the_download_of_a_killed_process(
        self, store: ModelStore, server: TlsServer, size: int | None
    ) -> None:
        leave(store, server, CONTENT[:HALF])
        phases = Phases()
        pull(store, server.url, progress=phases, size=size)
        assert server.ranges == [f"bytes={HALF}-"]
        assert phases[1][1]["downloaded_bytes"] == HALF

    def test_a_whole_file_needs_no_server(self, store: ModelStore, server: TlsServer) -> None:
        leave(store, server, CONTENT)
        pull(store, server.url)
        assert server.requests == []

    def test_bytes_of_another_source_are_not_resumed(self, store: ModelStore, server: TlsServer) -> None:
        leave(store, server, EVIL[:HALF], url="https://elsewhere/m.gguf")
        pull(store, server.url)
        assert server.ranges == [None]

    @pytest.mark.parametrize("mark", [None, b"{"])
    def test_bytes_of_an_unknown_source_are_not_resumed(
        self, store: ModelStore, server: TlsServer, mark: bytes | None
    ) -> None:
        leave(store, server, EVIL[:HALF])
        path = store.partial_dir(DIGEST) / "source.json"
        path.unlink() if mark is None else path.write_bytes(mark)
        pull(store, server.url)
        assert server.ranges == [None]

    def test_a_download_restarted_elsewhere_is_not_resumed_here(
        self, store: ModelStore, server: TlsServer, tmp_path: Path
    ) -> None:
        """Even if the process that restarts the download dies, its data has no mark of the earlier source."""
        leave(store, server, CONTENT[:HALF])
        (tmp_path / "good").write_bytes(CONTENT)
        marks: list[object] = []
        phases = Phases(download=lambda: marks.append(read_mark(store.partial_dir(DIGEST))))
        pull(store, f"file:{tmp_path}/good", progress=phases)
        assert marks == [None]

    @pytest.mark.parametrize("data", [EVIL[:HALF], EVIL, CONTENT + b"x"], ids=["part", "whole", "longer"])
    def test_a_damaged_partial_file_is_not_the_servers_fault(
        self, store: ModelStore, server: TlsServer, data: bytes
    ) -> None:
        leave(store, server, data)
        pull(store, server.url)
        assert server.ranges[-1] is None
        assert not (store.home / "locks" / "quarantine").exists()

    def test_a_server_with_the_wrong_file_is_asked_for_all_of_it_once(
        self, store: ModelStore, server: TlsServer
    ) -> None:
        server.content = EVIL
        leave(store, server, EVIL[:HALF])
        with pytest.raises(HashMismatch):
            load(store, tiny(server.url), auto_pull=True)
        assert server.ranges == [f"bytes={HALF}-", None]
        assert len([*(store.home / "locks" / "quarantine").iterdir()]) == 1

    def test_received_bytes_need_no_room(
        self, store: ModelStore, server: TlsServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        leave(store, server, CONTENT[:HALF])
        needed: list[int] = []
        monkeypatch.setattr("inferd.store.fetch.check_room", lambda _, size: needed.append(size))
        pull(store, server.url)
        assert needed == [HALF]

    @pytest.mark.parametrize("name", ["", "data.tmp"])
    def test_a_link_in_the_place_of_a_part_is_refused(
        self, store: ModelStore, server: TlsServer, tmp_path: Path, name: str
    ) -> None:
        """F-21: a download does not leave the store."""
        elsewhere = tmp_path / "elsewhere"
        elsewhere.write_bytes(b"mine") if name else elsewhere.mkdir()
        place = store.partial_dir(DIGEST) / name
        place.parent.mkdir(parents=True)
        place.symlink_to(elsewhere)
        with pytest.raises(StoreError, match="symbolic link"):
            load(store, tiny(server.url), auto_pull=True)
        assert elsewhere.read_bytes() == b"mine" if name else not [*elsewhere.iterdir()]

    @pytest.mark.parametrize("size", [SIZE, None])
    def test_a_waiter_sees_the_source_of_the_other_process(
        self, store: ModelStore, server: TlsServer, size: int | None
    ) -> None:
        leave(store, server, CONTENT[:HALF], url="https://elsewhere/m.gguf")
        first = Lock.acquire(store.blob_lock(DIGEST))
        phases = Phases(download=first.release)
        load(store, tiny(server.url, size=size), phases, auto_pull=True).close()
        assert phases[1][1] == {
            "downloaded_bytes": HALF,
            "total_bytes": SIZE,
            "source_url": "https://elsewhere/m.gguf",
            "waiting_for_pid": os.getpid(),
        }


class TestCancel:
    @pytest.mark.parametrize("after", [None, HALF])
    def test_silence_ends_a_try_and_keeps_the_bytes(
        self, store: ModelStore, server: TlsServer, after: int | None
    ) -> None:
        server.plan = [stall(after)]
        cancelled = threading.Event()

        def cancel_in_the_silence() -> None:
            partial = store.partial_dir(DIGEST) / "data.tmp"
            while after is not None and not (partial.is_file() and partial.stat().st_size == after):
                time.sleep(0.01)
            cancelled.set()

        # Silence before the head is cancelled by the clock, silence behind bytes once they are in the file.
        timer = threading.Timer(0.2 if after is None else 0, cancel_in_the_silence)
        timer.start()
        with pytest.raises(BootCancelled):
            load(store, tiny(server.url), Phases(), auto_pull=True, cancelled=cancelled)
        timer.join()
        pull(store, server.url)
        assert server.ranges == [None, f"bytes={HALF}-" if after else None]

    def test_a_pause_is_not_waited_for(
        self, store: ModelStore, server: TlsServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(https, "PAUSE_SECS", 1000)
        monkeypatch.setattr(https, "MAX_PAUSE_SECS", 1000)
        server.plan = [status(503)]
        cancelled = threading.Event()
        with pytest.raises(BootCancelled):
            load(store, tiny(server.url), Phases(download=cancelled.set), auto_pull=True, cancelled=cancelled)


class TestRedirects:
    def test_to_another_host_without_the_key(
        self, store: ModelStore, server: TlsServer, other: TlsServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_ENDPOINT", server.base)
        monkeypatch.setenv("HF_TOKEN", "hush")
        server.plan = [redirect("/moved"), redirect(f"{other.base}/cdn?signed"), redirect(f"{other.base}/x")]
        other.plan = [cut(HALF)]
        pull(store, "hf:org/repo/dir/m 1.gguf@refs/pr/1")
        assert [request.path for request in server.requests] == [
            "/org/repo/resolve/refs%2Fpr%2F1/dir/m%201.gguf",
            "/moved",
            "/org/repo/resolve/refs%2Fpr%2F1/dir/m%201.gguf",
        ]
        assert [request.headers["authorization"] for request in server.requests] == ["Bearer hush"] * 3
        assert [request.path for request in other.requests] == ["/cdn?signed", "/x"]
        assert not any("authorization" in request.headers for request in other.requests)
        assert other.ranges == [None, f"bytes={HALF}-"]

    @pytest.mark.parametrize(
        "location", ["http://127.0.0.1:{port}/m", "ftp://127.0.0.1/m", "file:///etc/passwd"]
    )
    def test_to_anything_but_https_is_refused_before_a_byte_is_sent(
        self, store: ModelStore, server: TlsServer, location: str
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            server.plan = [redirect(location.format(port=listener.getsockname()[1]))]
            scheme = location.partition(":")[0]
            assert f"the server redirects to {scheme}:, and inferd uses only https" in fail(store, server.url)
            with pytest.raises(BlockingIOError):
                listener.accept()
        assert len(server.requests) == 1

    def test_in_a_circle(self, store: ModelStore, server: TlsServer) -> None:
        server.plan = [redirect("/round")] * 50
        assert "the server redirects more than 10 times" in fail(store, server.url)
        assert len(server.requests) == 11


class TestNames:
    @cases(
        "text, reason",
        [
            ("https://user:pass@host/m", "it holds a user name, which would be shown"),
            ("https://host", "it is not of the form https://HOST/PATH"),
            ("https:///m", "it is not of the form https://HOST/PATH"),
            ("https://host/a b", "it is not of the form https://HOST/PATH"),
            ("https://host/\nb", "it is not of the form https://HOST/PATH"),
            ("https://[host/m", "it is not of the form https://HOST/PATH"),
            ("https://host:port/m", "it is not of the form https://HOST/PATH"),
            ("hf:repo/file", "it is not of the form hf:ORG/REPO/FILE"),
            ("hf:org/repo/../../x", "it is not of the form hf:ORG/REPO/FILE"),
            ("hf:org/repo//x", "it is not of the form hf:ORG/REPO/FILE"),
            ("hf:org/repo/x@", "it is not of the form hf:ORG/REPO/FILE"),
            ("hf:org/repo/x@a b", "it is not of the form hf:ORG/REPO/FILE"),
            ("hf:../repo/x", "it is not of the form hf:ORG/REPO/FILE"),
        ],
    )
    def test_malformed_sources_are_refused(self, text: str, reason: str) -> None:
        with pytest.raises(FetchError, match=reason.replace("[", r"\[")) as caught:
            sources.parse(text)
        assert "pass" not in str(caught.value)

    @pytest.mark.parametrize("host", ["a..b", "x" * 70, "xn--", "..."])
    def test_an_invalid_host_is_refused(self, store: ModelStore, host: str) -> None:
        assert f"from https://{host}/m: it is not of the form https://HOST/PATH" in fail(
            store, f"https://{host}/m"
        )

    def test_the_hub_is_only_spoken_to_over_https(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_ENDPOINT", "http://mirror")
        with pytest.raises(FetchError, match="HF_ENDPOINT is 'http://mirror' and not an https address"):
            sources.parse("hf:org/repo/m.gguf")

    @pytest.mark.parametrize("token", ["hush\nX-Other: 1", "h\xfcsh"])
    def test_an_invalid_token_is_refused_and_not_shown(
        self, monkeypatch: pytest.MonkeyPatch, token: str
    ) -> None:
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(FetchError) as caught:
            sources.parse("hf:org/repo/m.gguf")
        assert str(caught.value) == "HF_TOKEN holds characters that no token has"

    def test_an_address_by_number(self) -> None:
        assert sources.parse("https://[::1]:8443/d/m?q").provenance().text == "https://[::1]:8443/d/m"

    def test_a_file_of_the_hub(self) -> None:
        source = sources.parse("hf:org/repo/m.gguf")
        assert isinstance(source, https.Https)
        assert source.location == "https://huggingface.co/org/repo/resolve/main/m.gguf"
        assert source.provenance().text == "hf:org/repo/m.gguf@main"
