"""Checks and times a few cases of every kernel in one short pass: the first thing that a visit to a GPU does.

    python -m benchmarks.visit_cases --out kernels.json
    python -m benchmarks.visit_cases --tiny

All programs are compiled in a pool while inputs are made in the same threads; the device then runs one case after the
other: the implementation against the reference, and its time. So the visit learns in a minute and a half what
`benchmarks.kernels` takes half an hour for, of 36 cases in place of all. The file is that of `benchmarks.kernels`, and
grows with each case.
"""

import argparse
import dataclasses
import functools
import math
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.kernels import MAX_CALLS, Limits, Result, as_float64, chain, write_results
from pallas_kernels import Kernel, KernelCase, KernelInputs, discover

CASES = (
    "paged_attention/llama3_8b_decode_8x1k",
    "paged_attention/llama3_8b_decode_1x8k",
    "paged_attention/llama3_8b_decode_128x1k",
    "paged_attention/llama3_8b_decode_ragged",
    "paged_attention/llama3_8b_prefill_2k",
    "paged_attention/llama3_8b_tp4_prefill_8k",
    "paged_attention/gemma2_2b_decode_window",
    "paged_attention/gemma2_2b_prefill_window",
    "paged_attention/gpt_oss_20b_prefill_window",
    "paged_attention/llama3_8b_fp8_decode_128x1k",
    "paged_attention/llama3_8b_int8_decode_8x1k",
    "paged_attention/llama3_8b_fp8_prefill_2k",
    "sampling/llama3_1x128k",
    "sampling/qwen3_64x152k",
    "sampling/llama3_256x128k",
    "quant_matmul/llama_3_1_8b_gate_up_int4_1",
    "quant_matmul/llama_3_1_8b_gate_up_int4_64",
    "quant_matmul/llama_3_1_8b_gate_up_int4_asymmetric_2048",
    "quant_matmul/llama_3_1_8b_down_int8_1",
    "quant_matmul/llama_3_1_8b_down_int8_2048",
    "quant_matmul/llama_3_1_8b_gate_up_fp8_fp8_1",
    "quant_matmul/llama_3_1_8b_gate_up_fp8_fp8_32",
    "quant_matmul/llama_3_1_8b_gate_up_fp8_fp8_2048",
    "quant_matmul/llama_3_1_8b_qkv_int8_int8_32",
    "latent_attention/deepseek_v2_lite_decode_128x1k",
    "latent_attention/deepseek_v3_tp8_decode_ragged",
    "latent_attention/deepseek_v2_lite_prefill_2k",
    "moe/qwen3_30b_a3b_int4_decode_32",
    "moe/gpt_oss_20b_mxfp4_decode_32",
    "moe/qwen3_30b_a3b_fp8_decode_32",
    "moe/qwen3_30b_a3b_ep8_prefill_4k",
    "moe/gpt_oss_20b_mxfp4_prefill_4k",
    "moe/qwen3_30b_a3b_fp8_prefill_4k",
    "moe/qwen3_30b_a3b_decode_1",
    "paged_attention/qwen3_0_6b_decode_32x1k",
    "paged_attention/llama3_8b_decode_64x8k",
)
"""By kernel and name, in the order of the visit: at least one of each kernel function and type. The largest is last."""
TINY = ("paged_attention/decode_gqa4_d128_b64", "sampling/one_row", "quant_matmul/int4_decode")
BLOCK = 1_000_003
"""Numbers that are drawn for an array, and then repeated: a prime, so that no two pages or rows are alike."""
MAX_COPY_BYTES = 4 * 2**30


