"""The report of ``inferd bench``."""

from __future__ import annotations

from dataclasses import replace

from inferd.cli.bench import Measured, Streams, bar, report

FOUND = Measured(
    model="m",
    backend="b",
    short_first=0.05,
    long_tokens=1000,
    long_first=2.0,
    long_cached=990,
    long_again=0.1,
    answer=40.0,
    streams=[Streams(1, 40.0, 40.0), Streams(2, 60.0, 30.0), Streams(4, 36.0, 9.0)],
)


def test_the_report_has_all_numbers() -> None:
    text = "\n".join(report(FOUND))
    assert "40 tokens/s, one at a time" in text
    assert "50 ms after a short prompt" in text
    assert "2 s after one of 1,000 tokens (500 tokens/s)" in text
    assert "100 ms when that is sent again: the cache saves 95%, 10 tokens were computed" in text
    assert "Up to 2 at once come faster than a person reads" in text
    drawn = [line.count("█") for line in report(FOUND) if "█" in line]
    assert drawn == [20, 30, 18]


def test_a_backend_without_a_cache_and_a_slow_one() -> None:
    slow = replace(FOUND, long_cached=0, streams=[Streams(1, 3.0, 3.0)])
    text = "\n".join(report(slow))
    assert "this backend has no prefix cache" in text
    assert "No answer comes faster than a person reads" in text


def test_a_bar_is_as_long_as_its_share() -> None:
    assert [bar(value, 8, 1) for value in (0, 1, 4, 8)] == ["", "▏", "▌", "█"]
    assert bar(1, 0) == ""
