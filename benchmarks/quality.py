"""What each form of weights, or of the KV cache, costs a model in quality: perplexity, and greedy tokens that stay.

    python -m benchmarks.quality MODEL --also awq=FOLDER --also gptq=FOLDER --out result.json --markdown table.md

For every form, in a process of its own: the perplexity on a text in stretches, as `jserve perplexity` has it; its own
greedy tokens after the first half of some stretches, and how many of these agree with float32's before the first that
differs. Forms are float32 and bfloat16 weights, those of a GGUF file in its bits, each `--quantization` and
`--kv-cache-dtype`, and folders of `jserve quantize` given with `--also`. The text is Paradise Lost, Book I (Milton,
1667); `jserve quantize` learns on another by itself.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.parts import ROOT
from jserve.commands.bench.report import machine

TEXT = ROOT / "benchmarks" / "texts" / "paradise_lost.txt"
REFERENCE = "float32"
FORMS: dict[str, dict[str, Any]] = {
    REFERENCE: {"quantization": "none"},
    "bfloat16": {"dtype": "bfloat16", "quantization": "none"},
    "gguf": {"quantization": "gguf"},
    "gguf-a8": {"quantization": "gguf-a8"},
    "int8": {"quantization": "int8"},
    "int8-w8a8": {"quantization": "int8-w8a8"},
    "fp8": {"quantization": "fp8"},
    "int4": {"quantization": "int4"},
    "KV cache int8": {"kv_cache_dtype": "int8", "quantization": "none"},
    "KV cache fp8": {"kv_cache_dtype": "fp8", "quantization": "none"},
}
COLUMNS = ("form", "perplexity", "nats a token more", "same greedy tokens")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="unquantized model: folder, GGUF file or ollama:NAME")
    parser.add_argument("--also", action="append", default=[], metavar="NAME=MODEL", help="another model to compare")
    parser.add_argument("--only", help="forms of FORMS to run, with commas; float32 always is")
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--tokens", type=int, default=4096, help="of the text, at most")
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--prompts", type=int, default=8, help="stretches whose first half is continued")
    parser.add_argument("--answer", type=int, default=32, help="greedy tokens of each")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.one is not None:
        print(json.dumps(measure(options, json.loads(options.one))))
        return
    chosen = set(options.only.split(",")) | {REFERENCE} if options.only else set(FORMS)
    forms = {name: {"model": options.model, **fields} for name, fields in FORMS.items() if name in chosen}
    # Rounded weights in the type of activations that float32 has, so that rows differ in weights alone.
    forms |= {name: {"model": model} for name, _, model in (each.partition("=") for each in options.also)}
    results: dict[str, dict[str, Any]] = {}
    for name, fields in forms.items():
        results[name] = in_own_process({"dtype": "float32", **fields}, argv or sys.argv[1:])
        print(f"{name}: perplexity {results[name]['perplexity']:.3f}", file=sys.stderr, flush=True)
        write(options, results)
    print_table(rows_of(results))


def measure(options: argparse.Namespace, fields: dict[str, Any]) -> dict[str, Any]:
    """Perplexity and greedy tokens of one form."""
    from jserve import LLM, SamplingParams
    from jserve.commands.perplexity import score_tokens

    llm = LLM(
        fields.pop("model"),
        max_num_seqs=4,
        max_num_batched_tokens=options.sequence_length,
        max_model_len=options.sequence_length + options.answer,
        kv_cache_memory_bytes=256 << 20,
        **fields,
    )
    tokens = llm.tokenizer.encode(options.text.read_text(), add_special_tokens=True)[: options.tokens]
    length = options.sequence_length
    stretches = [tokens[start : start + length] for start in range(0, len(tokens) - length + 1, length)]
    scores = score_tokens(llm, stretches)
    halves = [stretch[: length // 2] for stretch in stretches[: options.prompts]]
    params = SamplingParams(temperature=0.0, max_tokens=options.answer, ignore_eos=True)
    answers = [output.outputs[0].token_ids for output in llm.generate(halves, params)]
    return {
        "perplexity": scores.value,
        "nats_per_token": scores.nats_per_token,
        "tokens": scores.tokens,
        "greedy": answers,
    }


def rows_of(results: dict[str, dict[str, Any]]) -> list[tuple[str, str, str, str]]:
    """COLUMNS for every form."""
    base = results[REFERENCE]
    rows = []
    for name, result in results.items():
        more = result["nats_per_token"] - base["nats_per_token"]
        share = agreement(base["greedy"], result["greedy"])
        rows.append((name, f"{result['perplexity']:.2f}", f"{more:+.4f}", f"{share:.0%}"))
    return rows


def agreement(expected: list[list[int]], actual: list[list[int]]) -> float:
    """The share of tokens before the first that differs, over all answers."""
    same = 0
    for one, other in zip(expected, actual, strict=True):
        same += next((n for n, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), len(one))
    return same / sum(map(len, expected))


def write(options: argparse.Namespace, results: dict[str, dict[str, Any]]) -> None:
    """What is there so far."""
    if options.out is not None:
        about = {"command": " ".join(sys.argv), "machine": machine(), "results": results}
        options.out.write_text(json.dumps(about, indent=1) + "\n")
    if options.markdown is not None:
        lines = [f"| {' | '.join(row)} |" for row in (COLUMNS, ("---",) * len(COLUMNS), *rows_of(results))]
        options.markdown.write_text("\n".join(lines) + "\n")


def print_table(rows: list[tuple[str, str, str, str]]) -> None:
    """On standard output."""
    table = Table(*COLUMNS)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def in_own_process(fields: dict[str, Any], arguments: Sequence[str]) -> dict[str, Any]:
    """What `measure` gives for a form, with the options of this module's command line."""
    command = [sys.executable, "-m", "benchmarks.quality", *arguments, "--one", json.dumps(fields)]
    ran = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    result: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return result


if __name__ == "__main__":
    main()
