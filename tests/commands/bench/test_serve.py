"""`jserve bench serve` against a small OpenAI-compatible server whose timings and failures are known."""

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiohttp", reason="the load generator needs the `bench` extra")

from jserve import cli
from jserve.commands.bench.prompts import PromptSpec, make_prompts
from jserve.commands.bench.serve import main
from tests.commands.bench.stub_server import StubServer, running


def bench(tmp_path: Path, *words: str) -> tuple[int, dict[str, Any]]:
    """Exit status and JSON report of a run."""
    out = tmp_path / "report.json"
    status = main([*words, "--out", str(out), "--input-len", "4", "--warmup", "0"])
    return status, json.loads(out.read_text())


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_every_request_is_counted_with_the_servers_own_token_counts(tmp_path: Path, endpoint: str) -> None:
    with running(StubServer()) as stub:
        status, report = bench(
            tmp_path, "--url", stub.url, "--endpoint", endpoint, "--num-prompts", "6", "--output-len", "5"
        )
    metrics = report["runs"][0]["metrics"]
    assert status == 0
    assert (metrics["requests"], metrics["failed"]) == (6, 0)
    assert (metrics["output_tokens"], metrics["prompt_tokens"]) == (30, 42)
    assert metrics["counted_by"] == {"usage": 6}
    assert metrics["tokens_per_event"] == 1.0
    assert len(stub.bodies) == 6


def test_latencies_follow_the_servers_pace(tmp_path: Path) -> None:
    """None is shorter than the server makes it, nor longer than the whole request, which the run holds twice."""
    with running(StubServer(gap_s=0.02)) as stub:
        load = ("--concurrency", "1", "--num-prompts", "2")
        _, report = bench(tmp_path, "--url", stub.url, *load, "--output-len", "5")
    metrics = report["runs"][0]["metrics"]
    latency = {name: values["mean"] for name, values in metrics["latency_ms"].items()}
    for name, least in (("ttft", 20), ("e2el", 100)):
        assert least - 2 <= latency[name] <= metrics["duration_s"] * 1e3, name
    assert latency["ttft"] + 4 * latency["tpot"] <= latency["e2el"] + 1
    assert latency["itl"] == pytest.approx(latency["tpot"], rel=0.01)
    assert 2 * latency["e2el"] == pytest.approx(metrics["duration_s"] * 1e3, rel=0.5)


def test_concurrency_is_held_and_swept(tmp_path: Path) -> None:
    with running(StubServer(alone=6, together=3)) as stub:
        _, report = bench(
            tmp_path, "--url", stub.url, "--concurrency", "1,3", "--num-prompts", "6", "--output-len", "3"
        )
    assert [run["load"] for run in report["runs"]] == ["c=1", "c=3"]
    assert stub.most_in_flight == 3


def test_failures_are_counted_and_named_and_fail_the_command(tmp_path: Path) -> None:
    with running(StubServer(fail_every=3)) as stub:
        status, report = bench(tmp_path, "--url", stub.url, "--num-prompts", "6", "--output-len", "2")
    metrics = report["runs"][0]["metrics"]
    assert status == 1
    assert (metrics["requests"], metrics["failed"], metrics["output_tokens"]) == (6, 2, 8)
    assert metrics["errors"] == {"HTTP 500: out of luck": 2}
    assert metrics["flags"] == ["2 of 6 requests failed"]


def test_a_stream_that_breaks_off_is_a_failure(tmp_path: Path) -> None:
    with running(StubServer(truncate=True)) as stub:
        status, report = bench(tmp_path, "--url", stub.url, "--num-prompts", "2", "--output-len", "2")
    assert status == 1
    assert report["runs"][0]["metrics"]["failed"] == 2
    assert "ended without" in next(iter(report["runs"][0]["metrics"]["errors"]))


def test_a_server_that_is_gone_fails_every_request(tmp_path: Path) -> None:
    status, report = bench(
        tmp_path, "--url", "http://127.0.0.1:1", "--model", "m", "--num-prompts", "3", "--output-len", "2"
    )
    assert status == 1
    assert report["runs"][0]["metrics"]["failed"] == 3


