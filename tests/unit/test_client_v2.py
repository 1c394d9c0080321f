"""The blocking and the asyncio client on the surfaces of blocks, vectors and rankings."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from inferd import errors
from inferd.client import Attachment, MessageDone, Ranked, Text, Thinking, ToolUse, protocol, vectors
from inferd.config import paths
from inferd.wire import attachments, v2, v2_rules
from inferd.wire import embed as embed_wire
from inferd.wire import rerank as rerank_wire
from tests.both_clients import Blocking
from tests.cases import cases
from tests.scripted_peer import Peer, Script, after_attachments, frames

Start = Callable[[Script], Peer]
Clients = type[Blocking]

DONE: dict[str, object] = {
    "type": "done",
    "usage": {"input_tokens": 9, "output_tokens": 2},
    "stop_reason": "tool_use",
    "backend": "mock",
}
CALL = {"type": "tool_use", "tool_call_id": "t1", "name": "add", "input": {"a": 1}}


def block(**fields: object) -> dict[str, object]:
    return {"type": "frame", "block": fields}


def sent(server: Peer) -> v2.Request:
    """The first request as the daemon parses it, with its attachments; it must be valid."""
    request = v2.parse(server.lines[0].removesuffix(b"\n"))
    raw = b"".join(server.lines[1:])
    assert attachments.raw_size(request.attachments or (), attachments.DEFAULT_MAX_BYTES) == len(raw)
    attachments.assign(request.attachments or (), memoryview(raw))
    v2_rules.validate(request)
    return request


# Messages.


def test_blocks_then_done_with_all_of_them(peer: Start, clients: Clients) -> None:
    server = peer(
        frames(
            block(type="thinking", delta="h"),
            block(type="thinking", delta="m"),
            block(type="text", delta="O"),
            block(type="text", delta="K"),
            block(**CALL),
            DONE,
        )
    )
    tool = {"name": "add", "description": "Adds", "input_schema": {"type": "object"}}
    with clients.client(v2=server.path) as client:
        events = list(client.messages("Hi", tools=[tool], tool_choice={"name": "add"}, seed=7))
        turn = {"role": "assistant", "content": events[-1].content}
        result = {"type": "tool_result", "tool_call_id": "t1", "content": "3"}
        list(
            client.messages([{"role": "user", "content": "Hi"}, turn, {"role": "user", "content": [result]}])
        )
    whole = ({"type": "thinking", "text": "hm"}, {"type": "text", "text": "OK"}, CALL)
    assert events == [
        Thinking("h"),
        Thinking("m"),
        Text("O"),
        Text("K"),
        ToolUse("t1", "add", {"a": 1}),
        MessageDone(content=whole, stop_reason="tool_use", input_tokens=9, output_tokens=2, backend="mock"),
    ]
    first, second = [v2.parse(line.removesuffix(b"\n")) for line in server.lines]
    assert first.tool_choice == v2.ToolName("add")
    assert first.seed == 7
    v2_rules.validate(second)
    assert [type(each) for each in second.messages[1].content] == [v2.Thinking, v2.Text, v2.ToolUse]
    assert server.accepted == 1


def test_attachments_follow_the_line_in_order(peer: Start, clients: Clients) -> None:
    server = peer(after_attachments(frames(DONE)))
    content = [
        Attachment("image", b"picture\n", mime="image/png"),
        "What is this?",
        Attachment("audio", memoryview(b"\0\0\x80?" * 2 + b"\0\0\0\n"), sample_rate=16_000),
        Attachment("text", "grün\n".encode()),
    ]
    with clients.client(v2=server.path) as client:
        list(client.messages([{"role": "user", "content": content}]))
    request = sent(server)
    image, question, audio, text = request.messages[0].content
    assert isinstance(question, v2.Text)
    assert question.text == "What is this?"
    by_id = {each.id: each for each in request.attachments or ()}
    for part, data in ((image, b"picture\n"), (audio, bytes(content[2].data)), (text, "grün\n".encode())):
        assert bytes(by_id[part.attachment_id].content) == data


def test_only_texts_too_long_for_the_line_are_sent_after_it(peer: Start, clients: Clients) -> None:
    server = peer(after_attachments(frames(DONE)))
    long = "ü" * protocol.MAX_LINE_BYTES + "\n"
    fitting = "x" * (protocol.MAX_LINE_BYTES - 1000)
    with clients.client(v2=server.path) as client:
        list(client.messages([{"role": "user", "content": ["short", fitting, long]}]))
    assert len(server.lines[0]) <= protocol.MAX_LINE_BYTES + 1
    request = sent(server)
    short, inline, behind = request.messages[0].content
    assert (short.text, inline.text, behind.text) == ("short", fitting, None)
    assert [bytes(each.content).decode() for each in request.attachments or ()] == [long]


@cases("size", range(protocol.MAX_LINE_BYTES - 140, protocol.MAX_LINE_BYTES - 40, 7))
def test_a_line_is_never_over_the_cap(size: int, peer: Start, clients: Clients) -> None:
    server = peer(after_attachments(frames(DONE)))
    with clients.client(v2=server.path) as client:
        list(client.messages("x" * size + "\n"))
    assert len(server.lines[0]) <= protocol.MAX_LINE_BYTES + 1
    sent(server)


def test_closing_an_answer_closes_its_connection(peer: Start, clients: Clients) -> None:
    server = peer(frames(block(type="text", delta="a")))
    with clients.client(v2=server.path) as client:
        with client.messages("Hi") as answer:
            assert next(answer) == Text("a")
        assert server.closed_by_client.wait(100)
        assert list(answer) == []


@cases("body", [block(type="other"), block(type="text"), {"type": "embeddings"}])
def test_a_malformed_block_is_a_protocol_error(
    body: dict[str, object], peer: Start, clients: Clients
) -> None:
    with clients.client(v2=peer(frames(body)).path) as client, pytest.raises(errors.ProtocolError):
        next(client.messages("Hi"))


# Vectors and rankings.


def embedding(connection: socket.socket, line: bytes) -> None:
    """The vector of a text is its length; ``bad`` is refused."""
    request = embed_wire.parse(line.removesuffix(b"\n"))
    embed_wire.validate(request)
    if "bad" in request.input:
        refusal = {
            "type": "error",
            "code": "invalid_request",
            "message": f"input[{request.input.index('bad')}]",
        }
        frames(refusal)(connection, line)
        return
    answer: dict[str, object] = {
        "type": "embeddings",
        "embeddings": [[float(len(text))] for text in request.input],
        "dimensions": 1,
        "model": "m",
        "usage": {"input_tokens": len(request.input)},
        "backend": "mock",
    }
    frames(answer)(connection, line)


def test_a_long_list_is_embedded_in_lines_under_the_cap(peer: Start, clients: Clients) -> None:
    server = peer(embedding)
    texts = ["é" * (i % 700) + "x" for i in range(2 * vectors.MAX_INPUTS)]
    with clients.client(embed=server.path) as client:
        found = client.embed(texts, task="clustering", dimensions=1)
        assert client.embed("abc").embeddings == [[3.0]]
    assert found.embeddings == [[float(len(text))] for text in texts]
    assert (found.dimensions, found.input_tokens, found.model) == (1, len(texts), "m")
    assert all(len(line) <= protocol.MAX_LINE_BYTES + 1 for line in server.lines)
    assert all(embed_wire.parse(line[:-1]).task == "clustering" for line in server.lines[:-1])
    assert server.accepted == 1


def test_a_refused_text_of_a_long_list_can_be_found(peer: Start, clients: Clients) -> None:
    server = peer(embedding)
    texts = ["good"] * (vectors.MAX_INPUTS + 1) + ["bad"]
    with clients.client(embed=server.path) as client:
        with pytest.raises(
            errors.RequestFailed, match=rf"input\[1\] .*number {vectors.MAX_INPUTS}"
        ) as caught:
            client.embed(texts)
        assert caught.value.exit_code == 5
        with pytest.raises(errors.RequestFailed, match=r"^input\[0\]$"):
            client.embed("bad")


def test_documents_of_several_requests_are_ranked_together(peer: Start, clients: Clients) -> None:
    def ranking(connection: socket.socket, line: bytes) -> None:
        request = rerank_wire.parse(line.removesuffix(b"\n"))
        rerank_wire.validate(request)
        scores = [float(text) for text in request.documents]
        frame = rerank_wire.encode_rerank(request, scores, input_tokens=1, model="m", backend="mock")
        connection.sendall(frame)

    server = peer(ranking)
    documents = [str(i % 10) for i in range(vectors.MAX_DOCUMENTS + 10)]
    with clients.client(rerank=server.path) as client:
        found = client.rerank("q", documents, top_n=30)
    assert len(server.lines) == 2
    assert found.results == [Ranked(9 + 10 * i, 9.0) for i in range(26)] + [
        Ranked(8 + 10 * i, 8.0) for i in range(4)
    ]
    assert found.input_tokens == 2


@cases("kind", ["embeddings", "rerank", "done"])
def test_an_answer_without_its_parts_is_a_protocol_error(kind: str, peer: Start, clients: Clients) -> None:
    body: dict[str, object] = {"type": kind, "usage": {"input_tokens": 1}}
    with clients.client(embed=peer(frames(body)).path) as client, pytest.raises(errors.ProtocolError):
        client.embed("a")


def test_each_surface_has_its_default_socket(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch, clients: Clients
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_dir))
    with clients.client() as client:
        for call, surface in ((client.messages, "v2"), (client.embed, "embed")):
            with pytest.raises(errors.DaemonUnreachable, match=str(paths.socket_path(surface))):
                call("a")
        with pytest.raises(errors.DaemonUnreachable, match=str(paths.socket_path("rerank"))):
            client.rerank("a", ["b"])
