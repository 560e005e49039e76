"""What is sent, and when: prompts, bodies, names of servers and arrivals."""

import statistics
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("aiohttp", reason="the load generator needs the `bench` extra")

from jserve.commands.bench.load import Outcome, RequestStyle, Target, arrival_offsets, request_body, take_event
from jserve.commands.bench.options import name_url, per_target
from jserve.commands.bench.prompts import Prompt, PromptSpec, make_prompts


def test_poisson_arrivals_have_the_mean_and_spread_of_their_rate() -> None:
    offsets = arrival_offsets(rate=20.0, count=20_000, seed="s")
    gaps = [after - before for before, after in zip([0.0, *offsets], offsets, strict=False)]
    assert statistics.mean(gaps) == pytest.approx(0.05, rel=0.03)  # standard error 0.7%
    assert statistics.stdev(gaps) == pytest.approx(0.05, rel=0.05)  # of an exponential: equal to the mean


def test_extra_fields_reach_one_target_and_null_removes_a_field() -> None:
    extras = per_target(['b={"ignore_eos": null}', '{"top_k": 1}'], {"a": "", "b": ""})
    assert extras == {"a": ['{"top_k": 1}'], "b": ['{"ignore_eos": null}', '{"top_k": 1}']}
    target = Target("b", "http://h", "m", {"ignore_eos": None, "top_k": 1})
    body = request_body(Prompt("hi", 3), target, RequestStyle())
    assert "ignore_eos" not in body
    assert (body["top_k"], body["max_tokens"], body["prompt"]) == (1, 3, "hi")
    with pytest.raises(ValueError, match="servers are a, b"):
        per_target(["c=1"], {"a": "", "b": ""})


def test_urls_may_be_named_and_may_end_in_v1() -> None:
    assert name_url("x=http://h:1/v1/") == ("x", "http://h:1")
    assert name_url("http://h:1") == ("h:1", "http://h:1")
    with pytest.raises(ValueError, match="want"):
        name_url("x=h:1")


def test_an_error_inside_a_stream_is_kept() -> None:
    result = Outcome(asked_tokens=2, due=0.0)
    take_event(b'{"error": {"message": "engine died"}}', 1.0, result)
    assert result.error is not None
    assert "engine died" in result.error


def test_prompts_are_as_long_as_asked_share_their_prefix_and_repeat_with_their_seed() -> None:
    spec = PromptSpec(input_len=20, output_len=10, range_ratio=0.5, shared_prefix_len=6)
    prompts = make_prompts(spec, 200, "one", None)
    lengths = [len(prompt.text.split()) - 6 for prompt in prompts]
    assert (min(lengths), max(lengths)) == (10, 30)
    assert {prompt.output_len for prompt in prompts} == set(range(5, 16))
    assert len({tuple(prompt.text.split()[:6]) for prompt in prompts}) == 1
    assert make_prompts(spec, 200, "one", None) == prompts
    assert make_prompts(spec, 200, "two", None) != prompts


def test_prompts_of_files_bring_their_own_lengths(tmp_path: Path) -> None:
    lines = tmp_path / "prompts.jsonl"
    lines.write_text('{"prompt": "a", "output_len": 3}\n{"prompt": "b"}\n')
    read = make_prompts(PromptSpec("custom", lines, output_len=9), 4, "s", None)
    assert sorted((prompt.text, prompt.output_len) for prompt in read) == [("a", 3)] * 2 + [("b", 9)] * 2
    talks = tmp_path / "talks.json"
    talks.write_text('[{"conversations": [{"value": "q"}, {"value": "long answer"}]}, {"conversations": []}]')
    read = make_prompts(PromptSpec("sharegpt", talks, output_len=9), 2, "s", None)
    assert read == [Prompt("q", 9)] * 2


def test_arrivals_have_the_rate_and_the_burstiness_that_are_wanted() -> None:
    for burstiness in (0.25, 1.0, 4.0):
        gaps = np.diff([0.0, *arrival_offsets(5.0, 20_000, "s", burstiness)])
        assert np.mean(gaps) == pytest.approx(0.2, rel=0.05)
        assert np.std(gaps) / np.mean(gaps) == pytest.approx(burstiness**-0.5, rel=0.1)