def test_without_usage_events_are_counted_and_the_run_says_so(tmp_path: Path) -> None:
    with running(StubServer(usage=False)) as stub:
        _, report = bench(tmp_path, "--url", stub.url, "--num-prompts", "2", "--output-len", "4")
    metrics = report["runs"][0]["metrics"]
    assert metrics["counted_by"] == {"events": 2}
    assert metrics["output_tokens"] == 8
    assert metrics["prompt_tokens"] is None
    assert any("no usage" in flag for flag in metrics["flags"])


def test_whole_answers_have_no_first_token_time(tmp_path: Path) -> None:
    with running(StubServer()) as stub:
        _, report = bench(tmp_path, "--url", stub.url, "--no-stream", "--num-prompts", "2", "--output-len", "4")
    metrics = report["runs"][0]["metrics"]
    assert metrics["output_tokens"] == 8
    assert metrics["latency_ms"]["ttft"] == {}
    assert metrics["latency_ms"]["e2el"]["p50"] > 0


def test_servers_take_turns_with_the_same_prompts_and_each_round_has_fresh_ones(tmp_path: Path) -> None:
    with running(StubServer()) as a, running(StubServer()) as b:
        _, report = bench(
            tmp_path,
            *("--url", f"a={a.url}", "--url", f"b={b.url}", "--rounds", "2"),
            *("--num-prompts", "2", "--output-len", "2"),
        )
    prompts = [[body["prompt"] for body in stub.bodies] for stub in (a, b)]
    assert [run["target"] for run in report["runs"]] == ["a", "b", "a", "b"]
    assert prompts[0] == prompts[1]
    assert len(set(prompts[0])) == 4
    assert report["ratios"][0]["rounds"]["output_rate"][1] > 0


def test_connections_are_reused_unless_told_otherwise(tmp_path: Path) -> None:
    words = ("--model", "m", "--concurrency", "1", "--num-prompts", "4", "--output-len", "1")
    with running(StubServer()) as stub:
        bench(tmp_path, "--url", stub.url, *words)
        assert stub.connections == 1
        bench(tmp_path, "--url", stub.url, *words, "--no-keep-alive")
        assert stub.connections == 5


def test_a_server_that_lists_its_model_while_it_loads_is_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(StubServer(loading=3)) as stub:
        status, report = bench(tmp_path, "--url", stub.url, "--wait", "120", "--num-prompts", "2", "--output-len", "3")
        assert status == 0
        assert report["runs"][0]["metrics"]["failed"] == 0
        assert len(stub.bodies) == 3 + 1 + 2

    with running(StubServer(loading=1000)) as stub, pytest.raises(SystemExit):
        bench(tmp_path, "--url", stub.url, "--wait", "1", "--num-prompts", "2")
    assert "is still loading after 1 s" in capsys.readouterr().err


