"""Replay a trace against servers in turn, and count the requests that each answers in time.

  python -m benchmarks.goodput --url jserve=http://127.0.0.1:8000 --url vllm=http://127.0.0.1:8103 \\
      --rates 0.5,1 --rounds 3 --out result.json

The trace (`benchmarks/trace.py`) has bursts, heavy-tailed lengths, shared system prompts and conversations, and
goes over the chat endpoint. Requests are sent at their recorded times, however slow the server is; only the next
turn of a conversation waits for the answer before it, which it repeats. A request is good if it keeps every
`--slo`; latencies count from when it was due. Goodput is the share of good requests, and the output tokens a
second of good requests alone.

In each round every server gets the same trace with the same words; other rounds have other words, so that a
prefix cache knows from a round only what the round itself has brought. `cached` is the share of prompt tokens
that the server reports as cached (`usage.prompt_tokens_details`; jserve, vLLM: --enable-prompt-tokens-details),
`shareable` the most that a perfect cache could have had.

A stall is the longest gap between two texts of one answer. `--chunk NAME=N` tells a server's token budget per
step; the time of a lone prompt of N tokens is measured before the rounds, and stalls are counted in such chunks.
"""

import argparse
import asyncio
import dataclasses
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

from benchmarks.trace import TracedRequest, TraceSpec, TraceText, describe, make_trace
from jserve.commands.bench.interference import CpuWatch
from jserve.commands.bench.load import LoadGenerator, Outcome, RequestStyle, Target
from jserve.commands.bench.metrics import RunMetrics, distribution, measure, timing_of, within
from jserve.commands.bench.options import add_servers, goodput_of, name_url, per_target, targets_of
from jserve.commands.bench.prompts import Prompt, load_tokenizer, random_text
from jserve.commands.bench.report import machine, number

DEFAULT_SLO = ("ttft:2000", "tpot:150")
"""For a CPU: an answer that starts within two seconds and comes faster than it is read aloud."""
PERCENTILES = (50, 90, 99)
CHUNK_PROBES = 3
AT_LEAST_GOOD = 0.9
"""The share at which a rate counts as served."""


@dataclass(frozen=True, slots=True)
class GoodputRun:
    """One server under one rate in one round."""

    target: str
    rate: float
    round: int
    good_share: float
    """Share of good requests among all, failed ones included."""
    good_requests_per_s: float
    good_tokens_per_s: float
    """Output tokens of good requests."""
    missed: dict[str, int]
    """Requests that missed a target, by target; some missed several."""
    cached_share: float | None
    """Share of the prompt tokens; None where the server does not report it."""
    stall_ms: dict[str, float]
    """Distribution over the requests of the longest gap in each, and `max`."""
    chunk_ms: float | None
    metrics: RunMetrics

    @property
    def stall_in_chunks(self) -> float | None:
        """The longest stall of all in the time of a lone chunk of prompt."""
        longest = self.stall_ms.get("max")
        return longest / self.chunk_ms if longest is not None and self.chunk_ms else None


@dataclass(frozen=True, slots=True)
class Replay:
    """Everything that a run needs beside its target."""

    style: RequestStyle
    trace: Sequence[TracedRequest]
    words_seed: str
    tokenizer: Tokenizer | None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 if every request succeeded, 1 if one failed, 2 for a wrong command line."""
    parser = arguments()
    args = parser.parse_args(argv)
    try:
        urls = dict(name_url(text) for text in args.url)
        targets = targets_of(args, urls)
        slo = goodput_of(args.slo)
        chunks = {name: int(sizes[-1]) for name, sizes in per_target(args.chunk, urls).items() if sizes}
        pids = {name: tuple(map(int, numbers)) for name, numbers in per_target(args.server_pid, urls).items()}
        tokenizer = load_tokenizer(args.tokenizer) if args.tokenizer else None
        specs = [spec_of(args, float(rate)) for rate in args.rates.split(",")]
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    seed = random.randrange(1 << 31) if args.seed is None else args.seed
    style = RequestStyle("chat", True, args.ignore_eos, args.temperature, args.keep_alive, args.timeout, args.api_key)
    watch = CpuWatch({target.name: target.url for target in targets}, pids)
    chunk_ms = {
        target.name: chunk_time(style, target, chunks[target.name], f"{seed} {random.random()}", tokenizer)
        for target in targets
        if target.name in chunks
    }
    runs = []
    for spec in specs:
        trace = make_trace(spec, str(args.trace_seed))
        for index in range(args.rounds):
            replay = Replay(style, trace, f"{seed} {spec.rate:g} {index}", tokenizer)
            for target in targets:
                run = run_once(replay, target, spec.rate, index, slo, chunk_ms.get(target.name), watch)
                runs.append(run)
                tell(run)
    console = Console(width=None if sys.stdout.isatty() else 200)
    traces = {f"{spec.rate:g}": describe(make_trace(spec, str(args.trace_seed))) for spec in specs}
    print_runs(console, runs, traces)
    if args.out:
        words = sys.argv[1:] if argv is None else argv
        args.out.write_text(json.dumps(report_of(args, words, seed, slo, traces, runs), indent=1) + "\n")
    return 1 if any(run.metrics.failed for run in runs) else 0


def arguments() -> argparse.ArgumentParser:
    """The command line: the servers as in `jserve bench serve`, the trace, and what is good."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.goodput",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_servers(parser.add_argument_group("servers"))
    add = parser.add_argument_group("trace").add_argument
    add("--rates", default="1", metavar="R[,R...]", help="requests a second, measured in turn (default 1)")
    add("--requests", type=int, default=60, help="of each run (default 60)")
    add("--length-scale", type=float, default=0.4, help="of all lengths (default 0.4, for a CPU; recorded: 1)")
    add("--max-total", type=int, default=2048, help="most tokens of a prompt and its answer (default 2048)")
    add("--trace-seed", type=int, default=1, help="of times and lengths (default 1)")
    add("--seed", type=int, help="of the words (default: a new one each time, written to --out)")
    add("--tokenizer", metavar="PATH", help="tokenizer.json or its folder, for exact lengths")
    add = parser.add_argument_group("figures").add_argument
    add("--slo", nargs="+", default=list(DEFAULT_SLO), metavar="NAME:MS", help="default: ttft:2000 tpot:150")
    add("--chunk", action="append", default=[], metavar="[NAME=]N", help="token budget of a server's step")
    add("--rounds", type=int, default=1, help="runs of each server per rate (default 1)")
    add("--server-pid", action="append", default=[], metavar="[NAME=]PID", help="see `jserve bench serve`")
    add("--out", type=Path, metavar="FILE", help="write everything as JSON")
    return parser


