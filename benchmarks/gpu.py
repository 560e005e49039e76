"""Everything to measure on a machine with a GPU, in one command that fits ten minutes.

    python -m benchmarks.gpu                     all parts, results under benchmarks/results/
    python -m benchmarks.gpu --only steps        one part, or several with commas
    python -m benchmarks.gpu --tiny              try the logic on a CPU, with sizes that mean nothing

Each part is a process of its own with its own time limit, so that one that fails or hangs does not cost the others; its
output is kept in a log, and its figures in a JSON file that grows as they come. The parts, in order: the target config
and autotune results as XLA sees this GPU; every kernel against its reference; whole models against transformers; the
limits of this device; kernels as a share of them; step times of Llama-3.1-8B's shape with random weights, and the gaps
in their profiles; serving a model of 10^9 random weights, and the peers that are installed on the same; start-up, cold
and second. What was left out is said with the reason, and a short table of the targets ends it, beside what
`benchmarks.predict` had said.

No GPU has run this yet: until benchmarks/results holds a run from one, it is tried on a CPU alone.
"""

import argparse
import importlib.util
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

from benchmarks.gpu_targets import PEERS, PREDICTED, print_targets, targets
from benchmarks.parts import (
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
from benchmarks.predicted_tables import find
from benchmarks.report import gpu_names, machine

LIMITS = {
    "target": 25.0,
    "kernel-checks": 100.0,
    "model-tests": 55.0,
    "limits": 20.0,
    "kernels": 75.0,
    "steps": 125.0,
    "serving": 65.0,
    "serving-transformers": 40.0,
    "serving-vllm": 35.0,
    "startup": 60.0,
}
"""Seconds that each part may take: together the ten minutes."""
TIMED = "x8k,prefill_8k,8b_gate_up_int4,8b_qkv_int4,8b_down_int4,moe/qwen3,latent_attention/,llama3_8b,llama_3_1_8b"
"""Kernels by a part of their names, those of the targets first."""
RANDOM = Path("random")
SERVED = "llama-3.2-1b"
TARGET = """
import jax, jax.numpy as jnp
x = jnp.ones((2048, 2048), jnp.bfloat16)
jax.block_until_ready(jax.jit(lambda a: jax.nn.silu(a @ a))(x))
"""


def limit_of(visit: Visit, part: str) -> float:
    """Seconds for a part; a trial on a CPU compiles three times as long."""
    return LIMITS[part] * (3 if visit.tiny else 1)


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


def kernel_checks(visit: Visit) -> tuple[str, ...]:
    """Every implementation of every kernel folder on every case there is time for, the smallest first."""
    out = visit.folder / "kernel-checks.json"
    limit = limit_of(visit, "kernel-checks")
    sizes = ["--match", "decode_f32", "--limit", "2"] if visit.tiny else ["--budget", f"{limit - 25:.0f}"]
    done = visit.run("kernel-checks", [*MODULE, "benchmarks.kernels", "--check-only", *sizes, "--out", str(out)], limit)
    results = json.loads(out.read_text())["results"] if out.exists() else []
    checked = [r for r in results if r["error"] is not None or r["failed"]]
    wrong = [r for r in checked if r["failed"] or not r["error"] <= r["tolerance"]]
    faults = [f"{r['case']} {r['implementation']}: {r['failed'] or 'error ' + str(r['error'])}" for r in wrong]
    if wrong:
        raise FailedError(f"{len(wrong)} of {len(checked)} are wrong: {'; '.join(faults)}")
    must(done, "benchmarks.kernels")
    return (f"{len(checked)} right, {len(results) - len(checked)} not supported here or without time left",)


def model_tests(visit: Visit) -> tuple[str, ...]:
    """Whole models on the device against transformers on the host: the rest of tests/gpu, as far as time allows."""
    words = ["-v", "-m", "gpu", "tests/gpu", "-k", "not kernel", "-rs", "--tb=short", "--no-header"]
    done = visit.run("model-tests", [*MODULE, "pytest", *words], limit_of(visit, "model-tests"))
    counts = {word: len(re.findall(rf"::\S+ {word}", done.output)) for word in ("PASSED", "FAILED", "ERROR", "SKIPPED")}
    outcomes = tuple(f"{count} {word.lower()}" for word, count in counts.items() if count)
    if not done.timed_out and done.code == 0 and not counts["PASSED"]:
        reason = re.search(r"SKIPPED \[\d+\] \S+ (.*)", done.output)
        raise SkippedError(reason[1] if reason else "no test ran")
    if done.timed_out and counts["PASSED"] and not counts["FAILED"] + counts["ERROR"]:
        return (*outcomes, "then its time was over")
    must(done, f"{', '.join(outcomes) or 'pytest'};")
    return outcomes


def limits(visit: Visit) -> tuple[str, ...]:
    """What this device reaches on the two plainest programs."""
    out = visit.folder / "limits.json"
    seconds = "0.05" if visit.tiny else "1"
    command = [*MODULE, "benchmarks.kernels", "--limits", "--seconds", seconds, "--out", str(out)]
    must(visit.run("limits", command, limit_of(visit, "limits")), "benchmarks.kernels")
    measured = json.loads(out.read_text())
    rates = [f"{name} product {rate / 1e12:,.1f} TFLOP/s" for name, rate in measured["matmul_flops_per_second"].items()]
    return (f"copy {measured['copy_bytes_per_second'] / 1e9:,.0f} GB/s", *rates)


def kernels(visit: Visit) -> tuple[str, ...]:
    """Kernels as a share of the device's limits."""
    out = visit.folder / "kernels.json"
    limit = limit_of(visit, "kernels")
    words = f"--match {TIMED} --seconds 0.2 --budget {limit - 20:.0f}"
    words = "--match decode_f32 --limit 1 --seconds 0.05" if visit.tiny else words
    command = [*MODULE, "benchmarks.kernels", *words.split()]
    done = visit.run("kernels", [*command, "--out", str(out)], limit)
    measured = json.loads(out.read_text()) if out.exists() else {"results": []}
    shares = tuple(
        f"{r['case']} {r['implementation']}: {max(r['of_copy'], r['of_matmul']):.0%} of the limit"
        for r in measured["results"]
        if r["of_copy"] is not None
    )
    if not done.timed_out or not shares:
        must(done, "benchmarks.kernels")
    return shares


def steps(visit: Visit) -> tuple[str, ...]:
    """Step times of the 8B shape, on the device and on the host, beside what was predicted."""
    out = visit.folder / "steps.json"
    tiny = "--preset tiny --batch 1,4 --context 32,64 --prefill 32 --steps 3 --limit-seconds 0.05"
    full = "--preset llama-3.1-8b --batch 1,8,32,128,256 --context 1024,8192 --prefill 512,2048,4096 --steps 20"
    words = (tiny + " --max-num-batched-tokens 64" if visit.tiny else full).split()
    command = [*MODULE, "benchmarks.step_time", *words, "--profile", str(visit.folder / "profiles"), "--out", str(out)]
    done = visit.run("steps", command, limit_of(visit, "steps"))
    measured = json.loads(out.read_text())["steps"] if out.exists() else []
    if not done.timed_out or not measured:
        must(done, "step_time")
    predicted = json.loads(PREDICTED.read_text())
    return tuple(step_line(step, {} if visit.tiny else predicted) for step in measured)


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
    return (
        f"{name}: device {step['device_ms']:.2f} ms{beside} = {step['of_limit']:.0%} of the limit{gaps}, "
        f"host {host:.2f} ms, wall {step['wall_ms']:.2f} ms"
    )


@dataclass(slots=True)
class Server:
    """A running `jserve`, with the seconds until it was ready."""

    process: subprocess.Popen[Any]
    url: str
    seconds: float


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start_server(visit: Visit, name: str, cache: Path, limit: float) -> Server:
    """Start `jserve` on a free port and wait until it says that it is ready."""
    port = free_port()
    options = ["--model", str(served_model(visit)), "--port", str(port), "--compile-cache-dir", str(cache)]
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


def served_model(visit: Visit) -> Path:
    """The model that is given, else one with random weights, made when it is first needed."""
    if visit.model != RANDOM:
        if not visit.model.exists():
            raise SkippedError(f"{visit.model} is not there; without --model one of random weights is made")
        return visit.model
    folder = visit.folder / "served-model"
    if not (folder / "model.safetensors").exists():
        code = "import sys; from pathlib import Path; from benchmarks import presets, tiny_model as t; "
        code += "f = Path(sys.argv[1]); "
        code += "t.write_tiny_model(f)" if visit.tiny else f"t.write_random_model(f, presets.PRESETS[{SERVED!r}])"
        must(visit.run("served-model", [sys.executable, "-c", code, str(folder)], 60), "making a model")
    return folder


def load(visit: Visit, name: str, url: str, limit: float, *more: str) -> tuple[str, ...]:
    """The load generator against one server, by streams."""
    out = visit.folder / f"{name}.json"
    sizes = "--input-len 256 --output-len 128 --concurrency 1,32,256"
    if visit.tiny:
        sizes = "--input-len 8 --output-len 4 --concurrency 1,2 --num-prompts 2"
    command = [*MODULE, "benchmarks.serving", "--url", f"{name}={url}", *sizes.split(), *more, "--out", str(out)]
    must(visit.run(f"{name}-load", command, limit), "benchmarks.serving")
    return tuple(
        f"{r['load']}: {r['metrics']['output_tokens_per_s']:,.0f} output tokens/s, "
        f"ttft p50 {r['metrics']['latency_ms']['ttft'].get('p50', 0):,.0f} ms, "
        f"itl p50 {r['metrics']['latency_ms']['itl'].get('p50', 0):,.1f} ms"
        for r in json.loads(out.read_text())["runs"]
    )


def serving(visit: Visit) -> tuple[str, ...]:
    """jserve under load."""
    begin = time.monotonic()
    cache = Path(tempfile.mkdtemp(prefix="executables-"))
    server = start_server(visit, "serving-server", cache, limit_of(visit, "serving") - 30)
    try:
        return load(visit, "serving", server.url, limit_of(visit, "serving") - (time.monotonic() - begin))
    finally:
        stop(server.process)
        shutil.rmtree(cache, ignore_errors=True)


def peer(name: str) -> Callable[[Visit], tuple[str, ...]]:
    """A part that puts the same load on a peer that this Python has, on the same model in bfloat16."""

    def part(visit: Visit) -> tuple[str, ...]:
        program = Path(sys.executable).with_name(name)
        if visit.tiny or importlib.util.find_spec(name) is None or not program.exists():
            raise SkippedError("on a CPU: `make bench`" if visit.tiny else f"{name} is not installed in this Python")
        port, folder = free_port(), served_model(visit)
        words = ["serve", str(folder), "--host", "127.0.0.1", "--port", str(port), "--dtype", "bfloat16"]
        more: list[str] = []
        if name == "transformers":
            words += ["--continuous-batching", "--device", "cuda"]
            # It lists no local model, and refuses `ignore_eos`: an end token that never comes.
            no_end = {"ignore_eos": None, "generation_config": '{"eos_token_id": -1}'}
            more = ["--model", str(folder), "--extra", json.dumps(no_end)]
        process = visit.start(f"serving-{name}-server", [str(program), *words])
        try:
            limit = limit_of(visit, f"serving-{name}")
            return load(visit, f"serving-{name}", f"http://127.0.0.1:{port}", limit, "--wait", f"{limit / 2}", *more)
        except FailedError as error:
            last_words = visit.log(f"serving-{name}-server").read_text(errors="replace").strip().splitlines()[-1:]
            raise SkippedError(
                f"{name} could not be compared: {error}; its last words: {' '.join(last_words)[:200]}"
            ) from error
        finally:
            stop(process)

    return part


def startup(visit: Visit) -> tuple[str, ...]:
    """Seconds from the command to /ready, with nothing compiled before, and again."""
    cache = visit.folder / "executables"
    shutil.rmtree(cache, ignore_errors=True)
    seconds: dict[str, float] = {}
    try:
        for name in ("cold", "second"):
            server = start_server(visit, f"startup-{name}", cache, limit_of(visit, "startup"))
            stop(server.process)
            seconds[name] = server.seconds
            (visit.folder / "startup.json").write_text(json.dumps({"seconds_to_ready": seconds}) + "\n")
    finally:
        shutil.rmtree(cache, ignore_errors=True)
    return tuple(f"{name} start {value:.1f} s" for name, value in seconds.items())


PARTS: dict[str, Callable[[Visit], tuple[str, ...]]] = {
    "target": target,
    "kernel-checks": kernel_checks,
    "model-tests": model_tests,
    "limits": limits,
    "kernels": kernels,
    "steps": steps,
    "serving": serving,
    **{f"serving-{name}": peer(name) for name in PEERS},
    "startup": startup,
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
        "--model",
        type=Path,
        default=RANDOM,
        metavar="PATH",
        help=f"what is served; default: random weights of the shape of {SERVED}, with a small vocabulary",
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
            "targets": [{**asdict(row), "met": row.is_met} for row in targets(folder)],
        }
        (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    shutil.rmtree(folder / "served-model", ignore_errors=True)
    print_parts(outcomes, folder)
    print_targets(targets(folder))
    if args.tiny:
        print("--tiny: no GPU took part, and none of these figures means anything.")
    return 1 if any(outcome.status == "failed" for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