class RepeatingGenerator(np.random.Generator):
    """Draws a million numbers of an array and repeats them: numpy draws 2 GB a minute, and a visit has few."""

    def _repeat(self, draw: Callable[[Any], Any], size: Any) -> Any:
        if size is None or math.prod(np.atleast_1d(size).tolist()) <= BLOCK:
            return draw(size)
        return np.resize(draw(BLOCK), size)

    def standard_normal(self, size: Any = None, dtype: Any = np.float64, out: Any = None) -> Any:
        """See `numpy.random.Generator`."""
        draw = super().standard_normal
        return self._repeat(lambda size: draw(size, dtype), size)

    def integers(  # type: ignore[override]
        self, low: Any, high: Any = None, size: Any = None, dtype: Any = np.int64, **options: Any
    ) -> Any:
        """See `numpy.random.Generator`."""
        draw = super().integers
        return self._repeat(lambda size: draw(low, high, size, dtype, **options), size)

    def pareto(self, a: Any, size: Any = None) -> Any:
        """See `numpy.random.Generator`."""
        draw = super().pareto
        return self._repeat(lambda size: draw(a, size), size)


@contextmanager
def repeating() -> Iterator[None]:
    """Cases that are made in the block take a `RepeatingGenerator`."""
    with mock.patch("numpy.random.default_rng", lambda seed: RepeatingGenerator(np.random.PCG64(seed))):
        yield


@dataclass(frozen=True, slots=True)
class Programs:
    """What one implementation runs of a case: one call, and several on copies of the inputs."""

    one: jax.stages.Compiled
    many: jax.stages.Compiled
    calls: int


@dataclass(frozen=True, slots=True)
class Prepared:
    """A case that only needs the device. An implementation without programs has the reason."""

    inputs: KernelInputs
    reference: jax.stages.Compiled
    programs: dict[str, Programs | Exception]


