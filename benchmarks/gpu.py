"""The first visit to a machine with a GPU, in one command that fits eight minutes.

    python3 -m benchmarks.gpu                     all parts, from a bare copy of the tree
    python3 -m benchmarks.gpu --only steps        one part, or several with commas
    python3 -m benchmarks.gpu --tiny              try all of it on a CPU, with sizes that mean nothing

It needs no network, no make, no virtual environment and no installation: what the machine's image lacks lies in
`carried/`, which `benchmarks/carry.sh` makes before. Results are one archive of a few files, written again after each
case: `gpu.tar.gz` in --out, in $OUT, or under benchmarks/results/.

Each part is a process of its own with its own time limit, so that one that fails or hangs does not cost the others.
They come in the order of their worth, and what no time is left for is dropped from the end: a few cases of every
kernel, checked and timed; the limits of this device; steps of Llama-3.1-8B's shape with random weights; a second start
from stored programs and serving from it; a peer on the same load; then the same steps with CUDA graphs that are updated
more seldom, and with the longest context. A short table of the targets ends it, beside what `benchmarks.predict` had
said. benchmarks/README.md has the plan in seconds, and what the next visits are for.

No GPU has run this yet: until benchmarks/results holds a run from one, it is tried on a CPU alone.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import carried  # first: what the others import may be there
from benchmarks.archive import Archive
from benchmarks.gpu_plan import limit_of
from benchmarks.gpu_serving import RANDOM, SERVED, peer, serving, startup
from benchmarks.gpu_targets import PREDICTED, print_targets, targets
from benchmarks.parts import (
    MODULE,
    ROOT,
    FailedError,
    Outcome,
    SkippedError,
    Visit,
    do,
    leave_on_sigterm,
    must,
    print_parts,
)
from benchmarks.predicted_tables import find
from benchmarks.xla_flags import GRAPHS_IN_PROFILES, KEPT_GRAPHS, known_flags
from jserve.commands.bench.report import gpu_names, machine

ARCHIVE = "gpu.tar.gz"
TARGET = """
import jax, jax.numpy as jnp
x = jnp.ones((2048, 2048), jnp.bfloat16)
jax.block_until_ready(jax.jit(lambda a: jax.nn.silu(a @ a))(x))
"""


def target(visit: Visit) -> tuple[str, ...]:
    """Keep what XLA says of this GPU, for compiling without one."""
    dump = Path(tempfile.mkdtemp(prefix="target-"))
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_dump_to={dump}"
    must(visit.run("target", [sys.executable, "-c", TARGET], limit_of(visit, "target"), XLA_FLAGS=flags), "the probe")
    dumped = [*dump.glob("*gpu_target_config*"), *dump.glob("*autotune_results*")]
    for path in dumped:
        shutil.copy(path, visit.folder / path.name.split(".", 2)[-1])
    shutil.rmtree(dump, ignore_errors=True)
    if not dumped:
        raise SkippedError("XLA wrote no target config, as on a CPU")
    return tuple(sorted({path.name.split(".", 2)[-1] for path in dumped}))


def cases(visit: Visit) -> tuple[str, ...]:
    """A few cases of every kernel: right or not, and as a share of the device's limits."""
    out, limit = visit.folder / "kernels.json", limit_of(visit, "cases")
    words = ["--tiny", "--seconds", "0.02"] if visit.tiny else ["--budget", f"{limit - 15:.0f}"]
    done = visit.run("cases", [*MODULE, "benchmarks.visit_cases", *words, "--out", str(out)], limit)
    results = json.loads(out.read_text())["results"] if out.exists() else []
    measured = [r for r in results if r["microseconds"] is not None]
    wrong = [r for r in results if r["failed"] or (r["error"] is not None and not r["error"] <= r["tolerance"])]
    if wrong:
        faults = [f"{r['case']} {r['implementation']}: {r['failed'] or 'error ' + str(r['error'])}" for r in wrong]
        raise FailedError(f"{len(wrong)} of {len(results)} are wrong: {'; '.join(faults)}")
    if not done.timed_out or not measured:
        must(done, "benchmarks.visit_cases")
    shares = (
        f"{r['case']} {r['implementation']}: {max(r['of_copy'], r['of_matmul']):.0%} of the limit" for r in measured
    )
    return (f"{len(measured)} right, {len(results) - len(measured)} not for this device or without time left", *shares)


