"""Rounding input by input, where each input's error is made up for by the inputs that are still to be rounded.

GPTQ (Frantar et al. 2022), in the order of the inputs. The inverse of the damped Gram matrix, in its Cholesky form,
says how; a group's scale is chosen when its first input is reached.
"""

from functools import partial

import jax
import jax.numpy as jnp

from jserve.commands.quantize.rounding import Codes, symmetric_codes, symmetric_scale

DAMPING = (0.01, 0.1, 1.0)
"""Shares of the mean diagonal that are added to the diagonal: the first with which the matrix has an inverse."""


def compensate(weight: jax.Array, gram: jax.Array, *, bits: int, size: int) -> Codes:
    """Codes of a weight, f32[N, inputs], in symmetric groups of `size`. gram: f32[inputs, inputs]."""
    for damping in DAMPING:
        factor = _inverse_factor(gram, damping)
        if bool(jnp.isfinite(factor).all()):
            break
    else:
        factor = jnp.eye(len(gram), dtype=jnp.float32)  # inputs that say nothing: plain rounding
    return _compensate(weight, factor, jnp.diagonal(gram), jnp.float32(2 ** (bits - 1)), size=size)


@jax.jit
def _inverse_factor(gram: jax.Array, damping: float) -> jax.Array:
    """Upper triangular U with (gram + damping) ^ -1 = U^T U."""
    mean = jnp.diagonal(gram).mean() + 1e-30
    matrix = gram / mean + damping * jnp.eye(len(gram), dtype=gram.dtype)
    lower = jnp.linalg.cholesky(matrix)
    inverse = jax.scipy.linalg.cho_solve((lower, True), jnp.eye(len(gram), dtype=gram.dtype))
    return jnp.linalg.cholesky((inverse + inverse.T) / 2).T


@partial(jax.jit, static_argnames="size")
def _compensate(weight: jax.Array, factor: jax.Array, importance: jax.Array, middle: jax.Array, *, size: int) -> Codes:
    outputs, inputs = weight.shape
    column = jnp.arange(inputs)

    def round_group(group: jax.Array, carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple:
        """Round one group with its own errors made up for within it, then make up for them in later groups."""
        weight, codes, scales = carry
        first = group * size
        part = jax.lax.dynamic_slice(weight, (0, first), (outputs, size))
        rows = jax.lax.dynamic_slice(factor, (first, 0), (size, inputs))
        corner = jax.lax.dynamic_slice(rows, (0, first), (size, size))
        scale = symmetric_scale(part, middle, jax.lax.dynamic_slice(importance, (first,), (size,)))

        def round_input(place: jax.Array, carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple:
            part, chosen, errors = carry
            value = part[:, place]
            code = symmetric_codes(value, scale, middle)
            error = (value - (code - middle) * scale) / corner[place, place]
            # The factor has zeros left of its diagonal: what is rounded already stays.
            part = part - error[:, None] * corner[place]
            return part, chosen.at[:, place].set(code), errors.at[:, place].set(error)

        zeros = jnp.zeros_like(part)
        _, chosen, errors = jax.lax.fori_loop(0, size, round_input, (part, zeros, zeros))
        spread = jnp.dot(errors, rows, precision=jax.lax.Precision.HIGHEST)
        weight = weight - jnp.where(column >= first + size, spread, 0)
        return weight, codes.at[:, group].set(chosen), scales.at[:, group].set(scale)

    codes = jnp.zeros((outputs, inputs // size, size), jnp.float32)
    scales = jnp.zeros((outputs, inputs // size), jnp.float32)
    _, codes, scales = jax.lax.fori_loop(0, inputs // size, round_group, (weight, codes, scales))
    return Codes(codes, scales, jnp.full_like(scales, middle))
