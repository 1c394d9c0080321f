"""Signature Version 4: our signer and the check in our tests, compared with AWS's published examples."""

from __future__ import annotations

import re
from datetime import datetime, timezone

import pytest
from botocore.auth import SigV4Auth
from botocore.credentials import Credentials

from inferd.engine.remote.bedrock import signed
from tests import bedrock_server
from tests.bedrock_server import ACCESS_KEY_ID, SECRET_ACCESS_KEY

HOST = "example.amazonaws.com"
DATE = "20150830T123600Z"
SCOPE = "20150830/us-east-1/service/aws4_request"
UNRESERVED = "-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
FORM = "application/x-www-form-urlencoded"
TOKEN = (
    "AQoDYXdzEPT//////////wEXAMPLEtc764bNrC9SAPBSM22wDOk4x4HIZ8j4FZTwdQWLWsKWHGBuFqwAeMicRXmxfpSPfIeoIYRqTflf"
    "KD8YUuwthAx7mSEI/qkPpKPi/kMcGdQrmGdeehM4IC1NtBmUpp2wUE8phUZampKsburEDy0KPkyQDYwT7WZ0wq5VSXDvp75YU9HFvlRd"
    "8Tx6q6fE8YQcHNVXAkiY9q6d+xo0rKwT38xVqr7ZD0u0iPPkUL64lIZbqBAz+scqKmlzm8FDrypNC9Yjc8fPOLn9FX9KSYvKTr4rvx3i"
    "SIlTJabIQwj2ICCR/oLxBA=="
)

Request = tuple[str, str, dict[str, str], bytes]

REQUESTS: dict[str, Request] = {
    "get-vanilla": ("GET", "/", {}, b""),
    "get-utf8": ("GET", "/\u1234", {}, b""),
    "get-space": ("GET", "/example space/", {}, b""),
    "get-unreserved": ("GET", f"/{UNRESERVED}", {}, b""),
    "get-vanilla-query-order-key-case": ("GET", "/?Param2=value2&Param1=value1", {}, b""),
    "get-header-value-trim": ("GET", "/", {"my-header1": " value1", "my-header2": ' "a   b   c"'}, b""),
    "post-vanilla": ("POST", "/", {}, b""),
    "post-header-key-sort": ("POST", "/", {"my-header1": "value1"}, b""),
    "post-header-value-case": ("POST", "/", {"my-header1": "VALUE1"}, b""),
    "post-sts-header-before": ("POST", "/", {"x-amz-security-token": TOKEN}, b""),
    "post-vanilla-query": ("POST", "/?Param1=value1", {}, b""),
    "post-x-www-form-urlencoded": ("POST", "/", {"content-type": FORM}, b"Param1=value1"),
    "post-x-www-form-urlencoded-parameters": (
        "POST",
        "/",
        {"content-type": f"{FORM}; charset=utf8"},
        b"Param1=value1",
    ),
}
SIGNATURES = """
5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31  get-vanilla
8318018e0b0f223aa2bbf98705b62bb787dc9c0e678f255a891fd03141be5d85  get-utf8
652487583200325589f1fba4c7e578f72c47cb61beeca81406b39ddec1366741  get-space
07ef7494c76fa4850883e2b006601f940f8a34d404d0cfa977f52a65bbf5f24f  get-unreserved
b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500  get-vanilla-query-order-key-case
acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736  get-header-value-trim
5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b  post-vanilla
c5410059b04c1ee005303aed430f6e6645f61f4dc9e1461ec8f8916fdf18852c  post-header-key-sort
cdbc9802e29d2942e5e10b5bccfdd67c5f22c7c4e8ae67b53629efa58b974b7d  post-header-value-case
85d96828115b5dc0cfc3bd16ad9e210dd772bbebba041836c64533a82be05ead  post-sts-header-before
28038455d6de14eafc1f9222cf5aa6f1a96197d7deb8263271d420d138af7f11  post-vanilla-query
ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a  post-x-www-form-urlencoded
1a72ec8f64bd914b0e42e42607c7fbce7fb2c7465f63e3092b3b0d39fa77a6fe  post-x-www-form-urlencoded-parameters
"""
every_vector = pytest.mark.parametrize(
    ("request_", "published"),
    [
        pytest.param(REQUESTS[name], signature, id=name)
        for signature, name in map(str.split, SIGNATURES.strip().splitlines())
    ],
)


@every_vector
def test_requests_are_signed_as_aws_published(
    request_: Request, published: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, target, headers, body = request_
    moment = datetime.strptime(DATE, "%Y%m%dT%H%M%SZ").replace(tzinfo=timezone.utc)
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda: moment)
    token = headers.get("x-amz-security-token")
    auth = SigV4Auth(Credentials(ACCESS_KEY_ID, SECRET_ACCESS_KEY, token), "service", "us-east-1")
    got = signed(auth, method, f"https://{HOST}{target}", headers, body)
    names = ";".join(sorted({*headers, "host", "x-amz-date"}))
    assert got["Authorization"] == (
        f"AWS4-HMAC-SHA256 Credential={ACCESS_KEY_ID}/{SCOPE}, SignedHeaders={names}, Signature={published}"
    )
    assert got["X-Amz-Date"] == DATE
    assert got.get("X-Amz-Security-Token") == token


@every_vector
def test_the_check_of_our_tests_agrees(request_: Request, published: str) -> None:
    method, target, headers, body = request_
    sent = {"host": HOST, "x-amz-date": DATE, **headers}
    assert bedrock_server.signature(method, target, sent, sent, body, SCOPE) == published


def test_a_path_that_is_encoded_already_is_encoded_once_more() -> None:
    """AWS requires this of every service except S3; a model id with a colon depends on it."""
    auth = SigV4Auth(Credentials(ACCESS_KEY_ID, SECRET_ACCESS_KEY), "bedrock", "us-east-1")
    target = "/model/anthropic.claude-v2%3A1/invoke-with-response-stream"
    got = signed(auth, "POST", f"https://{HOST}{target}", {}, b"{}")
    headers = {"host": HOST, "x-amz-date": got["X-Amz-Date"]}
    scope = f"{got['X-Amz-Date'][:8]}/us-east-1/bedrock/aws4_request"
    given = re.search("Signature=(.*)", got["Authorization"])
    assert given is not None
    again = bedrock_server.signature("POST", target, headers, headers, b"{}", scope)
    assert given[1] == again
    once = bedrock_server.signature("POST", target.replace("%3A", ":"), headers, headers, b"{}", scope)
    assert given[1] != once
