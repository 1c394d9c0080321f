"""``inferd top``: its display of consecutive snapshots."""

from __future__ import annotations

import orjson
import pytest

from inferd import cli
from inferd.cli.columns import aligned, duration, rate
from inferd.cli.top import KEPT, Trends, sparkline
from inferd.client.admin import Status
from inferd.serve.observe.metrics import Metrics
from tests.cases import cases


@cases(
    "values, drawn",
    [
        ([], ""),
        ([0.0, 0.0], "▁▁"),
        ([0.0, 3.5, 7.0], "▁▅█"),
        ([None, 5.0, None], " █ "),
    ],
)
def test_sparkline(values: list[float | None], drawn: str) -> None:
    assert sparkline(values) == drawn


@cases(
    "seconds, text",
    [
        (0.0, "0 ms"),
        (0.00042, "0.42 ms"),
        (0.0851, "85 ms"),
        (1.0, "1 s"),
        (3.14, "3.1 s"),
        (119.0, "119 s"),
        (600.0, "10 min"),
        (18000.0, "5 h"),
        (864000.0, "10 d"),
    ],
)
def test_a_duration_has_the_unit_that_fits(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_rates_and_columns() -> None:
    assert (rate(None), rate(0.0), rate(7.25), rate(1234.5)) == ("-", "0", "7.2", "1234")
    assert aligned([("a", "bb"), ("ccc", 1)]) == ["a    bb", "ccc  1"]


def state(metrics: Metrics, uptime: float, running: int = 0) -> Status:
    return Status(
        lifecycle={"status": "ready"},
        capabilities=(),
        version="1",
        pid=1,
        uptime_secs=uptime,
        active_permits=1,
        queue_depth=1,
        running=({},) * running,
        waiting=(),
        backends=(),
        metrics=orjson.loads(orjson.dumps(metrics.summary())),
    )


def test_trends_are_differences_of_snapshots() -> None:
    metrics, trends = Metrics(), Trends()
    metrics.surfaces["v1"].done = 1000
    for _ in range(1000):
        metrics.backends["old"].inter_token.observe(9.0)
    trends.add(state(metrics, 100.0))
    assert trends.table() == []  # one state tells nothing
    trends.add(state(metrics, 102.0, running=1))
    metrics.surfaces["v1"].done += 3
    metrics.surfaces["v2"].errors["queue_full"] += 1
    metrics.backends["new"].ttft.observe(0.04)
    for _ in range(9):
        metrics.backends["new"].inter_token.observe(0.02)
    trends.add(state(metrics, 104.0))
    values = {name: list(line.values) for name, line in trends.lines.items()}
    assert values["requests/s"] == [0, 2]
    assert values["tokens/s"] == [0, 5]
    assert values["running"] == [1, 0]
    before, now = values["first token"]
    assert before is None
    assert now == pytest.approx(0.04)
    assert values["between tokens"] == [None, pytest.approx(0.02)]
    assert values["queue wait"] == [None, None]
    trends.add(state(metrics, 104.0))  # no time has passed
    assert len(trends.lines["running"].values) == 2
    header, first, *_ = trends.table()
    assert header.split() == ["now", "most", "the", "last", str(KEPT)]
    assert first.split() == ["requests/s", "2", "2", "▁█"]


def test_top_without_a_terminal_names_the_alternative(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["top"]) == 2
    assert "inferd status --json" in capsys.readouterr().err
