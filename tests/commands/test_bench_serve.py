"""The load generator against a small OpenAI-compatible server whose timings and failures are known."""

import asyncio
import contextlib
import json
import statistics
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("aiohttp", reason="the load generator needs the `bench` extra")

from jserve import cli
from jserve.commands.bench.interference import CpuShares
from jserve.commands.bench.load import Outcome, RequestStyle, Target, arrival_offsets, request_body, take_event
from jserve.commands.bench.metrics import OTHERS_LIMIT, distribution, measure
from jserve.commands.bench.options import name_url, per_target
from jserve.commands.bench.prompts import Prompt, PromptSpec, make_prompts
from jserve.commands.bench.report import Run, ratios
from jserve.commands.bench.serve import main


@dataclass
class StubServer:
    """Answers with `max_tokens` words, one every `gap_s`; misbehaves as its fields say."""

    gap_s: float = 0.0
    usage: bool = True
    fail_every: int = 0  # every n-th request gets HTTP 500
    truncate: bool = False
    loading: int = 0  # so many requests get HTTP 503 first
    alone: int = 0  # so many requests are answered at once; those after them wait until `together` have been in flight
    together: int = 0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    connections: int = 0
    in_flight: int = 0
    most_in_flight: int = 0
    url: str = ""

    async def serve_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                if head.startswith("get /v1/models"):
                    self.respond(writer, 200, json.dumps({"data": [{"id": "stub"}]}))
                    continue
                length = int(head.split("content-length:")[1].split("\r\n")[0])
                body = json.loads(await reader.readexactly(length))
                self.bodies.append(body)
                self.in_flight += 1
                self.most_in_flight = max(self.most_in_flight, self.in_flight)
                while len(self.bodies) > self.alone and self.most_in_flight < self.together:
                    await asyncio.sleep(0.001)
                await self.answer(writer, body, chat="chat" in head.split()[1])
                self.in_flight -= 1
                if self.truncate:
                    break
        writer.close()

    async def answer(self, writer: asyncio.StreamWriter, body: dict[str, Any], chat: bool) -> None:
        if self.fail_every and len(self.bodies) % self.fail_every == 0:
            self.respond(writer, 500, "out of luck")
            return
        if len(self.bodies) <= self.loading:
            self.respond(writer, 503, "loading weights")
            return
        count = body["max_tokens"]
        usage = {"prompt_tokens": 7, "completion_tokens": count}
        if not body.get("stream"):
            choice = {"text": "word " * count, "finish_reason": "length"}
            self.respond(writer, 200, json.dumps({"choices": [choice]} | ({"usage": usage} if self.usage else {})))
            return
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        if chat:
            self.event(writer, {"choices": [{"delta": {"role": "assistant", "content": ""}}]})
        for _ in range(count):
            await asyncio.sleep(self.gap_s)
            self.event(writer, {"choices": [{"delta": {"content": "w "}} if chat else {"text": "w "}]})
        if not self.truncate:
            self.event(writer, {"choices": [{"text": "", "finish_reason": "length"}]})
            if self.usage:
                self.event(writer, {"choices": [], "usage": usage})
            self.chunk(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")

    def event(self, writer: asyncio.StreamWriter, content: dict[str, Any]) -> None:
        self.chunk(writer, b"data: " + json.dumps(content).encode() + b"\n\n")

    def chunk(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(b"%x\r\n%b\r\n" % (len(data), data))

    def respond(self, writer: asyncio.StreamWriter, status: int, text: str) -> None:
        writer.write(f"HTTP/1.1 {status} X\r\ncontent-length: {len(text)}\r\n\r\n{text}".encode())


@contextlib.contextmanager
def running(stub: StubServer) -> Iterator[StubServer]:
    """The stub on a free port, in a thread of its own."""
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(stub.serve_connection, "127.0.0.1", 0))
    stub.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield stub
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


def bench(tmp_path: Path, *words: str) -> tuple[int, dict[str, Any]]:
    """Exit status and JSON report of a run."""
    out = tmp_path / "report.json"
    status = main([*words, "--out", str(out), "--input-len", "4", "--warmup", "0"])
    return status, json.loads(out.read_text())


def outcome(first: float, gap: float, tokens: int, error: str | None = None) -> Outcome:
    """A request due at 0 s whose tokens come at `first`, `first + gap`, ... seconds."""
    times = [first + gap * index for index in range(tokens)]
    return Outcome(
        asked_tokens=tokens,
        due=0.0,
        text_times=times,
        ended=times[-1],
        prompt_tokens=10,
        output_tokens=tokens,
        counted_by="usage",
        error=error,
    )


def run_of(target: str, index: int, first: float, *, others: float = 0.0) -> Run:
    """A run of one request whose five tokens end at twice `first` seconds."""
    cpu = CpuShares(server=0.5, client=0.0, others=others)
    return Run(target, "c=1", index, measure([outcome(first, first / 4, 5)], streamed=True, cpu=cpu))


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


def test_poisson_arrivals_have_the_mean_and_spread_of_their_rate() -> None:
    offsets = arrival_offsets(rate=20.0, count=20_000, seed="s")
    gaps = [after - before for before, after in zip([0.0, *offsets], offsets, strict=False)]
    assert statistics.mean(gaps) == pytest.approx(0.05, rel=0.03)  # standard error 0.7%
    assert statistics.stdev(gaps) == pytest.approx(0.05, rel=0.05)  # of an exponential: equal to the mean


def test_percentiles_of_known_timings() -> None:
    outcomes = [outcome(first=(index + 1) / 1000, gap=0.010, tokens=3) for index in range(101)]
    metrics = measure(outcomes, streamed=True)
    ttft = metrics.latency_ms["ttft"]
    assert ttft == pytest.approx({"mean": 51, "p50": 51, "p90": 91, "p99": 100})
    assert metrics.latency_ms["tpot"]["mean"] == pytest.approx(10)
    assert metrics.latency_ms["itl"]["p99"] == pytest.approx(10)
    assert metrics.latency_ms["e2el"]["p50"] == pytest.approx(71)
    assert metrics.duration_s == pytest.approx(0.121)
    assert metrics.output_tokens_per_s == pytest.approx(303 / 0.121)
    assert metrics.total_tokens_per_s == pytest.approx((303 + 1010) / 0.121)
    assert distribution([], (50,)) == {}


def test_goodput_counts_requests_that_keep_every_limit() -> None:
    outcomes = [outcome(0.1, 0.01, 11), outcome(0.3, 0.01, 11), outcome(0.1, 0.05, 11)]
    metrics = measure(outcomes, streamed=True, goodput={"ttft": 200, "tpot": 20})
    assert metrics.goodput_per_s == pytest.approx(1 / 0.6)


def test_failed_requests_take_time_but_give_no_tokens() -> None:
    metrics = measure([outcome(0.1, 0.1, 10), outcome(1.1, 0.1, 10, error="boom")], streamed=True)
    assert metrics.duration_s == pytest.approx(2.0)
    assert metrics.output_tokens_per_s == pytest.approx(5.0)
    assert metrics.latency_ms["ttft"]["mean"] == pytest.approx(100)


def test_ratio_is_taken_within_a_round_and_the_median_over_clean_rounds() -> None:
    runs = [
        *(run_of("a", 0, 1.0), run_of("b", 0, 2.0)),
        *(run_of("a", 1, 1.0), run_of("b", 1, 4.0)),
        *(run_of("a", 2, 1.0), run_of("b", 2, 50.0, others=OTHERS_LIMIT + 0.01)),
    ]
    (ratio,) = ratios(runs)
    assert (ratio.of, ratio.to, ratio.clean_rounds) == ("a", "b", 2)
    assert ratio.rounds["output_rate"] == pytest.approx([2, 4, 50])
    assert ratio.median["output_rate"] == pytest.approx(3)
    assert ratio.median["ttft"] == pytest.approx((1 / 2 + 1 / 4) / 2)


def test_every_pair_of_three_servers_is_compared() -> None:
    compared = ratios([run_of(name, 0, first) for name, first in (("a", 1.0), ("b", 2.0), ("c", 8.0))])
    pairs = {(ratio.of, ratio.to): ratio.median["output_rate"] for ratio in compared}
    assert pairs == pytest.approx({("a", "b"): 2, ("a", "c"): 8, ("b", "c"): 4})


def test_a_run_that_others_disturbed_is_flagged() -> None:
    assert run_of("a", 0, 1.0, others=OTHERS_LIMIT + 0.01).metrics.flags == ("others took 11% of the CPU",)
    assert run_of("a", 0, 1.0, others=OTHERS_LIMIT - 0.01).metrics.flags == ()


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
    result = outcome(0.1, 0.1, 2)
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


def test_arrivals_have_the_rate_and_the_burstiness_that_are_wanted() -> None:
    for burstiness in (0.25, 1.0, 4.0):
        gaps = np.diff([0.0, *arrival_offsets(5.0, 20_000, "s", burstiness)])
        assert np.mean(gaps) == pytest.approx(0.2, rel=0.05)
        assert np.std(gaps) / np.mean(gaps) == pytest.approx(burstiness**-0.5, rel=0.1)


def test_the_command_finds_it(capsys: pytest.CaptureFixture[str]) -> None:
    with running(StubServer()) as stub, pytest.raises(SystemExit) as ended:
        cli.main(["bench", "serve", "--url", stub.url, "--num-prompts", "2", "--output-len", "2"])
    assert ended.value.code == 0
    assert "out tok/s" in capsys.readouterr().out
    for words, said in ((["bench"], "which benchmark?"), (["bench", "latency"], "latency is none")):
        with pytest.raises(SystemExit):
            cli.main(words)
        assert said in capsys.readouterr().err
