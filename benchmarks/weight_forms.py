"""Steps of one model in several forms of weights, in turn in one process: what a form gains or costs in time.

    python -m benchmarks.weight_forms MODEL.gguf --forms none/float32,gguf/float32,gguf-a8/float32 --rows 1,8,32

A form is `--quantization`/`--dtype`. All engines are started first; then each does some decode steps at each number of
rows, in turn, round after round, and a prompt of `--prefill` tokens. The median of the rounds counts, and the ratio to
the first form. Other work on the machine disturbs all forms alike.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence

from benchmarks.step_loop import Loop
from jserve.config import EngineConfig
from jserve.engine.core import EngineCore
from jserve.protocol import Request, SamplingParams
from jserve.runtime.platform import choose_platform
from jserve.runtime.program_keys import Sample, Step
from jserve.runtime.sampling import Variant
from jserve.runtime.start import start_runner

STEPS = 6
"""Decode steps of a form in a round."""
CONTEXT = 96


class Engine:
    """One form's engine, with the programs that are timed."""

    def __init__(self, options: argparse.Namespace, form: str) -> None:
        quantization, dtype = form.split("/")
        most = max(options.rows)
        config = EngineConfig(
            model=options.model,
            dtype=dtype,
            quantization=None if quantization == "auto" else quantization,
            max_model_len=max(512, options.prefill + 64),
            max_num_seqs=most,
            max_num_batched_tokens=max(256, options.prefill),
            kv_cache_memory_bytes=512 << 20,
            enable_prefix_caching=False,
            compile_cache_dir=options.compile_cache_dir,
        )
        started = start_runner(config, lambda *_: None)
        self.form, self.weights = form, started.plan.weights
        self._loop, self._vocab = Loop(EngineCore(started, enable_prefix_caching=False)), started.config.vocab_size
        self._random, self._names = random.Random(0), 0
        buckets = started.shape.buckets()
        wanted = [min(b for b in buckets if b.is_decode and b.rows >= rows) for rows in options.rows]
        keys = {Step(bucket) for bucket in wanted} | {Sample(bucket.rows, Variant()) for bucket in wanted}
        for program in started.runner.table.optional():
            if program.key in keys:
                started.runner.table.add(program)

    def decode(self, rows: int) -> float:
        """Seconds of a decode step, the best of STEPS."""
        # The first ones answer while the prompts of the last ones are read, half a step at a time.
        names = [self._add(CONTEXT, 4 * STEPS + 2 * rows) for _ in range(rows)]
        plan = None
        while plan is None or not (plan.is_decode and len(plan.chunks) == rows):
            plan = self._loop.step()
        self._loop.step()
        best = min(self._timed(self._loop.step) for _ in range(STEPS))
        self._loop.core.abort(names)
        self._loop.drain()
        return best

    def prefill(self, tokens: int) -> float:
        """Seconds of one prompt in one step."""
        name = self._add(tokens, 2)

        def whole() -> None:
            self._loop.step()
            self._loop.drain()

        seconds = self._timed(whole)
        self._loop.core.abort([name])
        return seconds

    def _timed(self, work: Callable[[], object]) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    def _add(self, length: int, answer: int) -> str:
        self._names += 1
        prompt = self._random.choices(range(3, self._vocab), k=length)
        params = SamplingParams(temperature=0.0, max_tokens=answer, ignore_eos=True)
        refused = self._loop.core.add(Request(f"r{self._names}", prompt, params))
        if refused is not None:
            raise ValueError(refused.error)
        return f"r{self._names}"


def main(argv: Sequence[str] | None = None) -> None:
    """Print a line for each number of rows and form."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument(
        "--forms", default="none/float32,gguf/float32,gguf-a8/float32", help="with commas; the first is 1"
    )
    parser.add_argument("--rows", type=lambda text: [int(n) for n in text.split(",")], default="1,8,32")
    parser.add_argument("--prefill", type=int, default=256, help="tokens of a prompt")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--compile-cache-dir")
    options = parser.parse_args(argv)
    choose_platform(0.9)
    engines = [Engine(options, form) for form in options.forms.split(",")]
    for engine in engines:
        print(f"{engine.form}: weights {engine.weights / 1e6:.1f} MB", flush=True)
    kinds = [(f"{rows} rows", Engine.decode, rows) for rows in options.rows]
    for name, work, size in [*kinds, ("prompt", Engine.prefill, options.prefill)]:
        times: dict[str, list[float]] = {engine.form: [] for engine in engines}
        for _ in range(options.rounds):
            for engine in engines:
                times[engine.form].append(work(engine, size))
        first = times[engines[0].form]
        for form, seconds in times.items():
            ratio = statistics.median(a / b for a, b in zip(first, seconds, strict=True))
            print(f"{name:8s} {form:16s} {1e3 * statistics.median(seconds):8.2f} ms  {ratio:.2f} x", flush=True)


if __name__ == "__main__":
    main()