class Preparation:
    """Compiles and makes inputs, in several threads; traces in one at a time."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._tracing = threading.Lock()

    def prepare(self, kernel: Kernel, case: KernelCase) -> Prepared:
        """Everything that a case needs; called in a thread."""
        with jax.default_device(jax.devices("cpu")[0]) if _on_gpu() else _nothing():
            inputs = case.make(self._seed)
        with jax.default_matmul_precision("highest"):
            reference = self._compile(functools.partial(kernel.reference, **inputs.static), (inputs.args,))
        programs: dict[str, Programs | Exception] = {}
        for name in kernel.implementations:
            if name == "native" or (not _on_gpu() and name in ("triton", "mosaic")):
                programs[name] = NotImplementedError("for the other kind of device")
                continue
            try:
                programs[name] = self._programs(kernel, name, inputs)
            except Exception as error:
                programs[name] = error
        return Prepared(inputs, reference, programs)

    def _programs(self, kernel: Kernel, name: str, inputs: KernelInputs) -> Programs:
        function = functools.partial(kernel.implementations[name], **inputs.static)
        size = sum(array.nbytes for array in jax.tree.leaves(inputs.args))
        calls = max(3, min(MAX_CALLS, MAX_COPY_BYTES // max(size, 1)))
        one = self._compile(functools.partial(chain, function), (inputs.args,))
        return Programs(one, self._compile(functools.partial(chain, function), (inputs.args,) * calls), calls)

    def _compile(self, function: Callable[..., Any], args: Sequence[Any]) -> jax.stages.Compiled:
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tuple(args))
        is_reference = not (isinstance(function, functools.partial) and function.func is chain)
        with self._tracing:
            lowered = jax.jit(function).lower(*(shapes[0] if is_reference else shapes))
        return lowered.compile()


def measure(kernel: Kernel, case: KernelCase, prepared: Prepared, limits: Limits, seconds: float) -> Iterator[Result]:
    """Each implementation: whether it is right, and its time."""
    args = jax.device_put(prepared.inputs.args, jax.devices()[0])
    expected = as_float64(prepared.reference(*args))
    for name, programs in prepared.programs.items():
        result = Result(kernel.name, name, case.name)
        if isinstance(programs, NotImplementedError):
            yield dataclasses.replace(result, skipped=str(programs))
            continue
        try:
            if isinstance(programs, Exception):
                raise programs
            got = as_float64(programs.one(args)[0])
            error = float(np.max(np.abs(got - expected) / np.maximum(1, np.abs(expected))))
            taken = _seconds(programs, args, seconds)
        except Exception as problem:  # the other cases are worth having
            reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0][:200]
            yield dataclasses.replace(result, failed=reason)
            continue
        dtype = str(next(a.dtype for a in jax.tree.leaves(args) if jnp.issubdtype(a.dtype, jnp.floating)))
        yield dataclasses.replace(
            result,
            error=error,
            tolerance=case.tolerance,
            microseconds=taken * 1e6,
            bytes_per_second=case.bytes_moved / taken,
            flops_per_second=case.flops / taken,
            of_copy=case.bytes_moved / taken / limits.copy_bytes_per_second,
            of_matmul=case.flops / taken / limits.matmul(dtype),
        )


def _seconds(programs: Programs, args: Any, budget: float) -> float:
    """One call on the device: the time of several less that of one, in which the launch is."""
    copies = [jax.tree.map(jnp.copy, args) for _ in range(programs.calls)]
    one = _median(programs.one, copies[:1], budget)
    return max(_median(programs.many, copies, budget) - one, 1e-9) / (programs.calls - 1)


def _median(program: jax.stages.Compiled, args: Sequence[Any], budget: float) -> float:
    jax.block_until_ready(program(*args))
    samples: list[float] = []
    until = time.perf_counter() + budget
    while len(samples) < 3 or (time.perf_counter() < until and len(samples) < 50):
        start = time.perf_counter()
        jax.block_until_ready(program(*args))
        samples.append(time.perf_counter() - start)
    return statistics.median(samples)


def _on_gpu() -> bool:
    return jax.default_backend() == "gpu"


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def chosen(names: Sequence[str]) -> list[tuple[Kernel, KernelCase]]:
    """The cases of these names. Raises KeyError for one that no kernel has."""
    every = {f"{kernel.name}/{case.name}": (kernel, case) for kernel in discover() for case in kernel.cases}
    return [every[name] for name in names]


def main(argv: Sequence[str] | None = None) -> int:
    """0, or 1 where an implementation failed or was wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.visit_cases",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tiny", action="store_true", help="three tiny cases, to try the logic on a CPU")
    parser.add_argument("--seconds", type=float, default=0.1, help="for each measurement (default %(default)s)")
    parser.add_argument("--budget", type=float, default=75.0, metavar="S", help="begin no case later (default 75)")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write JSON, after each case")
    args = parser.parse_args(argv)
    until, cases = time.monotonic() + args.budget, chosen(TINY if args.tiny else CASES)
    limits, results = Limits(args.seconds), list[Result]()
    preparation = Preparation(args.seed)
    with repeating(), ThreadPoolExecutor(max(2, os.cpu_count() or 1)) as pool:
        waiting: list[Future[Prepared] | None] = [pool.submit(preparation.prepare, *each) for each in cases]
        for place, (kernel, case) in enumerate(cases):
            future = waiting[place]
            assert future is not None
            waiting[place] = None  # its inputs are free once it is measured
            try:
                prepared = future.result(timeout=max(0.1, until - time.monotonic()))
                results += measure(kernel, case, prepared, limits, args.seconds)
            except TimeoutError:
                results.append(Result(kernel.name, "", case.name, skipped=f"no time was left of {args.budget:g} s"))
            except Exception as error:
                results.append(
                    Result(kernel.name, "reference", case.name, failed=f"{type(error).__name__}: {error}"[:200])
                )
            print(f"{kernel.name}/{case.name}: {_words(results[-1])}", file=sys.stderr, flush=True)
            write_results(args.out, limits, results)
        pool.shutdown(wait=False, cancel_futures=True)
    return 1 if any(result.is_wrong for result in results) else 0


def _words(result: Result) -> str:
    if result.microseconds is None:
        return f"{result.implementation}: {result.failed or result.skipped}"
    return f"{result.implementation}: {result.microseconds:,.1f} us, {'WRONG' if result.is_wrong else 'right'}"


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # what is still being compiled would hold the visit up
