"""What of the compiled programs is used while requests run, and that nothing is compiled then."""

import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from jserve.protocol import SamplingParams
from jserve.runtime.compiles import CompileCounter
from jserve.runtime.program_keys import Sample, Step
from jserve.runtime.runner import Runner
from jserve.runtime.sampling import VARIANTS, Variant
from jserve.runtime.shapes import Bucket
from tests.engine.world import (
    COUNT,
    EDITS,
    PROMPTS,
    World,
    check_empty,
    run_mixed,
)
from tests.worlds import (
    greedy,
    run,
    tokens_of,
)


def test_steps_note_the_programs_that_they_lack_and_what_it_costs(world: World) -> None:
    """Before the tests that bring them."""
    runner, small = world.started.runner, Bucket(4, 4)
    table, prompts = runner.table, {name: PROMPTS[name] for name in ("r0", "r1", "r2")}
    assert Step(small) not in table.compiled
    run(world.core(), prompts, greedy(COUNT))
    assert not table._lacks, "nobody compiles"
    before = runner.bucket_steps.copy()
    with table.noting_lacks():
        run(world.core(), prompts, greedy(COUNT))
    used = runner.bucket_steps - before
    rows = {bucket.rows: count for bucket, count in used.items() if bucket.is_decode and bucket.rows > small.rows}
    assert rows, "three decodes ran in a step of more than four rows"
    assert table._lacks[Step(small)] >= sum(2 * (most - small.rows) * (count - 3) for most, count in rows.items()) > 0
    assert table._lacks[Sample(small.rows, Variant())] >= table._lacks[Step(small)], "mixed steps of four rows too"
    assert all(key not in table.compiled for key in table._lacks)
    table._lacks.clear()


def test_bucket_whose_samplers_are_still_missing_is_not_used_for_what_they_do(world: World) -> None:
    """Programs that are compiled behind come one by one, and requests do not wait for them."""
    runner, small = world.started.runner, Bucket(4, 4)
    programs = {program.key: program for program in runner.table.optional()}
    runner.table.add(programs[Step(small)])
    penalised = greedy(6, frequency_penalty=1.0, logprobs=1)
    requests = {name: (PROMPTS[name], penalised) for name in ("r0", "r1", "r2")}
    expected = {name: world.expected(prompt, params, 6) for name, (prompt, params) in requests.items()}
    before = runner.bucket_steps[small]
    deltas = run_mixed(world.core(), requests)
    assert {name: tokens_of(actual) for name, actual in deltas.items()} == expected
    assert runner.bucket_steps[small] == before
    runner.table.add(programs[Sample(4, Variant())])
    deltas = run(world.core(), {name: PROMPTS[name] for name in requests}, greedy(COUNT))
    assert {name: tokens_of(actual) for name, actual in deltas.items()} == {
        name: world.greedy(name) for name in requests
    }
    assert runner.bucket_steps[small] > before


def test_programs_that_threads_add_at_once_are_all_there(world: World) -> None:
    """A table that two threads replace at the same time must not lose an entry."""
    started = world.started.runner
    rows = sorted({bucket.rows for bucket in started.shape.buckets()})
    keys = [Sample(count, variant) for count in rows for variant in VARIANTS]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(10):
            runner = Runner(started._programs, started.table._store, started.table._mesh)
            barrier = threading.Barrier(len(keys))

            def put(key: Sample, runner: Runner = runner, barrier: threading.Barrier = barrier) -> None:
                barrier.wait()
                runner.table.put(key, key)  # type: ignore[arg-type]

            with ThreadPoolExecutor(len(keys)) as pool:
                list(pool.map(put, keys))
            assert {Sample(count, variant) for count, variant in runner._samplers} == set(keys)
    finally:
        sys.setswitchinterval(interval)


def test_nothing_is_compiled_under_a_mixed_load(world: World) -> None:
    core, rng = world.core(), random.Random(0)
    kinds: list[dict[str, Any]] = [{}, {"temperature": 0.8, "seed": 1}, {"logprobs": 4}, *EDITS, {"min_tokens": 9}]
    requests = {}
    for number in range(40):
        prompt = PROMPTS[rng.choice(sorted(PROMPTS))]
        fields = {"temperature": 0.0, "max_tokens": rng.randrange(COUNT, 2 * COUNT), **rng.choice(kinds)}
        requests[f"q{number}"] = (prompt, SamplingParams(**fields))

    def abort(step: int) -> None:
        if step % 9 == 0:
            core.abort([rng.choice(sorted(requests))])

    with core.compiles.watch():
        deltas = run_mixed(core, requests, abort)
    assert core.stats().compiles_after_ready == core.compiles.count == 0
    assert core.stats().num_preemptions > 0
    assert len(deltas) > 30
    check_empty(core)


def test_compiles_of_the_watching_thread_are_counted_and_of_others_not() -> None:
    counter, x = CompileCounter(), np.arange(3.0)
    jax.jit(lambda x: x + 1.5)(x)
    with counter.watch():
        jax.jit(lambda x: x + 2.5)(x)
        other = threading.Thread(target=lambda: jax.jit(lambda x: x + 3.5)(x).block_until_ready())
        other.start()
        other.join()
    jax.jit(lambda x: x + 4.5)(x)
    assert counter.count == 1
