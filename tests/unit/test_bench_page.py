"""docs/benchmarks.md matches docs/benchmarks.json."""

from __future__ import annotations

import json

from bench import page

REPORT = {
    "case": "c",
    "about": "What it is.\n\nMore of it.",
    "settings": {"repeats": 1, "threads": 2, "model": "m.gguf", "turns_disturbed": 3},
    "samples": [{"contestant": "inferd", "metric": "t", "unit": "ms", "values": [1.0, 3.0, 2.0]}],
    "ratios": [{"metric": "t", "of": "inferd", "to": "other", "value": 0.25}],
    "missing": {"other": "not installed"},
    "notes": [],
    "machine": {
        "cores": 2,
        "features": ["avx2"],
        "load_average": 1.5,
        "system": "Linux 6",
        "python": "3.11",
        "versions": {"inferd": "1.2"},
    },
}


def test_the_page_matches_the_numbers() -> None:
    reports = json.loads(page.NUMBERS.read_text())
    assert page.rendered(page.PAGE.read_text(), reports) == page.PAGE.read_text(), "run python -m bench.page"


def test_a_report_becomes_a_section() -> None:
    made = page.rendered(f"head\n{page.BEGIN}old\n{page.END}tail\n", {"case one": REPORT})
    assert made.startswith(f"head\n{page.BEGIN}\n### case one\n\nWhat it is.\n\n")
    assert made.endswith(f"{page.END}tail\n")
    assert "old" not in made
    assert (
        "m.gguf, 2 threads, 1 round; 3 measurements ran beside other programs."
        " Machine: 2 cores (avx2), load 1.5" in made
    )
    assert "| t | inferd | 2 | 1 | 3 | ms |" in made
    assert "| t | inferd | other | 0.25 |" in made
    assert "other did not take part: not installed" in made
    assert page.rendered(made, {"case one": REPORT}) == made
