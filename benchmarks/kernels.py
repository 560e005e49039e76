"""Time every kernel on its own cases, against the copy bandwidth and matrix rate of this device in this run.

  everything        python -m benchmarks.kernels --out kernels.json
  a few             python -m benchmarks.kernels --match decode --limit 4
  one, and correct? python -m benchmarks.kernels --match llama3_8b_mixed --check
  all, and correct? python -m benchmarks.kernels --check-only --budget 90
  the limits alone  python -m benchmarks.kernels --limits

The table goes to stderr and JSON to stdout (or --out, after every case). "of copy" is the bytes that an operation needs
at least, per second, as a share of a measured copy; "of matmul" is its floating point operations per second as a share
of a measured square matrix product in the same type: the larger of the two says how near the kernel is to what the
device can do. On a GPU, up to ten calls run in one program, each on its own copy of the inputs: the launch from Python
is not in the figure, and inputs of some MiB do not come from the L2 cache
(those of the smallest cases do). On a CPU, kernels written for the GPU would only be interpreted, so they are
listed as skipped, and so are the cases over --max-mib.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from jserve.commands.bench.report import machine
from pallas_kernels import Kernel, KernelCase, KernelInputs, discover

MAX_CALLS = 10  # in one program; the time of a program with one call, which has the launch in it, is taken off
MAX_COPY_BYTES = 8 * 2**30  # for the copies of the inputs, one to each call
CPU_MAX_MIB = 64


@dataclass(frozen=True, slots=True)
class Result:
    """One implementation on one case; `skipped` says why there are no figures, `failed` that there should be."""

    kernel: str
    implementation: str
    case: str
    microseconds: float | None = None
    bytes_per_second: float | None = None
    flops_per_second: float | None = None
    of_copy: float | None = None
    of_matmul: float | None = None
    error: float | None = None
    tolerance: float | None = None
    skipped: str | None = None
    failed: str | None = None

    @property
    def is_wrong(self) -> bool:
        return self.failed is not None or (self.error is not None and not self.error <= (self.tolerance or 0))


class Limits:
    """What this device reaches on the two plainest programs, measured when first asked for."""

    def __init__(self, seconds: float) -> None:
        self.matmul_flops_per_second: dict[str, float] = {}
        self._seconds = seconds
        self._on_gpu = jax.default_backend() == "gpu"

    @functools.cached_property
    def copy_bytes_per_second(self) -> float:
        """Reading and writing one large array, both counted."""
        array = jnp.zeros((2**27 if self._on_gpu else 2**25,), jnp.float32)
        return 2 * array.nbytes / seconds_per_call(lambda x: x + 1, (array,), self._seconds)

    def matmul(self, dtype: str) -> float:
        """Operations a second of a square matrix product in `dtype` with float32 sums, without tf32."""
        if dtype not in self.matmul_flops_per_second:
            n = 8192 if self._on_gpu else 1024
            a, b = (jax.random.normal(jax.random.key(i), (n, n), jnp.dtype(dtype)) for i in (0, 1))
            precision = "highest" if dtype == "float32" else None
            product = functools.partial(jnp.matmul, precision=precision)
            self.matmul_flops_per_second[dtype] = 2 * n**3 / seconds_per_call(product, (a, b), self._seconds)
        return self.matmul_flops_per_second[dtype]


def main(argv: Sequence[str] | None = None) -> int:
    """0; 1 where an implementation failed or --check found it outside its tolerance; 2 where nothing matches."""
    args = _arguments().parse_args(argv)
    limits = Limits(args.seconds)
    if args.limits:
        rates = f"copy {limits.copy_bytes_per_second / 1e9:,.0f} GB/s, bf16 {limits.matmul('bfloat16') / 1e12:,.1f}"
        print(f"{rates} TFLOP/s", file=sys.stderr)
        write_results(args.out, limits, [])
        return 0
    results: list[Result] = []
    for result in _run(args, limits):
        results.append(result)
        print(f"{result.case} {result.implementation}: {_time_or_reason(result)}", file=sys.stderr, flush=True)
        if args.out:
            write_results(args.out, limits, results)  # at once: a visit may be cut off
    if not results:
        print(f"no case matches {args.match!r}; names look like {_names()}", file=sys.stderr)
        return 2
    _print_table(results)
    write_results(args.out, limits, results)
    return 1 if any(result.is_wrong for result in results) else 0


def write_results(out: Path | None, limits: Limits, results: Sequence[Result]) -> None:
    """As JSON to the file, or to stdout without one."""
    report = {
        "machine": machine(),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "copy_bytes_per_second": vars(limits).get("copy_bytes_per_second"),  # None where nothing asked for it
        "matmul_flops_per_second": limits.matmul_flops_per_second,
        "results": [dataclasses.asdict(result) for result in results],
    }
    text = json.dumps(report, indent=1)
    if out:
        out.write_text(text + "\n")
    else:
        print(text)


def seconds_per_call(function: Callable[..., Any], args: tuple[jax.Array, ...], budget: float) -> float:
    """Median time of one call of `function` on the device.

    budget: seconds to spend on each program, after three runs that are always made.
    """
    if jax.default_backend() != "gpu":
        return _median_seconds(jax.jit(function), args, budget)
    size = sum(array.nbytes for array in jax.tree.leaves(args))
    calls = max(3, min(MAX_CALLS, MAX_COPY_BYTES // size))
    copies = [jax.tree.map(jnp.copy, args) for _ in range(calls)]  # on the device, also of what numpy made
    program = jax.jit(functools.partial(chain, function))
    one, all_calls = (_median_seconds(program, tuple(copies[:n]), budget) for n in (1, calls))
    return max(all_calls - one, 1e-9) / (calls - 1)


def chain(function: Callable[..., Any], *inputs: tuple[jax.Array, ...]) -> list[Any]:
    """`function` on each of the inputs, one after the other, in a program that must make every call.

    Each input is another set of arrays and each result is returned, so that no call is merged or dropped.
    """
    results: list[Any] = []
    for args in inputs:
        if results:
            args, results[-1] = jax.lax.optimization_barrier((args, results[-1]))
        results.append(function(*args))
    return results


def _median_seconds(program: Callable[..., Any], args: Sequence[Any], budget: float) -> float:
    jax.block_until_ready(program(*args))  # compiles
    samples: list[float] = []
    until = time.perf_counter() + budget
    while len(samples) < 3 or (time.perf_counter() < until and len(samples) < 100):
        start = time.perf_counter()
        jax.block_until_ready(program(*args))
        samples.append(time.perf_counter() - start)
    return statistics.median(samples)


def _run(args: argparse.Namespace, limits: Limits) -> Iterator[Result]:
    until = time.monotonic() + args.budget
    chosen = list(itertools.islice(_matching(args.match), args.limit))
    if args.check_only:
        chosen.sort(key=lambda pair: pair[1].bytes_moved)  # as many as there is time for
    for kernel, case in chosen:
        reason = None
        if case.bytes_moved > args.max_mib * 2**20:
            reason = f"over --max-mib {args.max_mib}"
        elif time.monotonic() > until:
            reason = f"no time was left of --budget {args.budget:g}"
        if reason:
            for name in kernel.implementations:
                yield Result(kernel.name, name, case.name, skipped=reason)
            continue
        inputs = case.make(args.seed)
        expected = None
        if args.check or args.check_only:
            with jax.default_matmul_precision("highest"):
                expected = _computed(kernel.reference, inputs)
        for name in kernel.implementations:
            yield _measure(kernel, name, case, inputs, expected, limits, None if args.check_only else args.seconds)


def _measure(
    kernel: Kernel,
    name: str,
    case: KernelCase,
    inputs: KernelInputs,
    expected: np.ndarray | None,
    limits: Limits,
    budget: float | None,
) -> Result:
    """budget: seconds to spend on the time; None for no time."""
    result = Result(kernel.name, name, case.name)
    if jax.default_backend() != "gpu" and name in ("triton", "mosaic"):
        return dataclasses.replace(result, skipped="a GPU kernel, and this is a CPU")
    try:
        if expected is not None:
            got = _computed(kernel.implementations[name], inputs)
            error = float(np.max(np.abs(got - expected) / np.maximum(1, np.abs(expected))))
            result = dataclasses.replace(result, error=error, tolerance=case.tolerance)
        if budget is None:
            return result
        function = functools.partial(kernel.implementations[name], **inputs.static)
        seconds = seconds_per_call(function, inputs.args, budget)
    except NotImplementedError as reason:
        return dataclasses.replace(result, skipped=str(reason))
    except jax.errors.JaxRuntimeError as error:  # the other cases are worth having
        return dataclasses.replace(result, failed=str(error).strip().splitlines()[0][:200])
    dtype = str(next(array.dtype for array in inputs.args if jnp.issubdtype(array.dtype, jnp.floating)))
    bytes_rate, flops_rate = case.bytes_moved / seconds, case.flops / seconds
    return dataclasses.replace(
        result,
        microseconds=seconds * 1e6,
        bytes_per_second=bytes_rate,
        flops_per_second=flops_rate,
        of_copy=bytes_rate / limits.copy_bytes_per_second,
        of_matmul=flops_rate / limits.matmul(dtype),
    )


def _computed(function: Callable[..., Any], inputs: KernelInputs) -> np.ndarray:
    return as_float64(jax.jit(functools.partial(function, **inputs.static))(*inputs.args))


def as_float64(out: Any) -> np.ndarray:
    """All numbers of a kernel's results, on the host."""
    flat = [np.asarray(array.astype(jnp.float32), np.float64).ravel() for array in jax.tree.leaves(out)]
    return np.concatenate(flat)


