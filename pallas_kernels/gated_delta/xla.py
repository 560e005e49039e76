"""The gated delta rule in plain jax.numpy, for CPUs and as the fallback.

Rows of one token are taken all at once. Longer ones are cut into tiles, taken one after the other, each with all heads:
within a tile the corrections are the solution of a unit lower triangular system (arXiv:2406.06484, section 3.2, with
decay as in arXiv:2412.06464, section 3.3). Its inverse is made of those of blocks, each as exact as a forward
substitution: with equal keys, which repeated tokens have, powers of the matrix would leave float32.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

__all__ = ["gated_delta_xla"]

TILES = (16, 32, 64)
"""Tokens of a tile: the fewest that hold all of a small step."""
BLOCK = 16
"""Rows that are substituted one by one."""
_einsum = jax.tree_util.Partial(jnp.einsum, precision="highest")


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class Tokens:
    """Some tokens: q, k [n, K, D]; v [n, K, G, V]; decay, beta [n, K, G]."""

    q: jax.Array
    k: jax.Array
    v: jax.Array
    decay: jax.Array
    beta: jax.Array


def gated_delta_xla(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    decay: jax.Array,
    beta: jax.Array,
    states: jax.Array,
    slots: jax.Array,
    is_fresh: jax.Array,
    query_start: jax.Array,
    *,
    corrects: bool = True,
    decode: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Shapes as in `gated_delta`."""
    T, K = k.shape[:2]
    G = v.shape[1] // K
    tokens = Tokens(q, k, v.reshape(T, K, G, -1), decay.reshape(T, K, G), beta.reshape(T, K, G))
    grouped = states.reshape(states.shape[0], K, G, *states.shape[2:])
    if decode:
        out, grouped = _take_one(tokens, grouped, slots, is_fresh, corrects)
        out = jnp.where((slots < states.shape[0])[:, None, None, None], out, 0)
    else:
        out, grouped = _take_rows(tokens, grouped, slots, is_fresh, query_start, corrects)
    return out.reshape(v.shape), grouped.reshape(states.shape)


def _take_one(
    tokens: Tokens, states: jax.Array, slots: jax.Array, is_fresh: jax.Array, corrects: bool
) -> tuple[jax.Array, jax.Array]:
    """One token of each row, [S, ...], over states [N, K, G, D, V]. Rows whose slot is N or more are padding."""
    old = jnp.take(states, slots, axis=0, mode="clip")
    state = jnp.where(is_fresh[:, None, None, None, None], 0, old) * jnp.exp(tokens.decay)[..., None, None]
    held = _einsum("skgdv,skd->skgv", state, tokens.k) if corrects else 0
    delta = tokens.beta[..., None] * (tokens.v - held)
    state += tokens.k[:, :, None, :, None] * delta[:, :, :, None, :]
    return _einsum("skgdv,skd->skgv", state, tokens.q), states.at[slots].set(state, mode="drop")


