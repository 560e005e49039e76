"""Which programs a server begins with: the fewest that serve anything, and a few streams well."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jserve.runtime.program_keys import Sample, Step
from jserve.runtime.programs import Programs
from jserve.runtime.sampling import VARIANTS, Variant
from jserve.runtime.shapes import FEW_STREAMS, Bucket, EngineShape


def programs(platform: str, max_num_seqs: int, tokens: int = 256) -> Programs:
    """For a device that need not be there: nothing is lowered."""
    mesh = SimpleNamespace(devices=np.array([SimpleNamespace(platform=platform)]), size=1)
    blueprint: Any = SimpleNamespace(build=SimpleNamespace(mesh=mesh, tensor_parallel=1), config=None)
    return Programs(blueprint, EngineShape(max_num_seqs, tokens, 1024, 32, 64, 1000, min_rows=2))


def steps(made: Programs) -> list[Bucket]:
    return [program.key.bucket for program in made.required(early=True) if isinstance(program.key, Step)]


def test_a_cpu_begins_with_decode_steps_of_two_and_of_eight_rows() -> None:
    assert steps(programs("cpu", 64)) == [Bucket(256, 64), Bucket(FEW_STREAMS, FEW_STREAMS), Bucket(2, 2)]
    assert steps(programs("cpu", 4)) == [Bucket(256, 4), Bucket(2, 2)]


def test_a_gpu_begins_with_all_decode_steps_because_what_is_compiled_later_finds_no_memory() -> None:
    made = programs("gpu", 256, 4096)
    decode = {bucket for bucket in made.shape.buckets() if bucket.is_decode}
    assert set(steps(made)) == {Bucket(4096, 256)} | decode


@pytest.mark.parametrize(("platform", "seqs"), [("cpu", 1), ("cpu", 4), ("cpu", 8), ("cpu", 64), ("gpu", 256)])
def test_the_largest_step_can_do_all_there_is_and_the_others_at_least_draw(platform: str, seqs: int) -> None:
    made = programs(platform, seqs)
    keys = [program.key for program in made.required(early=True)]
    assert len(keys) == len(set(keys))
    largest = max(steps(made), key=lambda bucket: bucket.tokens)
    assert largest.rows == max(seqs, 2)
    assert Sample(largest.rows, VARIANTS[-1]) in keys
    for bucket in steps(made):
        assert {Sample(bucket.rows, Variant()), Sample(bucket.rows, Variant(draws=True))} <= set(keys)


@pytest.mark.parametrize(("platform", "seqs"), [("cpu", 4), ("cpu", 64), ("gpu", 256)])
def test_what_is_left_out_at_first_is_among_the_others(platform: str, seqs: int) -> None:
    made = programs(platform, seqs)
    later = {program.key for program in (*made.required(), *made.optional())}
    assert {program.key for program in made.required(early=True)} <= later