def test_open_loop_sends_without_waiting_for_answers(tmp_path: Path) -> None:
    with running(StubServer(together=5)) as stub:
        _, report = bench(
            tmp_path, "--url", stub.url, "--request-rate", "inf", "--num-prompts", "5", "--output-len", "2"
        )
    assert stub.most_in_flight == 5
    assert report["runs"][0]["load"] == "rate=inf"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--range-ratio", "1"], "below 1"),
        (["--dataset-name", "custom"], "--dataset-path"),
        (["--goodput", "itl:5"], "want NAME:MS"),
        (["--concurrency", "0"], "at least 1"),
        (["--percentile-metrics", "speed"], "no latency"),
        (["--tokenizer", "/nowhere"], "no tokenizer.json"),
    ],
)
def test_a_wrong_option_ends_with_a_reason(words: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--url", "http://127.0.0.1:1", "--model", "m", *words])
    assert ended.value.code == 2
    assert reason in capsys.readouterr().err


def test_a_command_of_vllm_works_word_for_word(tmp_path: Path) -> None:
    """And its result has vLLM's keys."""
    with running(StubServer()) as stub:
        host, port = stub.url.removeprefix("http://").split(":")
        words = (
            f"--backend openai-chat --model stub --host {host} --port {port} --endpoint /v1/chat/completions "
            "--dataset-name random --random-input-len 6 --random-output-len 4 --random-range-ratio 0 --num-prompts 5 "
            "--request-rate inf --burstiness 0.5 --max-concurrency 2 --seed 3 --ignore-eos --num-warmups 0 "
            "--percentile-metrics ttft,tpot,itl --metric-percentiles 50,99 --goodput ttft:60000 tpot:60000 "
            f"--save-result --save-detailed --result-dir {tmp_path} --result-filename result.json --disable-tqdm"
        )
        assert main(words.split()) == 0
    assert stub.most_in_flight <= 2
    assert all(body["ignore_eos"] and "messages" in body for body in stub.bodies)
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["completed"], result["failed"], result["num_prompts"], result["max_concurrency"]) == (5, 0, 5, 2)
    assert (result["total_input_tokens"], result["total_output_tokens"], result["request_rate"]) == (35, 20, "inf")
    assert result["output_throughput"] == pytest.approx(20 / result["duration"])
    assert result["request_goodput"] == pytest.approx(5 / result["duration"])
    for name in ("ttft", "tpot", "itl", "e2el"):
        assert result[f"p50_{name}_ms"] == pytest.approx(result[f"median_{name}_ms"])
        assert {f"mean_{name}_ms", f"std_{name}_ms", f"p99_{name}_ms"} < result.keys()
    assert (result["output_lens"], result["errors"]) == ([4] * 5, [""] * 5)
    assert result["mean_ttft_ms"] == pytest.approx(1e3 * statistics.mean(result["ttfts"]))


def test_each_run_has_a_result_of_its_own(tmp_path: Path) -> None:
    with running(StubServer()) as stub:
        words = f"--url {stub.url} --max-concurrency 1,2 --rounds 2 --num-prompts 2 --output-len 2 --warmup 0"
        main([*words.split(), "--save-result", "--result-dir", str(tmp_path), "--result-filename", "r.json"])
    results = [json.loads(path.read_text()) for path in sorted(tmp_path.iterdir())]
    assert sorted(result["max_concurrency"] for result in results) == [1, 1, 2, 2]
    assert {path.name for path in tmp_path.iterdir()} == {"r.json", "r-2.json", "r-3.json", "r-4.json"}


def test_a_recording_is_replayed_with_its_lengths_times_and_common_beginnings(tmp_path: Path) -> None:
    trace = tmp_path / "workload.jsonl"
    recorded = [(900, 600, 3, [7, 8]), (400, 520, 2, [7, 9]), (400, 5, 4, [1])]
    lines = [
        {"timestamp": at, "input_length": prompt, "output_length": answer, "hash_ids": ids}
        for at, prompt, answer, ids in recorded
    ]
    trace.write_text("".join(json.dumps(line) + "\n" for line in lines))
    spec = PromptSpec("timed_trace", trace)
    second, short, first = make_prompts(spec, 0, "s", None)
    assert [len(prompt.text.split()) for prompt in (first, second, short)] == [600, 520, 5]
    assert [prompt.output_len for prompt in (first, second, short)] == [3, 2, 4]
    assert [prompt.due_s for prompt in (second, short, first)] == [0, 0, 0.5]
    assert first.text.split()[:512] == second.text.split()[:512]
    assert first.text.split()[512:520] != second.text.split()[512:]
    with running(StubServer()) as stub:
        words = f"--url {stub.url} --dataset-name timed_trace --dataset-path {trace} --num-warmups 0"
        assert main(words.split()) == 0
    assert sorted(body["max_tokens"] for body in stub.bodies) == [2, 3, 4]


def test_the_command_finds_it(capsys: pytest.CaptureFixture[str]) -> None:
    with running(StubServer()) as stub, pytest.raises(SystemExit) as ended:
        cli.main(["bench", "serve", "--url", stub.url, "--num-prompts", "2", "--output-len", "2"])
    assert ended.value.code == 0
    assert "out tok/s" in capsys.readouterr().out
    for words, said in ((["bench"], "which benchmark?"), (["bench", "latency"], "latency is none")):
        with pytest.raises(SystemExit):
            cli.main(words)
        assert said in capsys.readouterr().err
