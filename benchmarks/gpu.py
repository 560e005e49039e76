"""Everything to measure on a machine with a GPU, in one command that fits ten minutes.

    python -m benchmarks.gpu                     all parts, results under benchmarks/results/
    python -m benchmarks.gpu --only steps        one part, or several with commas
    python -m benchmarks.gpu --tiny              try the logic on a CPU, with sizes that mean nothing

Each part is a process of its own with its own time limit, so that one that fails or hangs does not cost the
others; its output is kept in a log, and its figures in a JSON file. The parts, in order: the target config
and autotune results as XLA sees this GPU; kernels against their reference; whole models against transformers;
kernels as a share of the device's limits; step times of Llama-3.1-8B's shape with random weights; start-up,
cold and second; serving. What was left out is said at the end, with the reason.

No GPU has run this yet: until benchmarks/results holds a run from one, it is tried on a CPU alone.
"""

import argparse
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.parts import (
    MODEL,
    MODULE,
    ROOT,
    FailedError,
    SkippedError,
    Visit,
    do,
    leave_on_sigterm,
    must,
    print_parts,
    stop,
)
from benchmarks.report import gpu_names, machine

TARGET = """
import jax, jax.numpy as jnp
x = jnp.ones((2048, 2048), jnp.bfloat16)
jax.block_until_ready(jax.jit(lambda a: jax.nn.silu(a @ a))(x))
"""


def target(visit: Visit) -> tuple[str, ...]:
    """Keep what XLA says of this GPU, for compiling without one."""
    dump = Path(tempfile.mkdtemp(prefix="target-"))
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_dump_to={dump}"
    must(visit.run("target", [sys.executable, "-c", TARGET], 60, XLA_FLAGS=flags), "the probe")
    found = [*dump.glob("*gpu_target_config*"), *dump.glob("*autotune_results*")]
    for path in found:
        shutil.copy(path, visit.folder / path.name.split(".", 2)[-1])
    shutil.rmtree(dump, ignore_errors=True)
    if not found:
        raise SkippedError("XLA wrote no target config, as on a CPU")
    return tuple(sorted({path.name.split(".", 2)[-1] for path in found}))


def tests(name: str, choice: str, limit: float) -> Callable[[Visit], tuple[str, ...]]:
    """A part that runs some of tests/gpu."""

    def part(visit: Visit) -> tuple[str, ...]:
        command = [*MODULE, "pytest", "-q", "-m", "gpu", "tests/gpu", "-k", choice, "-rs", "--tb=short", "--no-header"]
        done = visit.run(name, command, limit)
        counts = re.findall(r"(\d+ (?:passed|failed|skipped|errors?))", done.output[-2000:])
        if not done.timed_out and done.code == 0 and not any("passed" in count for count in counts):
            reason = re.search(r"SKIPPED \[\d+\] \S+ (.*)", done.output)
            raise SkippedError(reason[1] if reason else "no test ran")
        must(done, f"{', '.join(counts) or 'pytest'};")
        return tuple(counts)

    return part


def kernels(visit: Visit) -> tuple[str, ...]:
    """Kernels as a share of the device's limits."""
    out = visit.folder / "kernels.json"
    sizes = ["--match", "decode_f32", "--limit", "1"] if visit.tiny else ["--match", "llama3_8b"]
    command = [*MODULE, "benchmarks.kernels", *sizes, "--seconds", "0.05" if visit.tiny else "0.3"]
    must(visit.run("kernels", [*command, "--out", str(out)], 120), "benchmarks.kernels")
    found = json.loads(out.read_text())
    limits = [f"copy {found['copy_bytes_per_second'] / 1e9:,.0f} GB/s"]
    limits += [
        f"{dtype} product {rate / 1e12:,.1f} TFLOP/s" for dtype, rate in found["matmul_flops_per_second"].items()
    ]
    shares = [
        f"{r['case']} {r['implementation']}: {max(r['of_copy'], r['of_matmul']):.0%} of the limit"
        for r in found["results"]
        if r["of_copy"] is not None
    ]
    return (*limits, *shares)


def steps(visit: Visit) -> tuple[str, ...]:
    """Step times of the 8B shape, on the device and on the host."""
    out = visit.folder / "steps.json"
    tiny = "--preset tiny --batch 1,4 --context 32,64 --prefill 32 --steps 3 --limit-seconds 0.05"
    full = "--preset llama-3.1-8b --batch 1,8,32,128,256 --context 1024,8192 --prefill 512,2048,4096 --steps 20"
    words = (tiny + " --max-num-batched-tokens 64" if visit.tiny else full).split()
    must(visit.run("steps", [*MODULE, "benchmarks.step_time", *words, "--out", str(out)], 260), "step_time")
    lines = []
    for r in json.loads(out.read_text())["steps"]:
        name = f"{r['kind']} {r['tokens']} at {r['context']}"
        if r["skipped"]:
            lines.append(f"{name}: skipped, {r['skipped']}")
            continue
        host = sum(value for stage, value in r["host_ms"].items() if stage != "collect")
        lines.append(
            f"{name}: device {r['device_ms']:.2f} ms = {r['of_limit']:.0%} of the limit, host {host:.2f} ms, "
            f"wall {r['wall_ms']:.2f} ms"
        )
    return tuple(lines)