def _take_rows(
    tokens: Tokens,
    states: jax.Array,
    slots: jax.Array,
    is_fresh: jax.Array,
    query_start: jax.Array,
    corrects: bool,
) -> tuple[jax.Array, jax.Array]:
    T = tokens.q.shape[0]
    count = query_start[1:] - query_start[:-1]
    is_short = count == 1
    at = jnp.minimum(query_start[:-1], T - 1)
    short, states = _take_one(
        jax.tree.map(lambda x: x[at], tokens), states, jnp.where(is_short, slots, states.shape[0]), is_fresh, corrects
    )
    size = next((size for size in TILES if size >= T), TILES[-1])
    ends = jnp.cumsum(jnp.where(is_short, 0, -(-count // size)))
    padded = jax.tree.map(lambda x: jnp.pad(x, ((0, size), *[(0, 0)] * (x.ndim - 1))), tokens)
    out = jnp.zeros((T + size, *tokens.v.shape[1:]), tokens.v.dtype)

    def take_tile(number: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        out, states = carry
        row = jnp.searchsorted(ends, number, side="right", method="compare_all")
        tile = number - (ends[row] - -(-count[row] // size))
        first = query_start[row] + tile * size
        real = jnp.arange(size) < query_start[row + 1] - first

        def part(x: jax.Array) -> jax.Array:
            there = jax.lax.dynamic_slice_in_dim(x, first, size)
            return jnp.where(real.reshape(-1, *[1] * (x.ndim - 1)), there, 0)

        state = jax.lax.dynamic_index_in_dim(states, slots[row], keepdims=False)
        state = jnp.where(is_fresh[row] & (tile == 0), 0, state)
        result, state = _take_tile(jax.tree.map(part, padded), state, corrects)
        # Behind the row zeros, whatever the state holds; the rows there, taken later, write over them.
        result = jnp.where(real[:, None, None, None], result, 0)
        out = jax.lax.dynamic_update_slice_in_dim(out, result, first, axis=0)
        return out, jax.lax.dynamic_update_index_in_dim(states, state, slots[row], axis=0)

    out, states = jax.lax.fori_loop(0, ends[-1], take_tile, (out, states))
    out = out[:T].at[jnp.where(is_short, query_start[:-1], T)].set(short, mode="drop")
    return out, states


def _take_tile(tokens: Tokens, state: jax.Array, corrects: bool) -> tuple[jax.Array, jax.Array]:
    """Neighbouring tokens [C, ...] of one row, with zeros behind its end. state: [K, G, D, V]."""
    size = tokens.q.shape[0]
    total = jnp.cumsum(tokens.decay, axis=0)  # [C, K, G], of the log decay from the tile's start
    order = jnp.arange(size)
    earlier = order[:, None] >= order
    between = jnp.where(earlier, total.transpose(1, 2, 0)[..., None] - total.transpose(1, 2, 0)[:, :, None], -jnp.inf)
    between = jnp.exp(between)  # [K, G, C, C], from the second token to the first
    decayed = jnp.exp(total)[..., None]  # [C, K, G, 1]
    delta = tokens.beta[..., None] * tokens.v
    if corrects:
        alike = _einsum("ikd,jkd->kij", tokens.k, tokens.k)[:, None] * between
        beta = tokens.beta.transpose(1, 2, 0)[..., None]
        inverse = _unit_lower_inverse(jnp.where(order[:, None] > order, beta * alike, 0))
        held = _einsum("ikd,kgdv->ikgv", tokens.k, state) * decayed
        delta = _einsum("kgij,jkgv->ikgv", inverse, delta - tokens.beta[..., None] * held)
    scores = _einsum("ikd,jkd->kij", tokens.q, tokens.k)[:, None] * between
    out = _einsum("ikd,kgdv->ikgv", tokens.q, state) * decayed + _einsum("kgij,jkgv->ikgv", scores, delta)
    left = jnp.exp(total[-1] - total)[..., None]
    state = state * jnp.exp(total[-1])[..., None, None] + _einsum("ikd,ikgv->kgdv", tokens.k, delta * left)
    return out, state


def _unit_lower_inverse(strict: jax.Array) -> jax.Array:
    """The inverse of the unit matrix plus a strictly lower triangular one, [..., C, C]."""
    size = strict.shape[-1]
    blocks = jnp.stack([strict[..., at : at + BLOCK, at : at + BLOCK] for at in range(0, size, BLOCK)], -3)
    unit = jnp.broadcast_to(jnp.eye(BLOCK, dtype=strict.dtype), blocks.shape)
    rows = [unit[..., :1, :]]
    for row in range(1, BLOCK):
        above = jnp.concatenate(rows, -2)
        known = _einsum("...j,...jc->...c", blocks[..., row, :row], above)
        rows.append(unit[..., row : row + 1, :] - known[..., None, :])
    inverse = jnp.concatenate(rows, -2)
    width = BLOCK
    while width < size:
        first, second = inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
        below = jnp.stack(
            [strict[..., at + width : at + 2 * width, at : at + width] for at in range(0, size, 2 * width)], -3
        )
        below = -_einsum("...ij,...jk,...kl->...il", second, below, first)
        top = jnp.concatenate([first, jnp.zeros_like(below)], -1)
        inverse = jnp.concatenate([top, jnp.concatenate([below, second], -1)], -2)
        width *= 2
    return inverse[..., 0, :, :]
