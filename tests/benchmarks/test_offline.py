"""The offline benchmark's arithmetic, on an `LLM` that answers at a known pace."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import jserve
from benchmarks.offline import main
from jserve import SamplingParams


class PacedLLM:
    """Takes 50 ms a call; the first answer of each call is one token short."""

    def __init__(self, model: str, **options: Any) -> None:
        assert (model, options) == ("m", {"wait_for_compile": True, "seed": 3})

    def generate(self, prompts: Sequence[str], params: SamplingParams) -> list[SimpleNamespace]:
        time.sleep(0.05)
        lengths = [(params.max_tokens or 0) - (index == 0) for index in range(len(prompts))]
        return [
            SimpleNamespace(prompt_token_ids=prompt.split(), outputs=[SimpleNamespace(token_ids=[1] * length, text="")])
            for prompt, length in zip(prompts, lengths, strict=True)
        ]


def test_tokens_are_those_returned_and_short_answers_are_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(jserve, "LLM", PacedLLM, raising=False)
    out = tmp_path / "offline.json"
    words = ["--model", "m", "--num-prompts", "4", "--input-len", "6", "--output-len", "10", "--rounds", "2"]
    assert main([*words, "--llm", '{"seed": 3}', "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    assert [one["output_tokens"] for one in report["rounds"]] == [39, 39]
    assert [one["prompt_tokens"] for one in report["rounds"]] == [24, 24]
    for one in report["rounds"]:
        assert one["output_tokens_per_s"] == pytest.approx(39 / one["duration_s"])
        assert one["duration_s"] >= 0.05
    assert "2 answers ended before their length" in capsys.readouterr().out
