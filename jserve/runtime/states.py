"""The states of sequences on the device: their bytes, and how they are copied to snapshots and back."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jserve.batch import CacheArray, SlotArray

COPIED_STATES = 4
"""Sequences whose states one call of the copy program takes."""

Cache = Sequence[tuple[CacheArray | SlotArray, ...]]
"""What `CausalLM.cache` says of each layer, or a `CacheLayout` of each lane."""


def slot_arrays(cache: Cache) -> list[SlotArray]:
    """The states of all layers."""
    return [array for layer in cache for array in layer if isinstance(array, SlotArray)]


def state_places(cache: Cache) -> tuple[int, ...]:
    """Which of the arrays of all layers, in order, are states."""
    arrays = [array for layer in cache for array in layer]
    return tuple(place for place, array in enumerate(arrays) if isinstance(array, SlotArray))


def state_bytes(cache: Cache, tensor_parallel: int) -> int:
    """Bytes of the states of one sequence on one device."""
    return sum(
        array.heads // (tensor_parallel if array.sharded else 1) * math.prod(array.size) * array.dtype.itemsize
        for array in slot_arrays(cache)
    )


def state_temporaries(cache: Cache, tensor_parallel: int, rows: int, tokens: int) -> int:
    """Bytes on one device that a step of so many rows and tokens holds for the layer with the largest states: what they
    were, become and are made of, and some float32 for each channel of each token.
    """
    most = 0
    for layer in cache:
        channels = sum(array.heads * array.size[0] for array in slot_arrays([layer])) // tensor_parallel
        most = max(most, 3 * rows * state_bytes([layer], tensor_parallel) + 24 * tokens * channels)
    return most


def copy_states(states: tuple[jax.Array, ...], pairs: jax.Array) -> tuple[jax.Array, ...]:
    """States, `[R + M, ...]` each, in which the second of each pair, i32[C, 2], is what the first was.

    A second of R + M copies nothing.
    """
    first, second = pairs.T
    return tuple(state.at[second].set(jnp.take(state, first, axis=0, mode="clip"), mode="drop") for state in states)
