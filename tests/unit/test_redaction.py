"""F-3: the log redacts secrets in every value, and no pattern can be made to run for long."""

from __future__ import annotations

import itertools
import sys
import warnings
from pathlib import Path
from typing import Any

import orjson
import pytest

from inferd import log, redaction
from tests.cases import cases

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    if sys.version_info >= (3, 11):
        from re import _constants as rc
        from re import _parser as rp
    else:
        import sre_constants as rc
        import sre_parse as rp

SECRET = "S3cr3tV4lu3xyz0"
AUTH, PAIR = "[REDACTED:auth-header]", "[REDACTED:secret-kv]"

REDACTED = [
    (f"Authorization: Bearer {SECRET}", f"Authorization: {AUTH}"),
    (f"authorization: Basic {SECRET}==\r\nHost: x", f"authorization: {AUTH}\r\nHost: x"),
    (f"Proxy-Authorization: AWS4 Credential={SECRET}, Signature={SECRET}", f"Proxy-Authorization: {AUTH}"),
    (f'{{"Authorization":"Bearer {SECRET}","a":1}}', f'{{"Authorization":"{AUTH}","a":1}}'),
    (f"sent bearer {SECRET}12 to it", f"sent bearer {AUTH} to it"),
    *((f"{word}={SECRET}", f"{word}={PAIR}") for word in ("password", "passwd", "pwd", "secret", "token")),
    *((f"{word}: {SECRET}", f"{word}: {PAIR}") for word in ("api_key", "api-key", "apikey", "X-API-Key")),
    *((f"{word}={SECRET} b=1", f"{word}={PAIR} b=1") for word in ("my_token", "DB_PASSWORD", "accessToken")),
    (f"aws_secret_access_key = {SECRET}/+", f"aws_secret_access_key = {PAIR}"),
    (f'{{"SecretAccessKey": "{SECRET}"}}', f'{{"SecretAccessKey": "{PAIR}"}}'),
    (f'{{"my_token":"{SECRET}","n":1}}', f'{{"my_token":"{PAIR}","n":1}}'),
    (f'{{"password":"a\\"{SECRET}","n":1}}', f'{{"password":"{PAIR}","n":1}}'),
    (f'"{{\\"token\\":\\"{SECRET}\\",\\"n\\":1}}"', f'"{{\\"token\\":\\"{PAIR}\\",\\"n\\":1}}"'),
    (f'"{{\\"token\\":\\"a\\\\\\"{SECRET}\\",\\"n\\":1}}"', f'"{{\\"token\\":\\"{PAIR}\\",\\"n\\":1}}"'),
    (f"{{'token': 'two {SECRET}', 'n': 1}}", f"{{'token': '{PAIR}', 'n': 1}}"),
    (f"GET /?token={SECRET}&a=b HTTP/1.1", f"GET /?token={PAIR} HTTP/1.1"),
    (f"token: Bearer {SECRET}12", f"token: {PAIR} {AUTH}"),
    (f"eyJhbGciOiJIUzI1NiJ9.{SECRET}.{SECRET}", "[REDACTED:jwt]"),
    (f"sk-ant-api03-{SECRET}-{SECRET}_x", "[REDACTED:api-key]"),
    *((f"{head}{SECRET}", "[REDACTED:api-key]") for head in ("sk-", "pat-", "hf_", "github_pat_")),
    *((f"xox{kind}-1-{SECRET}", "[REDACTED:api-key]") for kind in "baps"),
    *((f"gh{kind}_{SECRET}", "[REDACTED:api-key]") for kind in "posu"),
    (f"%20hf_{SECRET}", "%20[REDACTED:api-key]"),
    ("AKIAIOSFODNN7EXAMPLE", "[REDACTED:aws-access]"),
    ("ASIAIOSFODNN7EXAMPLE", "[REDACTED:aws-session]"),
]

UNTOUCHED = [
    "prompt_tokens=12 completion_tokens: 3",
    "a token was sampled",
    "task-of-many-hyphenated-words",
    "hf_hub_download",
    "keyed hash, disk-based, patient",
    "the secretary keyed in AKIA",
    "authorization was refused",
]


