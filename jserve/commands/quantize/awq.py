"""Scales of input channels, and ranges of groups, that change a linear layer's outputs least.

Activation-aware weight quantization (Lin et al. 2023): an input channel is divided by s in what comes before, and its
weights are multiplied by s before they are rounded, so that channels with large activations are rounded finer. AWQ
tries s = magnitude^a for some a, then shares of the ranges; here Adam goes on from the best a with both.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jserve.batch import pytree
from jserve.commands.quantize.rounding import half_gradient_error, output_error, round_asymmetric

EXPONENTS = np.linspace(0, 1, 20, dtype=np.float32)
"""As AWQ tries them; the first leaves everything as it is."""
LARGEST_STRETCH = 2.0**10
"""Largest factor of a channel, either way: what float16 bears."""
SMALLEST_SHARE = 0.4
"""Smallest share of a group's range that is kept at either end."""


@pytree
@dataclass(frozen=True, slots=True)
class Learned:
    """What is learned of linear layers that share their input."""

    log_scale: jax.Array
    """f32[channels]; zeros where the layers before cannot take a scale."""
    low: jax.Array
    """f32[N, groups]"""
    high: jax.Array
    """f32[N, groups]"""


@pytree
@dataclass(frozen=True, slots=True)
class Result:
    """`before` is the error of plain rounding, `after` that of `learned`; both as shares of the outputs' squares."""

    learned: Learned
    before: jax.Array
    after: jax.Array


@partial(jax.jit, static_argnames=("size", "steps", "is_scaled"))
def learn(
    weight: jax.Array,
    gram: jax.Array,
    magnitude: jax.Array,
    channel: jax.Array,
    *,
    size: int,
    steps: int,
    learning_rate: float,
    is_scaled: bool,
) -> Result:
    """Learn for a weight [N, inputs] in groups of `size`.

    gram: [inputs, inputs] and magnitude: [channels], of the layer's inputs; channel: i32[inputs], which scale an input
    has. `is_scaled` is False where scales must stay 1. The best of all steps counts, so the error never exceeds that
    of plain rounding on the same text.
    """
    whole = output_error(weight, gram) + 1e-30

    def loss(learned: Learned) -> jax.Array:
        return half_gradient_error(weight - rounded(weight, learned, channel, size), gram) / whole

    def step(_: jax.Array, carry: tuple[Learned, optax.OptState, Learned, jax.Array]) -> tuple:
        now, state, best, least = carry
        value, slopes = jax.value_and_grad(loss)(now)
        is_better = value < least
        best = jax.tree.map(lambda a, b: jnp.where(is_better, a, b), now, best)
        updates, state = adam.update(slopes, state, now)
        return _within(optax.apply_updates(now, updates), is_scaled), state, best, jnp.minimum(value, least)

    groups = weight.shape[1] // size
    ends = jnp.ones((len(weight), groups), jnp.float32)
    powers = _powers(magnitude) if is_scaled else jnp.zeros((1, magnitude.size), jnp.float32)
    errors = jax.lax.map(lambda log_scale: loss(Learned(log_scale, ends, ends)), powers)
    start = Learned(powers[jnp.argmin(errors)], ends, ends)
    adam = optax.adam(optax.cosine_decay_schedule(learning_rate, max(steps, 1)))
    carry = (start, adam.init(start), start, errors.min())
    last, _, best, least = jax.lax.fori_loop(0, steps, step, carry)
    final = loss(last)
    best = jax.tree.map(lambda a, b: jnp.where(final < least, a, b), last, best)
    return Result(best, errors[0], jnp.minimum(final, least))


def rounded(weight: jax.Array, learned: Learned, channel: jax.Array, size: int) -> jax.Array:
    """The weight that acts on inputs that are not divided, f32[N, inputs]."""
    scale = jnp.exp(learned.log_scale)[channel]
    return round_asymmetric(weight * scale, size, learned.low, learned.high).dequantize() / scale


def _powers(magnitude: jax.Array) -> jax.Array:
    """f32[20, channels], logarithms of AWQ's candidates."""
    logs = jnp.log(jnp.maximum(magnitude, 1e-4 * magnitude.max() + 1e-30))
    candidates = jnp.asarray(EXPONENTS)[:, None] * logs
    return candidates - (candidates.max(-1, keepdims=True) + candidates.min(-1, keepdims=True)) / 2


def _within(learned: Learned, is_scaled: bool) -> Learned:
    bound = float(np.log(LARGEST_STRETCH)) if is_scaled else 0.0
    low, high = (jnp.clip(ends, SMALLEST_SHARE, 1.0) for ends in (learned.low, learned.high))
    return Learned(jnp.clip(learned.log_scale, -bound, bound), low, high)