@dataclass(slots=True)
class Server:
    """A running `jserve`, with the seconds until it was ready."""

    process: subprocess.Popen[Any]
    url: str
    seconds: float


def start_server(visit: Visit, name: str, cache: Path, limit: float) -> Server:
    """Start `jserve` on a free port and wait until it says that it is ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--model", str(visit.model), "--port", str(port), "--compile-cache-dir", str(cache)]
    if visit.tiny:
        options += ["--max-num-seqs", "4", "--max-num-batched-tokens", "32", "--max-model-len", "256"]
    clock = time.monotonic()
    process = visit.start(name, [*MODULE, "jserve", *options])
    url = f"http://127.0.0.1:{port}"
    give_up = clock + min(limit, visit.left())
    while time.monotonic() < give_up and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/ready", timeout=2):
                return Server(process, url, time.monotonic() - clock)
        except OSError:
            time.sleep(0.05)
    stop(process)
    raise FailedError(f"jserve did not get ready; see {name}.log")


def startup(visit: Visit) -> tuple[str, ...]:
    """Seconds from the command to /ready, with nothing compiled before, and again."""
    need_model(visit)
    cache = visit.folder / "executables"
    shutil.rmtree(cache, ignore_errors=True)
    seconds = {}
    for name in ("cold", "second"):
        server = start_server(visit, f"startup-{name}", cache, 120)
        stop(server.process)
        seconds[name] = server.seconds
    shutil.rmtree(cache, ignore_errors=True)
    (visit.folder / "startup.json").write_text(json.dumps({"seconds_to_ready": seconds}) + "\n")
    return tuple(f"{name} start {value:.1f} s" for name, value in seconds.items())


def serving(visit: Visit) -> tuple[str, ...]:
    """The load generator against a server, by streams."""
    need_model(visit)
    out = visit.folder / "serving.json"
    cache = Path(tempfile.mkdtemp(prefix="executables-"))
    server = start_server(visit, "serving-server", cache, 120)
    try:
        sizes = "--input-len 256 --output-len 128 --concurrency 1,8,32,128,256"
        if visit.tiny:
            sizes = "--input-len 8 --output-len 4 --concurrency 1,2 --num-prompts 2"
        command = [*MODULE, "benchmarks.serving", "--url", f"jserve={server.url}", *sizes.split(), "--out", str(out)]
        must(visit.run("serving", command, 200), "benchmarks.serving")
    finally:
        stop(server.process)
        shutil.rmtree(cache, ignore_errors=True)
    return tuple(
        f"{r['load']}: {r['metrics']['output_tokens_per_s']:,.0f} output tokens/s, "
        f"ttft p50 {r['metrics']['latency_ms']['ttft'].get('p50', 0):,.0f} ms, "
        f"itl p50 {r['metrics']['latency_ms']['itl'].get('p50', 0):,.1f} ms"
        for r in json.loads(out.read_text())["runs"]
    )


def need_model(visit: Visit) -> None:
    """Raise SkippedError where the real model is not there."""
    if not visit.model.exists():
        raise SkippedError(f"{visit.model} is not there; `make model` fetches it, --model names another")


PARTS: dict[str, Callable[[Visit], tuple[str, ...]]] = {
    "target": target,
    "kernel-tests": tests("kernel-tests", "kernel", 150),
    "model-tests": tests("model-tests", "not kernel", 120),
    "kernels": kernels,
    "steps": steps,
    "startup": startup,
    "serving": serving,
}


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="tiny sizes on the CPU, to try the command itself")
    parser.add_argument("--only", metavar="PART,...", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--minutes", type=float, default=10.0, help="for all parts together (default 10)")
    parser.add_argument(
        "--model", type=Path, default=MODEL, metavar="PATH", help="what is served (default %(default)s)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: benchmarks/results/gpu-DATE")
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
    kind = "tiny" if args.tiny else "gpu"
    folder = (args.out or ROOT / "benchmarks" / "results" / f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    platforms = "cpu" if args.tiny else "cuda,cpu"
    environment = {"JAX_PLATFORMS": platforms, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    visit = Visit(folder, args.tiny, args.model, time.monotonic() + 60 * args.minutes, environment)
    leave_on_sigterm()
    outcomes = []
    for name in names:
        outcomes.append(do(name, PARTS[name], visit))
        summary = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "command": ["python", "-m", "benchmarks.gpu", *(sys.argv[1:] if argv is None else argv)],
            "machine": machine(),
            "tiny": args.tiny,
            "parts": [asdict(outcome) for outcome in outcomes],
        }
        (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    print_parts(outcomes, folder)
    if args.tiny:
        print("--tiny: no GPU took part, and none of these figures means anything.")
    return 1 if any(outcome.status == "failed" for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
