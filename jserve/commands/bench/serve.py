"""Load one or several OpenAI-compatible servers with the same requests, and compare them.

  one server     jserve bench serve --url http://127.0.0.1:8000 --max-concurrency 1,8,32
  a recording    jserve bench serve --dataset-name timed_trace --dataset-path workload.jsonl
  against peers  jserve bench serve --url jserve=http://127.0.0.1:8000 \\
                     --url llama=http://127.0.0.1:8001 --max-concurrency 8 --rounds 3 --out result.json

Flags have vLLM's names where it has them, and so has what --save-result writes.

With several --url, each round sends the same prompts to each server in turn (A B A B ...), so that drift of
the machine hits all of them, and the ratios are taken within a round. Every round has fresh prompts, because
a prefix cache would answer repeated ones from memory; --same-prompts repeats them, and so does the --seed of
an earlier run against a server that still remembers it. A failed request is
counted and named, never sent again, and makes the exit status 1.
"""

import asyncio
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from tokenizers import Tokenizer
from tqdm import tqdm

from jserve.commands.bench.interference import CpuWatch
from jserve.commands.bench.load import LoadGenerator, Outcome, Target, arrival_offsets
from jserve.commands.bench.metrics import measure
from jserve.commands.bench.options import Load, Plan, arguments, plan_of
from jserve.commands.bench.prompts import Prompt, load_tokenizer, make_prompts
from jserve.commands.bench.report import Ratio, Run, machine, print_ratios, print_runs, ratios
from jserve.commands.bench.result_files import MeasuredRun, ResultFiles

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
    save = None
    if args.save_result:
        save = ResultFiles(args.result_dir, args.result_filename, args.backend, detailed=args.save_detailed).write
    runs = run_all(plan, tokenizer, show=not args.disable_tqdm and sys.stderr.isatty(), save=save)
    run_ratios = ratios(runs)
    print_runs(console, runs, plan.table)
    print_ratios(console, run_ratios)
    if args.out:
        report = report_of(plan, runs, run_ratios, sys.argv[1:] if argv is None else argv)
        args.out.write_text(json.dumps(report, indent=1, default=str) + "\n")
    return 1 if any(run.metrics.failed for run in runs) else 0


def run_all(
    plan: Plan, tokenizer: Tokenizer | None, *, show: bool = False, save: Callable[[MeasuredRun], None] | None = None
) -> list[Run]:
    """Every load, round and target in turn, with a line on stderr after each run; `show` draws a bar meanwhile."""
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
                measured = run_once(plan, load, target, prompts, seed, watch, tokenizer, show=show)
                if save is not None:
                    save(measured)
                metrics = measured.metrics
                runs.append(Run(target.name, load.label, index, metrics))
                flags = f"  ({'; '.join(metrics.flags)})" if metrics.flags else ""
                rate = f"{metrics.output_tokens_per_s:.1f} output tokens/s"
                print(f"{load.label} round {index + 1} {target.name}: {rate}{flags}", file=sys.stderr)
    return runs


def warm_up(plan: Plan, load: Load, tokenizer: Tokenizer | None) -> None:
    """Some short requests to each target at the load's width, of which only a failure is reported."""
    concurrency = load.concurrency or 8
    count = min(concurrency, 8) if plan.warmup is None else plan.warmup
    if not count:
        return
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
    *,
    show: bool = False,
) -> MeasuredRun:
    """One run of one target, with the CPU watched around it."""
    before = watch.read(target.name)
    label = f"{load.label} {target.name}"
    with tqdm(total=len(prompts), desc=label, unit="request", disable=not show, leave=False) as bar:
        outcomes = asyncio.run(send_all(plan, load, target, prompts, seed, tokenizer, bar.update))
    cpu = watch.shares(before, watch.read(target.name))
    metrics = measure(
        outcomes,
        streamed=plan.style.stream,
        percentiles=plan.percentiles,
        goodput=plan.goodput,
        cpu=cpu,
        cores=os.cpu_count() or 1,
    )
    return MeasuredRun(plan, load, target, outcomes, metrics)


async def send_all(
    plan: Plan,
    load: Load,
    target: Target,
    prompts: Sequence[Prompt],
    seed: str,
    tokenizer: Tokenizer | None,
    on_answer: Callable[[], object] = lambda: None,
) -> list[Outcome]:
    """The load's requests to one target, over connections that are closed at the end."""
    async with LoadGenerator(plan.style, tokenizer, on_answer) as generator:
        if load.rate == float("inf"):
            return await generator.closed_loop(target, prompts, load.concurrency or len(prompts))
        if load.rate is not None:
            offsets = arrival_offsets(load.rate, len(prompts), seed, load.burstiness)
            return await generator.open_loop(target, prompts, offsets, load.concurrency)
        if load.concurrency is not None:
            return await generator.closed_loop(target, prompts, load.concurrency)
        return await generator.open_loop(target, prompts, [prompt.due_s or 0.0 for prompt in prompts])


def report_of(plan: Plan, runs: Sequence[Run], run_ratios: Sequence[Ratio], argv: Sequence[str]) -> dict[str, Any]:
    """What the JSON file holds; an API key is left out of it."""
    settings = dataclasses.asdict(plan)
    settings["style"]["api_key"] = None
    words = list(argv)
    if "--api-key" in words[:-1]:
        words[words.index("--api-key") + 1] = "..."
    words = ["--api-key=..." if word.startswith("--api-key=") else word for word in words]
    return {
        "command": ["jserve", "bench", "serve", *words],
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": machine(),
        "settings": settings,
        "runs": [dataclasses.asdict(run) for run in runs],
        "ratios": [dataclasses.asdict(ratio) for ratio in run_ratios],
    }
