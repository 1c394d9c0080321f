"""``inferd chat``: the part of a conversation that is sent with the next question."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from inferd.cli.chat import Chat
from inferd.cli.options import Target
from inferd.config import sources
from tests.scripted_peer import Peer

DONE: dict[str, Any] = {
    "type": "done",
    "usage": {"prompt_tokens": 1, "completion_tokens": 1},
    "stop_reason": "end",
}


class Replies:
    """Answers each question with the next of its lists of frames, whose ids are filled in."""

    def __init__(self) -> None:
        self.frames: list[list[dict[str, Any]]] = []

    def __call__(self, connection: socket.socket, line: bytes) -> None:
        request_id = orjson.loads(line)["id"]
        for frame in self.frames.pop(0):
            connection.sendall(orjson.dumps({"content": "", **frame, "id": request_id}) + b"\n")


@pytest.fixture
def peer(short_dir: Path) -> Iterator[Peer]:
    server = Peer(short_dir / "s", Replies())
    yield server
    server.stop()


def chat_with(peer: Peer, *replies: list[dict[str, Any]], system: str | None = None) -> Chat:
    assert isinstance(peer.script, Replies)
    peer.script.frames += replies
    settings, _ = sources.load({}, {"HOME": str(peer.path.parent)})
    return Chat(Target(settings, str(peer.path), startable=False), system, {"seed": 7})


def says(text: str) -> list[dict[str, Any]]:
    return [{"type": "token", "content": text}, DONE]


def sent(peer: Peer) -> list[list[tuple[str, str]]]:
    return [
        [(turn["role"], turn["content"]) for turn in orjson.loads(line)["messages"]] for line in peer.lines
    ]


def test_a_question_carries_the_conversation_so_far(peer: Peer) -> None:
    chat = chat_with(peer, says("1"), says("2"), says("3"), says("4"), system="be brief")
    chat.ask("a")
    chat.ask("b")
    assert chat.command("/reset")
    chat.ask("c")
    assert chat.command("/system be kind")
    chat.ask("d")
    chat.close()
    assert sent(peer) == [
        [("system", "be brief"), ("user", "a")],
        [("system", "be brief"), ("user", "a"), ("assistant", "1"), ("user", "b")],
        [("system", "be brief"), ("user", "c")],
        [("system", "be kind"), ("user", "d")],
    ]
    assert all(orjson.loads(line)["seed"] == 7 for line in peer.lines)


def test_the_system_message_can_be_removed_and_exit_ends(peer: Peer) -> None:
    chat = chat_with(peer, says("1"), system="be brief")
    assert chat.command("/system")
    chat.ask("a")
    assert not chat.command("/exit")
    chat.close()
    assert sent(peer) == [[("user", "a")]]


def test_a_partial_answer_is_kept_and_an_empty_one_is_not(
    peer: Peer, capsys: pytest.CaptureFixture[str]
) -> None:
    failure = {"type": "error", "code": "backend_unavailable", "message": "no more"}
    chat = chat_with(peer, [{"type": "token", "content": "half"}, failure], [failure], says("ok"))
    for question in ("a", "b", "c"):
        chat.ask(question)
    chat.close()
    assert sent(peer)[2] == [("user", "a"), ("assistant", "half"), ("user", "c")]
    out, err = capsys.readouterr()
    assert (out, err) == ("half\nok\n", "inferd: no more\n" * 2)


def test_a_daemon_that_cannot_be_reached_does_not_end_the_chat(
    short_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, _ = sources.load({}, {"HOME": str(short_dir)})
    chat = Chat(Target(settings, str(short_dir / "none"), startable=False), None, {})
    chat.ask("a")
    assert "no daemon is running" in capsys.readouterr().err
    assert chat.turns == []


def test_a_question_can_be_asked_again_and_carry_a_file(peer: Peer, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("the notes")
    chat = chat_with(peer, says("1"), says("2"), says("3"))
    assert chat.command("/retry")  # nothing was asked yet
    chat.ask("a")
    assert chat.command("/retry")
    assert chat.command(f"/file {tmp_path / 'notes.txt'}")
    chat.ask("b")
    chat.close()
    assert sent(peer) == [
        [("user", "a")],
        [("user", "a")],
        [("user", "a"), ("assistant", "2"), ("user", "the notes\n\nb")],
    ]


def test_a_conversation_is_saved_and_continued(
    peer: Peer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.json"
    chat = chat_with(peer, says("1"), says("2"), system="be brief")
    chat.ask("é")
    assert chat.command(f"/save {path}")
    assert path.stat().st_mode & 0o777 == 0o600
    assert chat.command("/system")
    assert chat.command(f"/load {path}")
    chat.ask("b")
    chat.close()
    assert sent(peer)[1] == [("system", "be brief"), ("user", "é"), ("assistant", "1"), ("user", "b")]
    capsys.readouterr()
    for content in ("[]", "{}", '{"turns": [1]}', '{"turns": [], "system": 1}'):
        path.write_text(content)
        assert chat.command(f"/load {path}")
        assert "inferd: " in capsys.readouterr().err
    assert len(chat.turns) == 4


def test_options_are_set_with_the_bounds_of_the_command_line(
    peer: Peer, capsys: pytest.CaptureFixture[str]
) -> None:
    chat = chat_with(peer, says("1"), says("2"))
    for line in ("/set temperature 0.7", "/set max_tokens 5", "/set top_p 7", "/set stop x", "/set", "/what"):
        assert chat.command(line)
    err = capsys.readouterr().err
    assert "/set top_p: 7.0 is not in the range" in err
    assert "'stop' cannot be set; one of max_tokens, temperature" in err
    assert "/what is not a command" in err
    chat.ask("a")
    assert chat.command("/set temperature")
    chat.ask("b")
    chat.close()
    first, second = map(orjson.loads, peer.lines)
    assert (first["temperature"], first["max_tokens"]) == (0.7, 5)
    assert "top_p" not in first
    assert ("temperature" in second, second["max_tokens"]) == (False, 5)


def test_the_model_can_be_changed_and_reset(peer: Peer) -> None:
    chat = chat_with(peer, says("1"), says("2"))
    assert chat.command("/model small")
    chat.ask("a")
    assert chat.command("/model")
    chat.ask("b")
    chat.close()
    assert [orjson.loads(line).get("model") for line in peer.lines] == ["small", None]


def test_the_results_of_tools_are_asked_for_and_sent(
    short_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def frames(*blocks: dict[str, Any], reason: str = "end_turn") -> list[dict[str, Any]]:
        usage = {"input_tokens": 1, "output_tokens": 1}
        end = {"type": "done", "usage": usage, "stop_reason": reason}
        return [*({"type": "frame", "block": block} for block in blocks), end]

    def call(name: str) -> dict[str, Any]:
        return {"type": "tool_use", "tool_call_id": f"tc-{name}", "name": name, "input": {"at": "Oslo"}}

    replies = Replies()
    replies.frames += [
        frames({"type": "text", "delta": "let me see"}, call("time"), call("rain"), reason="tool_use"),
        frames({"type": "text", "delta": "ten past nine, dry"}),
        frames(call("time"), reason="tool_use"),
        frames({"type": "text", "delta": "well"}),
    ]
    peer = Peer(short_dir / "infer.v2.sock", replies)
    results = iter(["9:10", "none", None])
    settings, _ = sources.load({}, {"HOME": str(short_dir)})
    at = str(peer.path)
    choices: dict[str, Any] = {"tools": [{"name": "time"}], "tool_choice": "required"}
    chat = Chat(
        Target(settings, at, startable=False, v2_address=at), None, choices, result_of=lambda _: next(results)
    )
    chat.ask("when?")
    chat.ask("and now?")  # the call gets no result
    chat.ask("never mind")
    chat.close()
    peer.stop()
    first, second, third, fourth = map(orjson.loads, peer.lines)
    assert [line.get("tool_choice") for line in (first, second, third)] == ["required", None, "required"]
    question, answer, told = second["messages"]
    assert question["content"] == [{"type": "text", "text": "when?"}]
    assert [block["type"] for block in answer["content"]] == ["text", "tool_use", "tool_use"]
    assert told["content"] == [
        {"type": "tool_result", "tool_call_id": f"tc-{name}", "content": [{"type": "text", "text": said}]}
        for name, said in (("time", "9:10"), ("rain", "none"))
    ]
    texts = [[block.get("text") for block in turn["content"]] for turn in fourth["messages"]]
    assert texts[3:] == [["ten past nine, dry"], ["never mind"]]
    out, err = capsys.readouterr()
    assert '{"tool_call_id": "tc-rain", "name": "rain", "input": {"at": "Oslo"}}' in out
    assert err == "(the question is taken back)\n"


def test_a_conversation_that_is_too_long_can_be_reset(peer: Peer, capsys: pytest.CaptureFixture[str]) -> None:
    code = {"type": "error", "code": "invalid_request", "reason": "prompt_too_long", "tokens": 9, "limit": 8}
    too_long = [{**code, "message": "too long"}]
    chat = chat_with(peer, too_long, says("1"), too_long)
    chat.ask("a")
    assert capsys.readouterr().err == "inferd: too long\n"
    chat.ask("b")
    chat.ask("c")
    assert capsys.readouterr().err == "inferd: too long\n(/reset starts a new conversation)\n"
    chat.close()
