"""Tokens a second of the offline API: one `LLM`, a list of random prompts, no server in between.

    python -m benchmarks.offline --model PATH --num-prompts 64 --input-len 128 --output-len 128

Every round has fresh prompts, so that a prefix cache does not answer from memory. Loading and a warm-up
are timed apart from the rounds.
"""

import argparse
import dataclasses
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from jserve.commands.bench.prompts import Prompt, PromptSpec, load_tokenizer, make_prompts
from jserve.commands.bench.report import machine, number


@dataclass(frozen=True, slots=True)
class OfflineRound:
    """One call of `generate`. `prompt_tokens` is None if the outputs do not hold the prompts' ids."""

    duration_s: float
    prompt_tokens: int | None
    output_tokens: int
    short_answers: int

    @property
    def output_tokens_per_s(self) -> float:
        """Generated tokens a second, prefill included in the time."""
        return self.output_tokens / self.duration_s

    @property
    def total_tokens_per_s(self) -> float | None:
        """Prompt and generated tokens a second."""
        if self.prompt_tokens is None:
            return None
        return (self.prompt_tokens + self.output_tokens) / self.duration_s


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.offline",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", required=True, help="what `LLM` takes: a folder or a .gguf file")
    add(
        "--llm",
        type=json.loads,
        default={},
        metavar="JSON",
        help="more arguments of `LLM`, whose compiling is waited for",
    )
    add("--num-prompts", type=int, default=64, help="per round (default 64)")
    add("--input-len", type=int, default=128, help="tokens of a prompt (default 128)")
    add("--output-len", type=int, default=128, help="tokens of an answer (default 128)")
    add("--range-ratio", type=float, default=0.0, help="0.2 spreads both lengths over 0.8 to 1.2 of them")
    add("--shared-prefix-len", type=int, default=0, help="tokens that all prompts of a round begin with")
    add("--tokenizer", metavar="PATH", help="tokenizer.json or its folder, for exact lengths of prompts")
    add("--rounds", type=int, default=3, help="default 3; the median is reported")
    add("--seed", type=int, help="of the prompts (default: a new one each time)")
    add("--out", type=Path, metavar="FILE", help="write everything as JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Load the model, generate in rounds, report. Returns 0."""
    parser = arguments()
    args = parser.parse_args(argv)
    if args.seed is None:
        args.seed = random.randrange(1 << 31)
    try:
        spec = PromptSpec(
            input_len=args.input_len,
            output_len=args.output_len,
            range_ratio=args.range_ratio,
            shared_prefix_len=args.shared_prefix_len,
        )
        tokenizer = load_tokenizer(args.tokenizer) if args.tokenizer else None
        if min(args.rounds, args.num_prompts) < 1:
            raise ValueError("--rounds and --num-prompts must be at least 1")
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")

    from jserve import LLM

    began = time.perf_counter()
    llm = LLM(args.model, **({"wait_for_compile": True} | args.llm))
    load_s = time.perf_counter() - began
    warm_up = dataclasses.replace(spec, output_len=min(spec.output_len, 16))
    generate(llm, make_prompts(warm_up, args.num_prompts, f"{args.seed} warm-up", tokenizer))
    rounds = [
        generate(llm, make_prompts(spec, args.num_prompts, f"{args.seed} {index}", tokenizer))
        for index in range(args.rounds)
    ]
    print_rounds(rounds, load_s)
    if args.out:
        report = report_of(vars(args), rounds, load_s)
        args.out.write_text(json.dumps(report, indent=1, default=str) + "\n")
    return 0


def generate(llm: Any, prompts: Sequence[Prompt]) -> OfflineRound:
    """One timed call of `llm.generate`, greedy and to the full length of every answer."""
    from jserve import SamplingParams

    params = [SamplingParams(temperature=0.0, max_tokens=p.output_len, ignore_eos=True) for p in prompts]
    one_length = len({prompt.output_len for prompt in prompts}) == 1
    began = time.perf_counter()
    outputs = llm.generate([prompt.text for prompt in prompts], params[0] if one_length else params)
    duration = time.perf_counter() - began
    lengths = [len(output.outputs[0].token_ids) for output in outputs]
    prompt_ids = [getattr(output, "prompt_token_ids", None) for output in outputs]
    return OfflineRound(
        duration_s=duration,
        prompt_tokens=None if None in prompt_ids else sum(map(len, filter(None, prompt_ids))),
        output_tokens=sum(lengths),
        short_answers=sum(got < prompt.output_len for got, prompt in zip(lengths, prompts, strict=True)),
    )


def print_rounds(rounds: Sequence[OfflineRound], load_s: float) -> None:
    """One row a round, then the median."""
    table = Table(title=f"offline, model loaded in {load_s:.1f} s", title_justify="left")
    for heading in ("round", "seconds", "in", "out", "out tok/s", "total tok/s"):
        table.add_column(heading, justify="right")
    for index, one in enumerate(rounds):
        counts = (number(one.prompt_tokens), number(one.output_tokens))
        rates = (number(one.output_tokens_per_s), number(one.total_tokens_per_s))
        table.add_row(str(index + 1), number(one.duration_s), *counts, *rates)
    console = Console()
    console.print(table)
    console.print(f"median {median_rate(rounds):.1f} output tokens/s", highlight=False)
    if short := sum(one.short_answers for one in rounds):
        console.print(f"{short} answers ended before their length", highlight=False)


def median_rate(rounds: Sequence[OfflineRound]) -> float:
    """Median over the rounds of the output tokens a second."""
    return statistics.median(one.output_tokens_per_s for one in rounds)


def report_of(settings: dict[str, Any], rounds: Sequence[OfflineRound], load_s: float) -> dict[str, Any]:
    """What the JSON file holds."""
    return {
        "command": ["python", "-m", "benchmarks.offline", *sys.argv[1:]],
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": machine(),
        "settings": settings,
        "load_s": load_s,
        "rounds": [
            dataclasses.asdict(one)
            | {"output_tokens_per_s": one.output_tokens_per_s, "total_tokens_per_s": one.total_tokens_per_s}
            for one in rounds
        ],
        "median_output_tokens_per_s": median_rate(rounds),
    }


if __name__ == "__main__":
    sys.exit(main())
