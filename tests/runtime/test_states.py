"""States of sequences in the memory plan, and their copies on the device."""

from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jserve.batch import CacheArray, SlotArray
from jserve.config import EngineConfig
from jserve.errors import ConfigError, OutOfMemoryError
from jserve.layers.build import Build
from jserve.runtime.memory import MemoryPlan, page_bytes, plan_shape
from jserve.runtime.shapes import EngineShape
from jserve.runtime.states import copy_states, state_bytes, state_places
from tests.runtime.test_memory import MIB, model

PAGES = CacheArray(2, 8, jnp.dtype("float32"))
MATRIX = SlotArray(4, (64, 32), jnp.dtype("float32"))
WHOLE = SlotArray(3, (2,), jnp.dtype("bfloat16"), sharded=False)
CACHE = [(PAGES, PAGES), (MATRIX, WHOLE), (MATRIX,)]
EACH = 2 * 4 * 64 * 32 * 4 + 3 * 2 * 2
"""Bytes of the states of one sequence."""


def plan(limit: int = 512 * MIB, parts: int = 1, **options: Any) -> tuple[EngineShape, MemoryPlan]:
    devices = np.array([SimpleNamespace(platform="cpu")] * parts)
    mesh: Any = SimpleNamespace(devices=devices, size=parts)
    build = Build(jnp.dtype("float32"), jnp.dtype("float32"), mesh)
    return plan_shape(EngineConfig(model="m", **options), model(), build, CACHE, MIB, limit)


def test_states_are_counted_once_for_each_sequence_and_pages_for_each_token() -> None:
    assert state_bytes(CACHE, 1) == EACH
    assert state_bytes(CACHE, 4) == EACH // 4 + 9  # what is not sharded is whole on every device
    assert page_bytes(CACHE, 1, page_size=16) == 16 * 2 * 2 * 8 * 4
    assert state_places(CACHE) == (2, 3, 4)


def test_the_plan_has_states_of_all_slots_and_four_copies_of_each() -> None:
    shape, planned = plan(max_num_seqs=8)
    assert shape.num_snapshots == 32
    assert shape.num_states == 40
    assert planned.states == 40 * EACH


def test_copies_take_at_most_a_quarter_of_what_is_left() -> None:
    shape, planned = plan(limit=64 * MIB, max_num_seqs=64, max_num_batched_tokens=64)
    assert 0 < (shape.num_snapshots or 0) < 4 * 64
    left = planned.limit - planned.weights - planned.temporaries - planned.sampling - 64 * EACH
    assert planned.states - 64 * EACH <= left // 4 < planned.states - 63 * EACH


def test_there_are_no_copies_without_prefix_caching() -> None:
    assert plan(max_num_seqs=8, enable_prefix_caching=False)[0].num_snapshots == 0


def test_states_that_do_not_fit_are_refused_with_the_flag_to_change() -> None:
    with pytest.raises(OutOfMemoryError, match=r"the states of 999 sequences need .* lower --max-num-seqs"):
        plan(limit=64 * MIB, max_num_seqs=999, max_num_batched_tokens=999)


def test_devices_that_do_not_share_the_heads_evenly_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"--tensor-parallel-size 3 does not divide .* states of 4 heads"):
        plan(parts=3)


def test_a_copy_is_of_all_layers_and_changes_no_other_row() -> None:
    states = tuple(jnp.arange(24.0).reshape(6, 4) + 100 * layer for layer in range(2))
    pairs = jnp.array([[0, 4], [2, 0], [1, 6], [0, 6]])
    for before, after in zip(states, copy_states(states, pairs), strict=True):
        np.testing.assert_array_equal(after, before[jnp.array([2, 1, 2, 3, 0, 5])])
