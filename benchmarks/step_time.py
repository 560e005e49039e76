"""Time of a step on the device and on the host, by batch and context, beside what this device can do at best.

  a model's shape   python -m benchmarks.step_time --preset llama-3.1-8b --batch 1,8,32 --context 1024,8192
  a real model      python -m benchmarks.step_time --model PATH --batch 1,8 --context 256 --prefill 128

Runs the engine's own scheduler, runner and programs, without HTTP. Sequences are prefilled for real, each
with pages of its own; prompts are random tokens and answers greedy. "device" is a step's programs run back to
back (step and sampler), "wall" the engine's loop per step, one step ahead; "host" is the loop's work beside
waiting: schedule, pack, dispatch and update ("collect" waits for the device, so it is listed apart. On a CPU,
where the host is the device, the two cannot be told apart, and dispatch may hold the computation itself).

"limit" is the larger of bytes / memory bandwidth (the better of a copy and a sum) and operations / matrix
product rate, all measured in this run on this device. Weights and live KV count once, however often they are
really read; each GPU of several has its share. Until benchmarks/results holds a run from a GPU, nothing here
has been executed on one.
"""

import argparse
import dataclasses
import json
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks.device_trace import Trace, read_trace
from benchmarks.presets import PRESETS, write_model
from benchmarks.step_loop import STAGES, Loop, packing_timed
from jserve.commands.bench.report import machine
from jserve.config import EngineConfig
from jserve.engine.core import EngineCore
from jserve.errors import JserveError
from jserve.protocol import Request, SamplingParams
from jserve.runtime.platform import choose_platform
from jserve.runtime.program_keys import Sample, Step
from jserve.runtime.sampling import Variant
from jserve.runtime.start import Started, add_all, start_runner, stored_programs
from jserve.schedule.groups import pages_held

WARMUP_STEPS = 6
"""At first XLA may run the kernels of a CUDA graph one by one, and watch which addresses stay."""


@dataclass(frozen=True, slots=True)
class StepTime:
    """One kind of step. Times are medians in milliseconds; `skipped` says why there are none."""

    kind: str
    """"decode", or "prefill" of one prompt in one step."""
    rows: int
    tokens: int
    context: int
    bucket: str = ""
    wall_ms: float | None = None
    """A turn of the engine's loop, one step ahead; for a prefill, which runs alone, from schedule to update."""
    device_ms: float | None = None
    host_bound: bool = False
    """The host took about as long to dispatch as `device_ms`, which is then the host's time."""
    host_ms: dict[str, float] = dataclasses.field(default_factory=dict)
    limit_ms: float | None = None
    limited_by: str = ""
    of_limit: float | None = None
    memory_ms: float | None = None
    """Weights and KV over the memory's rate, whatever else is the limit."""
    gaps: float | None = None
    """Share of the time in which no kernel ran, in a profile of this step back to back."""
    graph_updates: float | None = None
    """CUDA graphs made or changed a step in that profile, each some 50 us of the host."""
    graph_launches: float | None = None
    """CUDA graphs launched a step. 0 where the profile was taken without graphs: its gaps are those of kernels that the
    host launches one by one.
    """
    tokens_per_s: float | None = None
    skipped: str | None = None


@dataclass(frozen=True, slots=True)
class DeviceLimits:
    """What one device reached in this run."""

    memory_bytes_per_s: float
    """The better of a copy, read and written bytes counted, and a sum."""
    matmul_flops_per_s: float
    dtype: str


