"""The definition of the gated delta rule: plain jnp, one token at a time, float32 throughout.

Never fast. Every implementation is compared with this one.
"""

import jax
import jax.numpy as jnp

__all__ = ["reference"]


def reference(
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
    """Shapes as in `gated_delta`; the result is 0 for padding."""
    T, S, N = q.shape[0], slots.shape[0], states.shape[0]
    groups = v.shape[1] // k.shape[1]
    token = jnp.arange(T)
    row = token if decode else jnp.searchsorted(query_start[1:], token, side="right")
    real = (row < S) & (slots[jnp.minimum(row, S - 1)] < N)
    row = jnp.minimum(row, S - 1)
    first = token == (token if decode else query_start[row])

    def step(states: jax.Array, one: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        q, k, v, decay, beta, row, first, real = one
        slot = jnp.minimum(slots[row], N - 1)
        old = states[slot]
        state = jnp.where(first & is_fresh[row], 0, old) * jnp.exp(decay)[:, None, None]
        q, k = jnp.repeat(q, groups, axis=0), jnp.repeat(k, groups, axis=0)
        held = jnp.einsum("hdv,hd->hv", state, k, precision="highest") if corrects else 0
        state += k[:, :, None] * (beta[:, None] * (v - held))[:, None, :]
        out = jnp.einsum("hdv,hd->hv", state, q, precision="highest")
        return states.at[slot].set(jnp.where(real, state, old)), jnp.where(real, out, 0)

    after, out = jax.lax.scan(step, states, (q, k, v, decay, beta, row, first, real))
    return out, after
