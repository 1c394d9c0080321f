"""AWS's own client against the test endpoint, to show that the endpoint matches the real service."""

from __future__ import annotations

import json
from pathlib import Path

import botocore.exceptions
import botocore.session
import pytest

from inferd.config.entries import BedrockEntry
from inferd.engine.remote.bedrock import url_of
from tests import bedrock_server
from tests.bedrock_server import BedrockServer, Exchange, answer, exception

MODEL = "arn:aws:bedrock:us-east-1:1234:inference-profile/us.anthropic.claude-v1:0"
EVENTS = answer("Hel", "lo")


@pytest.fixture
def nobodys_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.delenv("AWS_BEARER_TOKEN_BEDROCK", raising=False)


@pytest.mark.usefixtures("nobodys_home")
def test_botocore_is_accepted_and_reads_the_stream() -> None:
    def script(exchange: Exchange) -> None:
        exchange.events(*EVENTS)
        exchange.send(exception("throttlingException", "slow down"))
        exchange.finish()

    with BedrockServer(script, keep_alive=False) as server:
        session = botocore.session.Session()
        session.set_credentials(
            bedrock_server.ACCESS_KEY_ID, bedrock_server.SECRET_ACCESS_KEY, bedrock_server.SESSION_TOKEN
        )
        client = session.create_client(
            "bedrock-runtime", region_name=bedrock_server.REGION, endpoint_url=server.url
        )
        stream = client.invoke_model_with_response_stream(modelId=MODEL, body=b'{"messages":[]}')["body"]
        read = []
        with pytest.raises(botocore.exceptions.EventStreamError, match=r"throttlingException.*slow down"):
            read.extend(json.loads(event["chunk"]["bytes"]) for event in stream)
        stream.close()
        client.close()
        ours = url_of(
            BedrockEntry(name="cloud", region=bedrock_server.REGION, model_id=MODEL, endpoint=server.url)
        )
    assert server.rejections == []
    assert server.url + server.exchanges[0].target == ours
    assert read == EVENTS