class Bench:
    """Measures the steps of one engine."""

    def __init__(
        self, started: Started, limits: DeviceLimits, steps: int, seed: int, profile: Path | None = None
    ) -> None:
        self._started = started
        self._limits = limits
        self._steps = steps
        self._profile = profile
        self._random = random.Random(seed)
        self._loop = Loop(EngineCore(started, enable_prefix_caching=False))
        self._requests = 0

    def compile(self, batches: Sequence[int], prefills: Sequence[int]) -> None:
        """Have the programs that these steps run in, besides those that every engine starts with."""
        buckets = self._started.shape.buckets()
        wanted = [min(b for b in buckets if b.is_decode and b.rows >= batch) for batch in batches]
        wanted += [min(b for b in buckets if not b.is_decode and b.tokens >= tokens) for tokens in prefills]
        keys = {Step(bucket) for bucket in wanted} | {Sample(bucket.rows, Variant()) for bucket in wanted}
        table = self._started.runner.table
        missing = [program for program in table.missing() if program.key in keys]
        print(f"compiling {len(missing)} programs", file=sys.stderr, flush=True)
        add_all(table, missing)

    def decode(self, batches: Sequence[int], context: int) -> Iterator[StepTime]:
        """Decode steps at about `context` tokens a row, the largest batch first; the rest is then aborted."""
        shape, spare = self._started.shape, 4 * self._steps * (len(batches) + 1)
        pages = shape.num_pages // pages_held(-(-(context + spare) // shape.page_size), shape.windows, shape.page_size)
        fitting = [batch for batch in sorted(batches, reverse=True) if batch <= pages]
        for batch in sorted(set(batches) - set(fitting), reverse=True):
            room = f"the KV cache holds {shape.tokens_in(shape.num_pages):,} tokens"
            yield StepTime("decode", batch, batch, context, skipped=f"{batch} x {context:,} do not fit: {room}")
        if not fitting:
            return
        names = [self._add(context, spare) for _ in range(fitting[0])]
        with packing_timed(self._loop.stages):
            self._fill(fitting[0])
            for batch in fitting:
                self._loop.core.abort(names[batch:])
                yield self._decode_steps(batch, context)
        self._loop.core.abort(names)
        self._loop.drain()

    def prefill(self, tokens: int) -> StepTime:
        """One prompt of `tokens` in one step, alone."""
        with packing_timed(self._loop.stages):
            walls: list[float] = []
            for index in range(WARMUP_STEPS + self._steps):
                if index == WARMUP_STEPS:
                    self._loop.stages.clear()
                    walls.clear()
                name = self._add(tokens, 2)
                start = time.perf_counter()
                self._loop.step()
                prompt = self._loop.last
                self._loop.drain()
                walls.append(time.perf_counter() - start)
                self._loop.core.abort([name])
            self._loop.last = prompt
            host = self._loop.stages.medians_ms()
            return self._result("prefill", 1, tokens, tokens, statistics.median(walls), host)

    def _decode_steps(self, batch: int, context: int) -> StepTime:
        for _ in range(WARMUP_STEPS):
            self._loop.step()
        self._loop.stages.clear()
        walls = []
        for _ in range(self._steps):
            start = time.perf_counter()
            plan = self._loop.step()
            walls.append(time.perf_counter() - start)
            assert plan is not None
            assert plan.num_tokens == len(plan.chunks) == batch, "the batch changed while it was measured"
        host = self._loop.stages.medians_ms()
        self._loop.drain()
        return self._result("decode", batch, batch, context, statistics.median(walls), host)

    def _result(self, kind: str, rows: int, tokens: int, context: int, wall: float, host: dict[str, float]) -> StepTime:
        device, dispatch = self._loop.back_to_back(self._steps)
        needed_bytes, flops = needed(self._started, rows, tokens, context)
        by_memory = needed_bytes / self._limits.memory_bytes_per_s
        by_matmul = flops / self._limits.matmul_flops_per_s
        assert self._loop.last is not None
        trace = self._traced(f"{kind}-{tokens}-{context}")
        return StepTime(
            kind,
            rows,
            tokens,
            context,
            bucket=str(self._loop.last.bucket),
            wall_ms=wall * 1e3,
            device_ms=device * 1e3,
            host_bound=dispatch > 0.9 * device,
            host_ms=host,
            limit_ms=max(by_memory, by_matmul) * 1e3,
            limited_by="bandwidth" if by_memory > by_matmul else "compute",
            of_limit=max(by_memory, by_matmul) / device,
            memory_ms=by_memory * 1e3,
            gaps=None if trace is None else trace.idle_share,
            graph_updates=None if trace is None else trace.graph_updates / (self._steps + 1),
            graph_launches=None if trace is None else trace.graph_launches / (self._steps + 1),
            tokens_per_s=tokens / wall,
        )

    def _traced(self, name: str) -> Trace | None:
        """A profile of the last step back to back, kept under that name; None without one or without a GPU."""
        if self._profile is None:
            return None
        with jax.profiler.trace(str(self._profile / name)):
            self._loop.back_to_back(self._steps)
        return read_trace(self._profile / name)

    def _add(self, length: int, answer: int) -> str:
        self._requests += 1
        name = f"bench-{self._requests}"
        prompt = self._random.choices(range(3, self._started.config.vocab_size), k=length)
        params = SamplingParams(temperature=0.0, max_tokens=answer, ignore_eos=True)
        refused = self._loop.core.add(Request(name, prompt, params))
        if refused is not None:
            raise ValueError(refused.error)
        return name

    def _fill(self, batch: int) -> None:
        """Run until every sequence decodes."""
        while True:
            plan = self._loop.step()
            if plan is not None and plan.is_decode and len(plan.chunks) == batch:
                return