def _matching(match: str) -> Iterator[tuple[Kernel, KernelCase]]:
    """Each case once, in the order of the words between commas."""
    yielded = set()
    for word in match.split(","):
        for kernel in discover():
            for case in kernel.cases:
                name = f"{kernel.name}/{case.name}"
                if word in name and name not in yielded:
                    yielded.add(name)
                    yield kernel, case


def _names() -> str:
    kernel, case = next(_matching(""))
    return f"{kernel.name}/{case.name}"


def _time_or_reason(result: Result) -> str:
    if result.failed or result.skipped:
        return f"FAILED, {result.failed}" if result.failed else f"skipped, {result.skipped}"
    if result.microseconds is None:
        return "WRONG" if result.is_wrong else "right"
    return f"{result.microseconds:,.1f} us"


def _print_table(results: Sequence[Result]) -> None:
    columns = ("kernel", "case", "implementation", "time", "GB/s", "GFLOP/s", "of copy", "of matmul", "error")
    table = Table(*columns, title=f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    for r in results:
        figures: tuple[str, ...] = (_time_or_reason(r),)
        if r.bytes_per_second and r.flops_per_second and r.of_copy is not None and r.of_matmul is not None:
            figures += (f"{r.bytes_per_second / 1e9:,.1f}", f"{r.flops_per_second / 1e9:,.1f}")
            figures += (f"{r.of_copy:.0%}", f"{r.of_matmul:.0%}")
        else:
            figures += ("",) * 4
        figures += ("not checked" if r.error is None else f"{r.error:.1e} of {r.tolerance:.1e}",)
        table.add_row(r.kernel, r.case, r.implementation, *figures)
    Console(stderr=True, width=None if sys.stderr.isatty() else 180).print(table)


def _arguments() -> argparse.ArgumentParser:
    description = __doc__ or ""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    max_mib = CPU_MAX_MIB if jax.default_backend() != "gpu" else 2**20
    parser.add_argument(
        "--match",
        default="",
        metavar="TEXT",
        help="only cases whose kernel/case contains TEXT, or one of several with commas",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="at most the first N matching cases")
    parser.add_argument("--check", action="store_true", help="also compare with the reference; status 1 if wrong")
    parser.add_argument("--check-only", action="store_true", help="compare and time nothing; the smallest cases first")
    parser.add_argument("--limits", action="store_true", help="only what this device reaches on a copy and a product")
    parser.add_argument(
        "--budget", type=float, default=float("inf"), metavar="S", help="begin no case after so many seconds"
    )
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="time to spend on each measurement (default %(default)s)"
    )
    parser.add_argument(
        "--max-mib",
        type=int,
        default=max_mib,
        metavar="MIB",
        help="skip cases that need to move more than this; default %(default)s on this device",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the random inputs (default %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON here and not to stdout")
    return parser


if __name__ == "__main__":
    sys.exit(main())
