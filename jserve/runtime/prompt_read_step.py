"""What is read of a step beyond the next token, on the device: scores of a prompt's own tokens, sums of its
hidden states, and the logprobs of tokens that a request chose.

Each is a small program of its own, launched only where a row asks; [T, V] never exists.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from jserve.batch import Weights
from jserve.layers.dense import after_pooling
from jserve.models.causal_lm import CausalLM
from jserve.runtime.sampling import SCORE_COLUMNS, logprobs_of

SCORE_ROWS = 64
"""Tokens that are scored at once: their logits f32[64, V] are the largest array."""

ByRows = Callable[[Callable[..., jax.Array]], Callable[..., jax.Array]]
"""May share a function's rows out over the devices."""


def make_score(
    model: CausalLM, by_rows: ByRows = lambda function: function, chunk: int = SCORE_ROWS
) -> Callable[[Weights, jax.Array, jax.Array], jax.Array]:
    """The function to compile: (weights, hidden, packed) to i32[T, SCORE_COLUMNS].

    hidden: [T, E] of a step; packed: i32[2, T] of places in it and the tokens that follow there, those to score
    first, token -1 in the rest, which is not computed. The output is that of `logprobs_of`, in their order.
    """
    graph, abstract = nnx.split(model, nnx.Param)
    structure = jax.tree.structure(abstract)

    def score(weights: Weights, hidden: jax.Array, packed: jax.Array) -> jax.Array:
        built = nnx.merge(graph, jax.tree.unflatten(structure, weights))
        tokens = hidden.shape[0]
        places, targets = jnp.pad(packed, ((0, 0), (0, -tokens % chunk)))
        count = jnp.sum(packed[1] >= 0)

        def score_chunk(index: jax.Array, output: jax.Array) -> jax.Array:
            start = index * chunk
            rows = jnp.take(hidden, jax.lax.dynamic_slice(places, (start,), (chunk,)), axis=0, mode="clip")
            followers = jnp.maximum(jax.lax.dynamic_slice(targets, (start,), (chunk,)), 0)
            scores = by_rows(logprobs_of)(built.logits(rows), followers)
            return jax.lax.dynamic_update_slice(output, scores, (start, 0))

        output = jnp.zeros((places.size, SCORE_COLUMNS), jnp.int32)
        return jax.lax.fori_loop(0, -(-count // chunk), score_chunk, output)[:tokens]

    return score


def make_pool(model: CausalLM) -> Callable[[Weights, jax.Array, jax.Array], jax.Array]:
    """The function to compile: (weights, hidden, packed) to f32[S, E], sums of final hidden states, or what the model
    makes of them.

    hidden: [T, E] of a step; packed: i32[2, S]; each row adds up the places packed[0] <= t < packed[1].
    """
    graph, abstract = nnx.split(model, nnx.Param)
    structure = jax.tree.structure(abstract)

    def pool(weights: Weights, hidden: jax.Array, packed: jax.Array) -> jax.Array:
        built = nnx.merge(graph, jax.tree.unflatten(structure, weights))
        place = jnp.arange(hidden.shape[0])
        is_mine = (place >= packed[0][:, None]) & (place < packed[1][:, None])
        final = built.final_norm(hidden).astype(jnp.float32)
        final = jnp.where(jnp.any(is_mine, axis=0)[:, None], final, 0.0)  # what padding computed may be NaN
        sums = jnp.matmul(is_mine.astype(jnp.float32), final, precision=jax.lax.Precision.HIGHEST)
        if not built.dense:
            return sums
        return jnp.where(jnp.any(is_mine, axis=1)[:, None], after_pooling(built.dense, sums), 0.0)

    return pool


def chosen_logprobs(logits: jax.Array, ids: jax.Array) -> jax.Array:
    """f32[S, C]: logprobs of the tokens i32[S, C] under the logits f32[S, V]."""
    normal = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    return jnp.take_along_axis(logits, ids, axis=1) - normal