def needed(started: Started, rows: int, tokens: int, context: int) -> tuple[float, float]:
    """Bytes read and operations done at least by one step on one device; `context` tokens a row at its end."""
    config, parts = started.config, started.build.tensor_parallel
    width = jnp.dtype(started.build.dtype).itemsize
    table = config.vocab_size * config.hidden_size * width // parts
    body = started.plan.weights - table * (1 if config.tie_word_embeddings else 2)
    per_token = started.plan.page_bytes / started.shape.page_size
    pairs = rows * context if tokens == rows else tokens * (tokens + 1) / 2
    attention = 4 * config.num_layers * config.num_heads * config.head_dim * pairs / parts
    flops = 2 * (body * tokens + table * rows) / width + attention
    seen = sum(min(context, window or context) for window in started.shape.windows)
    return body + table + rows * seen * per_token, flops


def measure_limits(dtype: str, seconds: float) -> DeviceLimits:
    """Memory bandwidth and matrix rate of this device, now."""
    from benchmarks.kernels import Limits, seconds_per_call  # ask jax for its devices: after `choose_platform`

    limits = Limits(seconds)
    array = jnp.ones(2**29 if jax.default_backend() == "gpu" else 2**26, jnp.float32)
    read = array.nbytes / seconds_per_call(jnp.sum, (array,), seconds)
    return DeviceLimits(max(limits.copy_bytes_per_second, read), limits.matmul(dtype), dtype)


def numbers(text: str) -> list[int]:
    """ "1,8,32" as numbers; empty for an empty text."""
    return [int(part) for part in text.split(",") if part]


def points(text: str) -> dict[int, list[int]]:
    """ "256x1024,1x1024,32x8192" as the batches of each context, in this order."""
    chosen: dict[int, list[int]] = {}
    for point in text.split(","):
        rows, context = map(int, point.split("x"))
        chosen.setdefault(context, []).append(rows)
    return chosen


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step_time",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--model", metavar="PATH", help="a model's folder or .gguf file")
    model.add_argument("--preset", choices=sorted(PRESETS), help="a known shape with random weights")
    add("--load-format", default="auto", choices=("auto", "dummy"), help="dummy: random weights for --model")
    add("--layers", type=int, metavar="L", help="only so many layers of the preset, for a quick look")
    add("--dtype", default="auto", help="default: the model's on a GPU, float32 on a CPU")
    add("--tensor-parallel-size", type=int, default=1, metavar="N")
    add("--batch", type=numbers, default="1,8,32", metavar="N,...", help="rows of decode steps (default 1,8,32)")
    add("--context", type=numbers, default="1024", metavar="N,...", help="tokens a row (default 1024)")
    add("--points", type=points, metavar="NxC,...", help="rows by tokens a row, in this order, in place of both")
    add("--prefill", type=numbers, default="", metavar="N,...", help="prompt lengths to time in one step each")
    add("--max-model-len", type=int, metavar="N", help="default: what these steps need")
    add("--max-num-batched-tokens", type=int, metavar="N", help="default: the engine's own")
    add("--kv-cache-memory-bytes", type=int, metavar="N", help="default: the engine's own")
    add("--steps", type=int, default=20, help="steps to time of each kind (default 20)")
    add("--limit-seconds", type=float, default=1.0, metavar="S", help="time for each limit (default 1)")
    add("--compile-cache-dir", metavar="DIR", help="default: the engine's own")
    add("--profile", type=Path, metavar="DIR", help="also profile each kind of step, for its gaps, xprof and Perfetto")
    add("--seed", type=int, default=0, help="of prompts and random weights")
    add("--out", type=Path, metavar="FILE", help="write everything as JSON")
    return parser