def spec_of(args: argparse.Namespace, rate: float) -> TraceSpec:
    """The trace that the options ask for."""
    return TraceSpec(args.requests, rate, args.length_scale, args.max_total)


def chunk_time(style: RequestStyle, target: Target, tokens: int, seed: str, tokenizer: Tokenizer | None) -> float:
    """Milliseconds of a lone new prompt of `tokens` tokens, to its only token of answer; the median of some."""
    words = TraceText(seed, tokenizer).words

    async def probe() -> list[float]:
        async with LoadGenerator(style, tokenizer) as generator:
            times = []
            for index in range(CHUNK_PROBES):
                text = random_text(tokens, words, random.Random(f"{seed} {index}"), tokenizer)
                outcome = await generator.send(target, Prompt(text, 1), time.perf_counter())
                if outcome.error:
                    raise ConnectionError(f"{target.name} cannot be measured: {outcome.error}")
                times.append((outcome.ended - outcome.sent) * 1e3)
            return times

    return statistics.median(asyncio.run(probe()))


def run_once(
    replay: Replay,
    target: Target,
    rate: float,
    index: int,
    slo: Mapping[str, float],
    chunk_ms: float | None,
    watch: CpuWatch,
) -> GoodputRun:
    """One replay against one server, with the CPU watched around it."""
    before = watch.read(target.name)
    outcomes = asyncio.run(send_trace(replay, target))
    cpu = watch.shares(before, watch.read(target.name))
    metrics = measure(outcomes, streamed=True, percentiles=PERCENTILES, goodput=slo, cpu=cpu, cores=os.cpu_count() or 1)
    return judge(outcomes, metrics, slo, target.name, rate, index, chunk_ms)


async def send_trace(replay: Replay, target: Target) -> list[Outcome]:
    """Every request at its time, a follow-up not before the answer it repeats has ended."""
    text = TraceText(replay.words_seed, replay.tokenizer)
    conversations: dict[int, list[TracedRequest]] = {}
    for request in replay.trace:
        conversations.setdefault(request.conversation, []).append(request)
    start = time.perf_counter()
    async with LoadGenerator(replay.style, replay.tokenizer) as generator:

        async def converse(turns: Sequence[TracedRequest]) -> list[Outcome]:
            messages: tuple[dict[str, str], ...] = ({"role": "system", "content": text.system(turns[0])},)
            outcomes: list[Outcome] = []
            for turn in turns:
                due = max(start + turn.at, outcomes[-1].ended if outcomes else 0.0)
                await asyncio.sleep(due - time.perf_counter())
                said = text.user(turn)
                outcome = await generator.send(target, Prompt(said, turn.output_len, messages), due)
                outcomes.append(outcome)
                if outcome.error:
                    rest = f"an earlier turn of the conversation failed: {outcome.error}"
                    missing = len(turns) - len(outcomes)
                    now = time.perf_counter()
                    outcomes += [Outcome(turn.output_len, now, now, ended=now, error=rest) for _ in range(missing)]
                    break
                messages += ({"role": "user", "content": said}, {"role": "assistant", "content": outcome.text})
            return outcomes

        answered = await asyncio.gather(*map(converse, conversations.values()))
    return [outcome for outcomes in answered for outcome in outcomes]


