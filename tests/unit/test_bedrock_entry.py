"""The requirements of a bedrock-invoke entry."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from inferd.config.entries import BedrockEntry
from inferd.config.kinds import Secret
from inferd.engine.remote.bedrock import Bedrock, url_of
from inferd.errors import ConfigError
from tests.cases import cases


def entry(endpoint: str | None = None, **more: Any) -> BedrockEntry:
    values = {
        "region": "us-east-1",
        "model_id": "anthropic.claude-3-5-sonnet-20241022-v2:0",
        "access_key_id": "AKIDEXAMPLE",
        "secret_access_key": Secret("secret"),
        **more,
    }
    return BedrockEntry(name="cloud", endpoint=endpoint, **values)


def test_the_address() -> None:
    assert url_of(entry()) == (
        "https://bedrock-runtime.us-east-1.amazonaws.com/model/anthropic.claude-3-5-sonnet-20241022-v2%3A0"
        "/invoke-with-response-stream"
    )
    assert url_of(entry("https://vpce.example/base/")).startswith("https://vpce.example/base/model/anthropic")


@cases("region", ["", "us east", "us-east-1.example.com", "us-east-1/", "US-EAST-1"])
def test_an_invalid_region_is_refused(region: str) -> None:
    with pytest.raises(ConfigError, match="no AWS region"):
        Bedrock(entry(region=region))


@pytest.mark.parametrize("missing", ["access_key_id", "secret_access_key"])
def test_without_credentials_both_ways_are_named(missing: str) -> None:
    with pytest.raises(ConfigError, match=r"AWS_BEARER_TOKEN_BEDROCK,.*AWS_ACCESS_KEY_ID and AWS_SECRET"):
        Bedrock(entry(**{missing: None}))


@pytest.mark.parametrize(
    "more",
    [
        {"bearer_token": Secret("schlüssel")},
        {"access_key_id": "AKIÄ"},
        {"session_token": Secret("tökén")},
    ],
)
def test_a_key_that_http_cannot_carry(more: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="characters that HTTP cannot carry") as caught:
        Bedrock(entry(**more))
    assert "sch" not in str(caught.value)


def test_without_botocore_the_error_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "botocore"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "botocore", None)
    with pytest.raises(ConfigError, match=r"pip install botocore"):
        Bedrock(entry())