def engine_config(args: argparse.Namespace) -> EngineConfig:
    """The engine that these steps need."""
    batches = [batch for each in args.points.values() for batch in each]
    longest = max([*args.points, *args.prefill, 1])
    room = 4 * args.steps * (len(batches) + 1) + 2 * WARMUP_STEPS
    return EngineConfig(
        model=args.model or write_model(args.preset, PRESETS[args.preset], args.layers),
        dtype="bfloat16" if args.preset and args.dtype == "auto" else args.dtype,
        load_format="dummy" if args.preset else args.load_format,
        max_model_len=args.max_model_len or longest + room,
        max_num_seqs=max([2, *batches]),
        max_num_batched_tokens=args.max_num_batched_tokens,
        kv_cache_memory_bytes=args.kv_cache_memory_bytes,
        tensor_parallel_size=args.tensor_parallel_size,
        enable_prefix_caching=False,
        compile_cache_dir=args.compile_cache_dir,
        seed=args.seed,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """0, or 2 where the engine cannot start."""
    args = arguments().parse_args(argv)
    args.points = args.points or dict.fromkeys(args.context, args.batch)
    config = engine_config(args)
    choose_platform(config.gpu_memory_utilization, stored_programs(config))
    dtype = config.dtype if config.dtype != "auto" else "bfloat16" if jax.default_backend() == "gpu" else "float32"
    limits = measure_limits(dtype, args.limit_seconds)  # first, while the device's memory is free
    try:
        started = start_runner(config, lambda *_: None)
    except JserveError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    bench = Bench(started, limits, args.steps, args.seed, args.profile)
    bench.compile([batch for each in args.points.values() for batch in each], args.prefill)
    results: list[StepTime] = []
    for result in run(bench, args):
        results.append(result)
        if args.out:  # at once: a visit may be cut off
            args.out.write_text(json.dumps(report(started, limits, results, argv), indent=1) + "\n")
    print_table(started, limits, results)
    return 0


def run(bench: Bench, args: argparse.Namespace) -> Iterator[StepTime]:
    """All measurements, each reported on stderr as it comes."""

    def printed(result: StepTime) -> StepTime:
        text = result.skipped or f"{result.wall_ms:.2f} ms"
        print(f"{result.kind} {result.rows} rows at {result.context}: {text}", file=sys.stderr, flush=True)
        return result

    for context, batches in args.points.items():
        yield from map(printed, bench.decode(batches, context))
    for tokens in args.prefill:
        yield printed(bench.prefill(tokens))


def report(
    started: Started, limits: DeviceLimits, results: Sequence[StepTime], argv: Sequence[str] | None
) -> dict[str, Any]:
    """What the JSON file holds."""
    return {
        "command": ["python", "-m", "benchmarks.step_time", *(sys.argv[1:] if argv is None else argv)],
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": machine(),
        "device": started.device,
        "jax": jax.__version__,
        "dtype": str(started.build.dtype),
        "model": msgspec.to_builtins(started.config),
        "shape": dataclasses.asdict(started.shape),
        "memory": dataclasses.asdict(started.plan),
        "startup_s": started.seconds,
        "limits": dataclasses.asdict(limits),
        "steps": [dataclasses.asdict(result) for result in results],
    }


def print_table(started: Started, limits: DeviceLimits, results: Sequence[StepTime]) -> None:
    """The figures for a person, on stdout."""
    title = (
        f"{started.device}, {started.build.dtype}, jax {jax.__version__}: memory "
        f"{limits.memory_bytes_per_s / 1e9:,.0f} GB/s, {limits.dtype} product "
        f"{limits.matmul_flops_per_s / 1e12:,.2f} TFLOP/s"
    )
    columns = ("step", "context", "wall ms", "device ms", "limit ms", "of limit", "host ms", *STAGES, "tokens/s")
    table = Table(*columns, title=title, title_justify="left")
    for r in results:
        name = f"{r.kind} {r.tokens}"
        if r.wall_ms is None or r.device_ms is None or r.limit_ms is None:
            table.add_row(name, f"{r.context:,}", f"skipped: {r.skipped}")
            continue
        host = sum(value for stage, value in r.host_ms.items() if stage != "collect")
        device = f"{r.device_ms:.3f}" + (" (host)" if r.host_bound else "")
        figures = [f"{r.wall_ms:.3f}", device, f"{r.limit_ms:.3f}", f"{r.of_limit:.0%}", f"{host:.3f}"]
        figures += [f"{r.host_ms[stage]:.3f}" for stage in STAGES]
        table.add_row(name, f"{r.context:,}", *figures, f"{r.tokens_per_s:,.0f}")
    Console(width=None if sys.stdout.isatty() else 180).print(table)


if __name__ == "__main__":
    sys.exit(main())
