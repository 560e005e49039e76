"""Causal convolution of each channel over the tokens of a sequence, whose newest inputs are the layer's state."""

import jax
import jax.numpy as jnp

from jserve.batch import StateRows


def causal_conv(
    x: jax.Array,
    weight: jax.Array,
    window: jax.Array,
    query_start: jax.Array,
    states: StateRows,
) -> tuple[jax.Array, jax.Array]:
    """y[t] = sum over k of weight[:, W - 1 - k] * x[t - k], for the tokens of each row and those before them.

    The terms are summed in the same order wherever a prompt is cut, so cutting it changes no bit.

    Args:
        x: [T, C].
        weight: [C, W].
        window: [R + M, C, W - 1], the newest inputs of each sequence, the last one at the end.
        query_start: i32[S + 1].

    Returns:
        f32[T, C], and `window` with the rows' newest inputs.
    """
    width = weight.shape[1]
    old = jnp.where(states.is_fresh[:, None, None], 0, jnp.take(window, states.slots, axis=0, mode="clip"))
    weight = weight.astype(jnp.float32)
    if x.shape[0] == states.slots.shape[0]:  # each row has one token
        terms = jnp.concatenate([old, x.astype(window.dtype)[:, :, None]], axis=2)
        y = sum(terms[:, :, place].astype(jnp.float32) * weight[:, place] for place in range(width))
        return jnp.asarray(y), window.at[states.slots].set(terms[:, :, 1:], mode="drop")
    y = x.astype(jnp.float32) * weight[:, width - 1]
    total = jnp.zeros_like(y)
    for back in range(width - 1, 0, -1):
        before = jnp.pad(x, ((back, 0), (0, 0)))[: x.shape[0]]
        place = jnp.clip(width - 1 + states.index - back, 0, width - 2)
        kept = old[states.row, :, place].astype(x.dtype)
        term = jnp.where((states.index >= back)[:, None], before, kept)
        total += term.astype(jnp.float32) * weight[:, width - 1 - back]
    return total + y, window.at[states.slots].set(_newest(x, old, query_start), mode="drop")


def _newest(x: jax.Array, old: jax.Array, query_start: jax.Array) -> jax.Array:
    """The last W - 1 inputs of each row, [S, C, W - 1], where a short row keeps some of `old`."""
    size = old.shape[2]
    count = query_start[1:] - query_start[:-1]
    place = count[:, None] + jnp.arange(size)  # among the old ones and then the row's tokens
    token = jnp.clip(query_start[:-1, None] + place - size, 0, x.shape[0] - 1)
    new = jnp.moveaxis(x[token], 1, 2).astype(old.dtype)
    stay = jnp.take_along_axis(old, jnp.minimum(place, size - 1)[:, None], axis=2)
    return jnp.where((place >= size)[:, None], new, stay)