HEADS = ("", 'token="', 'token=\\"', "authorization='")
PIECES = (
    "token ",
    "token:",
    "authorization:",
    "eyJ",
    "-eyJ.-",
    "sk-",
    "github_pat_",
    "bearer ",
    "%20",
    " \\",
    "x",
)


class TestRedaction:
    @cases("text, expected", REDACTED)
    def test_secrets_are_replaced(self, text: str, expected: str) -> None:
        assert redaction.redact(text) == expected

    @cases("text", UNTOUCHED)
    def test_ordinary_text_is_left_alone(self, text: str) -> None:
        assert redaction.redact(text) == text

    def test_it_happens_on_every_value_before_serialising(self, tmp_path: Path) -> None:
        activity = log.setup("info", tmp_path, stderr=False)
        log.get("x").info(
            f"token={SECRET}",
            text=f"password={SECRET}",
            error=ValueError(f"sk-{SECRET}"),
            nested={"list": [f"hf_{SECRET}"], "api_key": SECRET, "authorization": SECRET},
            my_token=SECRET,
            prompt_tokens=7,
        )
        activity.close()
        assert SECRET not in (tmp_path / log.FILE_NAME).read_text()
        entry = orjson.loads((tmp_path / log.FILE_NAME).read_bytes())
        assert entry["my_token"] == PAIR
        assert entry["nested"]["authorization"] == AUTH
        assert entry["prompt_tokens"] == 7

    def test_a_long_value_is_redacted_before_it_is_cut(self, tmp_path: Path) -> None:
        activity = log.setup("info", tmp_path, stderr=False)
        log.get("x").info("event", text=f"{' ' * (log.MAX_VALUE_CHARS - 8)}sk-{SECRET}")
        activity.close()
        assert "sk-S3" not in (tmp_path / log.FILE_NAME).read_text()

    def test_no_pattern_can_backtrack(self) -> None:
        """No unbounded repetition contains another or is followed by a part that can fail: each is linear."""
        for pattern, _ in redaction._redactions():
            assert_linear(list(rp.parse(pattern.pattern, pattern.flags)), tail=True)

    @cases("nonlinear", ["(?:a+)+b", "a*b", "(?:a+b)?", "(?:a+,){3}", "(?:x|a+)c"])
    def test_the_check_itself_finds_a_pattern_that_can(self, nonlinear: str) -> None:
        with pytest.raises(AssertionError):
            assert_linear(list(rp.parse(nonlinear)), tail=True)

    @cases("head, piece", itertools.product(HEADS, PIECES))
    def test_long_hostile_text_is_fast(self, head: str, piece: str) -> None:
        text = head + piece * (200_000 // len(piece))
        # Quadratic work would run into the time limit of a test.
        assert len(redaction.redact(text)) <= 8 * len(text)


def assert_linear(items: list[Any], tail: bool) -> None:
    """Asserts that the items are linear. With ``tail`` no part after ``items`` can fail."""
    for index, (op, argument) in enumerate(items):
        last = tail and index == len(items) - 1
        if op in (rc.MAX_REPEAT, rc.MIN_REPEAT):
            _, most, body = argument
            if most == rc.MAXREPEAT:
                assert last, "something follows an unbounded repetition"
                assert fixed_width(list(body)), "a repetition whose body has no fixed set of ends"
            else:
                assert_linear(list(body), tail=last and most == 1)
        elif op is rc.SUBPATTERN:
            assert_linear(list(argument[-1]), tail=last)
        elif op is rc.BRANCH:
            for branch in argument[1]:
                assert_linear(list(branch), tail=last)
        else:
            assert op in (rc.LITERAL, rc.NOT_LITERAL, rc.IN, rc.ANY, rc.ASSERT, rc.ASSERT_NOT)


def fixed_width(items: list[Any]) -> bool:
    """Whether no unbounded repetition is among ``items``."""
    for op, argument in items:
        if op in (rc.MAX_REPEAT, rc.MIN_REPEAT):
            if argument[1] == rc.MAXREPEAT or not fixed_width(list(argument[2])):
                return False
        elif op is rc.SUBPATTERN:
            if not fixed_width(list(argument[-1])):
                return False
        elif op is rc.BRANCH and not all(fixed_width(list(branch)) for branch in argument[1]):
            return False
    return True
