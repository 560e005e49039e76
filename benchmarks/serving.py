"""Load one or several OpenAI-compatible servers with the same requests, and compare them.

  one server     python -m benchmarks.serving --url http://127.0.0.1:8000 --concurrency 1,8,32
  against peers  python -m benchmarks.serving --url jserve=http://127.0.0.1:8000 \\
                     --url llama=http://127.0.0.1:8001 --rounds 3 --out result.json

With several --url, each round sends the same prompts to each server in turn (A B A B ...), so that drift of
the machine hits all of them, and the ratios are taken within a round. Every round has fresh prompts, because
a prefix cache would answer repeated ones from memory; --same-prompts repeats them, and so does the --seed of
an earlier run against a server that still remembers it. A failed request is
counted and named, never sent again, and makes the exit status 1. benchmarks/README.md says how each figure is
made.
"""

import asyncio
import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from tokenizers import Tokenizer

from benchmarks.interference import CpuWatch
from benchmarks.load import LoadGenerator, Outcome, Target, arrival_offsets
from benchmarks.metrics import RunMetrics, measure
from benchmarks.options import Load, Plan, arguments, plan_of
from benchmarks.prompts import Prompt, load_tokenizer, make_prompts
from benchmarks.report import Ratio, Run, machine, print_ratios, print_runs, ratios

WARMUP_OUTPUT_LEN = 16


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 if every request succeeded, 1 if one failed, 2 for a wrong command line."""
    parser = arguments(__doc__ or "")
    args = parser.parse_args(argv)
    try:
        tokenizer = load_tokenizer(args.tokenizer) if args.tokenizer else None
        plan = plan_of(args)
        make_prompts(plan.spec, 1, "check", tokenizer)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    console = Console(width=None if sys.stdout.isatty() else 220)
    runs = run_all(plan, tokenizer)
    run_ratios = ratios(runs)
    print_runs(console, runs, plan.table)
    print_ratios(console, run_ratios)
    if args.out:
        report = report_of(plan, runs, run_ratios, sys.argv[1:] if argv is None else argv)
        args.out.write_text(json.dumps(report, indent=1, default=str) + "\n")
    return 1 if any(run.metrics.failed for run in runs) else 0


def run_all(plan: Plan, tokenizer: Tokenizer | None) -> list[Run]:
    """Every load, round and target in turn, with a line on stderr after each run."""
    watch = CpuWatch({target.name: target.url for target in plan.targets}, plan.server_pids)
    for target in plan.targets:
        if not watch.can_watch(target.name):
            print(f"{target.name}: its processes are not known here, so no CPU shares", file=sys.stderr)
    runs = []
    for load in plan.loads:
        warm_up(plan, load, tokenizer)
        for index in range(plan.rounds):
            seed = f"{plan.seed} {load.label} {0 if plan.same_prompts else index}"
            prompts = make_prompts(plan.spec, load.num_prompts, seed, tokenizer)
            for target in plan.targets:
                metrics = run_once(plan, load, target, prompts, seed, watch, tokenizer)
                runs.append(Run(target.name, load.label, index, metrics))
                flags = f"  ({'; '.join(metrics.flags)})" if metrics.flags else ""
                rate = f"{metrics.output_tokens_per_s:.1f} output tokens/s"
                print(f"{load.label} round {index + 1} {target.name}: {rate}{flags}", file=sys.stderr)
    return runs


def warm_up(plan: Plan, load: Load, tokenizer: Tokenizer | None) -> None:
    """Some short requests to each target at the load's width, of which only a failure is reported."""
    concurrency = load.concurrency or 8
    count = min(concurrency, 8) if plan.warmup is None else plan.warmup
    spec = dataclasses.replace(plan.spec, output_len=min(plan.spec.output_len, WARMUP_OUTPUT_LEN))
    prompts = make_prompts(spec, count, f"{plan.seed} {load.label} warm-up", tokenizer)
    for target in plan.targets:
        outcomes = asyncio.run(send_all(plan, Load(max(1, count), None, count), target, prompts, "", tokenizer))
        for error in {outcome.error for outcome in outcomes if outcome.error}:
            print(f"{load.label} warm-up {target.name}: {error}", file=sys.stderr)


def run_once(
    plan: Plan,
    load: Load,
    target: Target,
    prompts: Sequence[Prompt],
    seed: str,
    watch: CpuWatch,
    tokenizer: Tokenizer | None,
) -> RunMetrics:
    """One run of one target, with the CPU watched around it."""
    before = watch.read(target.name)
    outcomes = asyncio.run(send_all(plan, load, target, prompts, seed, tokenizer))
    cpu = watch.shares(before, watch.read(target.name))
    return measure(
        outcomes,
        streamed=plan.style.stream,
        percentiles=plan.percentiles,
        goodput=plan.goodput,
        cpu=cpu,
        cores=os.cpu_count() or 1,
    )


async def send_all(
    plan: Plan,
    load: Load,
    target: Target,
    prompts: Sequence[Prompt],
    seed: str,
    tokenizer: Tokenizer | None,
) -> list[Outcome]:
    """The load's requests to one target, over connections that are closed at the end."""
    async with LoadGenerator(plan.style, tokenizer) as generator:
        if load.concurrency is not None:
            return await generator.closed_loop(target, prompts, load.concurrency)
        rate = load.rate or math.inf
        return await generator.open_loop(target, prompts, arrival_offsets(rate, len(prompts), seed))


def report_of(plan: Plan, runs: Sequence[Run], run_ratios: Sequence[Ratio], argv: Sequence[str]) -> dict[str, Any]:
    """What the JSON file holds; an API key is left out of it."""
    settings = dataclasses.asdict(plan)
    settings["style"]["api_key"] = None
    words = list(argv)
    if "--api-key" in words[:-1]:
        words[words.index("--api-key") + 1] = "..."
    words = ["--api-key=..." if word.startswith("--api-key=") else word for word in words]
    return {
        "command": ["python", "-m", "benchmarks.serving", *words],
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": machine(),
        "settings": settings,
        "runs": [dataclasses.asdict(run) for run in runs],
        "ratios": [dataclasses.asdict(ratio) for ratio in run_ratios],
    }


if __name__ == "__main__":
    sys.exit(main())