def limits(visit: Visit) -> tuple[str, ...]:
    """What this device reaches on the two plainest programs."""
    out = visit.folder / "limits.json"
    seconds = "0.05" if visit.tiny else "1"
    command = [*MODULE, "benchmarks.kernels", "--limits", "--seconds", seconds, "--out", str(out)]
    must(visit.run("limits", command, limit_of(visit, "limits")), "benchmarks.kernels")
    measured = json.loads(out.read_text())
    rates = [f"{name} product {rate / 1e12:,.1f} TFLOP/s" for name, rate in measured["matmul_flops_per_second"].items()]
    return (f"copy {measured['copy_bytes_per_second'] / 1e9:,.0f} GB/s", *rates)


@dataclass(frozen=True, slots=True)
class StepRun:
    """One run of `benchmarks.step_time`; the points in the order of their worth."""

    words: str
    tiny: str
    flags: Mapping[str, str] = field(default_factory=dict)


STEP_RUNS = {
    "steps": StepRun(
        "--points 256x1024,32x1024,1x1024,32x8192 --prefill 4096",
        "--points 4x32,1x32 --prefill 32",
    ),
    "steps-kept-graphs": StepRun("--points 256x1024,1x1024", "--points 2x32", KEPT_GRAPHS),
    "steps-long": StepRun("--points 256x1024 --max-model-len 131072", "--points 2x32 --max-model-len 512"),
}
TRACE, MAX_TRACE_BYTES = "trace.json.gz", 8 << 20


def steps(name: str) -> Callable[[Visit], tuple[str, ...]]:
    """A part that times steps of the 8B shape, on the device and on the host, beside what was predicted."""
    run = STEP_RUNS[name]

    def part(visit: Visit) -> tuple[str, ...]:
        out, profiles = visit.folder / f"{name}.json", visit.folder / "profiles" / name
        size = "--preset tiny --steps 3 --limit-seconds 0.05 --max-num-batched-tokens 64" if visit.tiny else ""
        words = f"{size or '--preset llama-3.1-8b --steps 20'} {run.tiny if visit.tiny else run.words}".split()
        flags = f"{os.environ.get('XLA_FLAGS', '')} {known_flags({**GRAPHS_IN_PROFILES, **run.flags})}".strip()
        command = [*MODULE, "benchmarks.step_time", *words, "--profile", str(profiles), "--out", str(out)]
        # A cache for all runs: the flags are part of what a program is stored under.
        command += ["--compile-cache-dir", str(visit.folder / "step-programs")]
        done = visit.run(name, command, limit_of(visit, name), XLA_FLAGS=flags)
        measured = json.loads(out.read_text())["steps"] if out.exists() else []
        _keep_trace(profiles, visit.folder / TRACE)
        if not done.timed_out or not measured:
            must(done, "step_time")
        predicted = json.loads(PREDICTED.read_text())
        return tuple(step_line(step, {} if visit.tiny else predicted) for step in measured)

    return part


def _keep_trace(profiles: Path, kept: Path) -> None:
    """The raw trace of one step, of the first run that has one, where it is small enough for the archive."""
    traces = sorted(profiles.rglob("*.trace.json.gz"), key=lambda path: path.stat().st_size)
    if traces and not kept.exists() and traces[0].stat().st_size < MAX_TRACE_BYTES:
        shutil.copy(traces[0], kept)


