"""Two minutes under fire."""

import asyncio
from pathlib import Path

import pytest

from tests.chaos.__main__ import chaos


@pytest.mark.slow
def test_two_minutes_of_harm_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    report, problems = asyncio.run(chaos(tmp_path, 120.0, seed=1))
    assert not problems, (problems, report)
    assert len(report["harm"]) >= 5