def judge(
    outcomes: Sequence[Outcome],
    metrics: RunMetrics,
    slo: Mapping[str, float],
    target: str,
    rate: float,
    index: int,
    chunk_ms: float | None,
) -> GoodputRun:
    """Which requests were good, how long the stalls were, and how much the cache had."""
    answered = [(outcome, timing_of(outcome, True)) for outcome in outcomes if outcome.error is None]
    good = [outcome for outcome, timing in answered if within(timing, slo)]
    stalls = [max(timing.itl) for _, timing in answered if timing.itl]
    counted = [o for o, _ in answered if o.cached_tokens is not None and o.prompt_tokens]
    prompt_tokens = sum(outcome.prompt_tokens or 0 for outcome in counted)
    seconds = metrics.duration_s or 1.0
    return GoodputRun(
        target=target,
        rate=rate,
        round=index,
        good_share=len(good) / len(outcomes),
        good_requests_per_s=len(good) / seconds,
        good_tokens_per_s=sum(outcome.output_tokens for outcome in good) / seconds,
        missed={name: sum(not within(timing, {name: limit}) for _, timing in answered) for name, limit in slo.items()},
        cached_share=sum(outcome.cached_tokens or 0 for outcome in counted) / prompt_tokens if prompt_tokens else None,
        stall_ms={**distribution(stalls, PERCENTILES), **({"max": max(stalls)} if stalls else {})},
        chunk_ms=chunk_ms,
        metrics=metrics,
    )


def tell(run: GoodputRun) -> None:
    """A line on stderr after each run."""
    flags = f"  ({'; '.join(run.metrics.flags)})" if run.metrics.flags else ""
    print(
        f"rate={run.rate:g} round {run.round + 1} {run.target}: {run.good_share:.0%} good, "
        f"{run.good_tokens_per_s:.1f} good tokens/s{flags}",
        file=sys.stderr,
    )


def print_runs(console: Console, runs: Sequence[GoodputRun], traces: Mapping[str, Mapping[str, float]]) -> None:
    """One row a run, and for each server the highest rate that it served."""
    for rate, trace in traces.items():
        figures = ", ".join(f"{name} {number(value)}" for name, value in trace.items())
        console.print(f"trace at rate {rate}: {figures}", highlight=False)
    columns = ("rate", "round", "target", "good", "good tok/s", "tok/s", "ttft\n50/90/99", "tpot\n50/90/99")
    table = Table(*columns, "itl\n50/99", "stall\n50/max", "in\nchunks", "cached", "cpu\nothers", title="ms")
    for run in runs:
        m, ms = run.metrics, run.metrics.latency_ms
        chunks, cached = run.stall_in_chunks, run.cached_share
        table.add_row(
            f"{run.rate:g}",
            str(run.round + 1),
            run.target,
            f"{run.good_share:.0%}",
            number(run.good_tokens_per_s),
            number(m.output_tokens_per_s),
            *("/".join(number(ms[name].get(key)) for key in ("p50", "p90", "p99")) for name in ("ttft", "tpot")),
            "/".join(number(ms["itl"].get(key)) for key in ("p50", "p99")),
            "/".join(number(run.stall_ms.get(key)) for key in ("p50", "max")),
            number(chunks),
            "?" if cached is None else f"{cached:.0%}",
            "?" if m.cpu is None else f"{m.cpu.others:.0%}",
        )
    console.print(table)
    for name, served in served_rates(runs).items():
        console.print(f"{name}: highest rate with {AT_LEAST_GOOD:.0%} good: {number(served)}", highlight=False)
    for run in runs:
        for note in (*run.metrics.flags, *run.metrics.errors):
            console.print(f"rate={run.rate:g} round {run.round + 1} {run.target}: {note}", markup=False)


def served_rates(runs: Sequence[GoodputRun]) -> dict[str, float | None]:
    """For each server the highest rate whose rounds had enough good requests in the median."""
    rates: dict[str, float | None] = {run.target: None for run in runs}
    for target in rates:
        for rate in sorted({run.rate for run in runs}):
            shares = [run.good_share for run in runs if run.target == target and run.rate == rate]
            if shares and statistics.median(shares) >= AT_LEAST_GOOD:
                rates[target] = rate
    return rates


def report_of(
    args: argparse.Namespace,
    argv: Sequence[str],
    seed: int,
    slo: Mapping[str, float],
    traces: Mapping[str, Mapping[str, float]],
    runs: Sequence[GoodputRun],
) -> dict[str, Any]:
    """What the JSON file holds; an API key is left out of it."""
    return {
        "command": ["python", "-m", "benchmarks.goodput", *without_key(argv)],
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": machine(),
        "seed": seed,
        "trace_seed": args.trace_seed,
        "slo_ms": dict(slo),
        "traces": traces,
        "served_rates": served_rates(runs),
        "runs": [{**dataclasses.asdict(run), "stall_in_chunks": run.stall_in_chunks} for run in runs],
    }


def without_key(argv: Sequence[str]) -> Iterator[str]:
    """The words of a command line, a key replaced."""
    hidden = False
    for word in argv:
        yield "..." if hidden else "--api-key=..." if word.startswith("--api-key=") else word
        hidden = word == "--api-key"


if __name__ == "__main__":
    sys.exit(main())