def step_line(step: dict[str, Any], predicted: dict[str, Any]) -> str:
    """One step, measured and predicted."""
    name = f"{step['kind']} {step['tokens']} at {step['context']}"
    if step["skipped"]:
        return f"{name}: skipped, {step['skipped']}"
    host = sum(value for stage, value in step["host_ms"].items() if stage != "collect")
    plan = {"model": "llama-3.1-8b", "weights": "bf16", "gpus": 1}
    known = (
        find(predicted.get("steps", []), **plan, batch=step["rows"], context=step["context"])
        if step["kind"] == "decode"
        else find(predicted.get("prefills", []), **plan, prompt=step["tokens"])
    )
    beside = f" of {known['predicted_ms']:.2f} predicted" if known and known["predicted_ms"] else ""
    gaps = "" if step["gaps"] is None else f", gaps {step['gaps']:.1%}"
    if step.get("graph_launches"):
        gaps += f", {step['graph_updates']:.1f} of {step['graph_launches']:.1f} graphs updated"
    return (
        f"{name}: device {step['device_ms']:.2f} ms{beside} = {step['of_limit']:.0%} of the limit{gaps}, "
        f"host {host:.2f} ms, wall {step['wall_ms']:.2f} ms"
    )


PARTS: dict[str, Callable[[Visit], tuple[str, ...]]] = {
    "cases": cases,
    "target": target,
    "limits": limits,
    "steps": steps("steps"),
    "startup": startup,
    "serving": serving,
    "serving-transformers": peer("transformers"),
    "steps-kept-graphs": steps("steps-kept-graphs"),
    "steps-long": steps("steps-long"),
}


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="tiny sizes on the CPU, to try the command itself")
    parser.add_argument("--only", metavar="PART,...", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all parts together (default 8)")
    parser.add_argument(
        "--model",
        type=Path,
        default=RANDOM,
        metavar="PATH",
        help=f"what is served; default: random weights of the shape of {SERVED}, with a small vocabulary",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: $OUT, else benchmarks/results/gpu-DATE")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """0, 1 where a part failed, 2 where there is no GPU. Never imports jax: the parts need all of the memory."""
    parser = arguments()
    args = parser.parse_args(argv)
    names = args.only.split(",") if args.only else list(PARTS)
    for name in names:
        if name not in PARTS:
            parser.error(f"--only: {name!r} is no part; they are {', '.join(PARTS)}")
    if not gpu_names() and not args.tiny:
        print("no NVIDIA GPU is here (nvidia-smi lists none); --tiny tries this command on a CPU", file=sys.stderr)
        return 2
    folder = Path(tempfile.mkdtemp(prefix="gpu-visit-"))
    platforms = "cpu" if args.tiny else "cuda,cpu"
    environment = {
        "JAX_PLATFORMS": platforms,
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": carried.paths(),
    }
    visit = Visit(folder, args.tiny, args.model, time.monotonic() + 60 * args.minutes, environment)
    leave_on_sigterm()
    archive = out_folder(args) / ARCHIVE
    try:
        with Archive(folder, archive) as kept:
            outcomes = run_parts(names, visit, args.tiny, argv, kept)
        print_parts(outcomes, archive)
        print_targets(targets(folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if args.tiny:
        print("--tiny: no GPU took part, and none of these figures means anything.")
    return 1 if any(outcome.status == "failed" for outcome in outcomes) else 0


def run_parts(
    names: Sequence[str], visit: Visit, is_tiny: bool, argv: Sequence[str] | None, kept: Archive
) -> list[Outcome]:
    """One after the other; what each came to is in the archive before the next begins."""
    outcomes = []
    for name in names:
        outcomes.append(do(name, PARTS[name], visit))
        summary = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "command": ["python3", "-m", "benchmarks.gpu", *(sys.argv[1:] if argv is None else argv)],
            "machine": machine(),
            "tiny": is_tiny,
            "parts": [asdict(outcome) for outcome in outcomes],
            "targets": [{**asdict(row), "met": row.is_met} for row in targets(visit.folder)],
            "startup": _json_of(visit.folder / "startup.json"),
        }
        (visit.folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
        kept.save()
    return outcomes


def _json_of(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None


def out_folder(args: argparse.Namespace) -> Path:
    """Where the archive goes."""
    kind = "tiny" if args.tiny else "gpu"
    default = ROOT / "benchmarks" / "results" / f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}"
    return Path(args.out or os.environ.get("OUT") or default).resolve()


if __name__ == "__main__":
    sys.exit(main())
