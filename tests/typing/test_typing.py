"""The public typing itself, checked as a user's type checker sees it."""

from pathlib import Path

import pytest
from mypy import api

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(300)  # without a cache mypy reads all dependencies first
def test_the_public_api_has_the_types_that_it_promises(monkeypatch):
    monkeypatch.chdir(ROOT)
    report, errors, code = api.run(["--strict", "tests/typing/public_api.py"])
    assert code == 0, report + errors


def test_the_package_says_that_it_is_typed():
    for package in ("queue_system", "telemetry"):
        assert (ROOT / package / "py.typed").exists()
