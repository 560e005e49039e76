"""The gated delta rule (arXiv:2412.06464) over ragged rows, with the state of each sequence in a slot.

A state is a matrix S of each value head. A token lets it decay, reads what it holds under the token's key, corrects
that, and reads it under the token's query:

    S = exp(decay) * S;  S = S + k (beta * (v - S^T k))^T;  out = S^T q

Without the correction, S = S + k (beta * v)^T, it is the state space of Mamba-2 (arXiv:2405.21060).

`reference.py` is this, token by token. `xla.py` runs everywhere: rows of one token all at once, and longer ones in
tiles, whose tokens are solved for together.
"""

import functools

import jax

from .reference import reference
from .xla import gated_delta_xla

__all__ = ["IMPLEMENTATIONS", "gated_delta"]


def gated_delta(
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
    implementation: str = "auto",
) -> tuple[jax.Array, jax.Array]:
    """Take the states of the rows over their tokens.

    Args:
        q, k: f32[T, K, D]; K key heads, each of which serves H / K neighbouring value heads.
        v: f32[T, H, V].
        decay: f32[T, H], at most 0.
        beta: f32[T, H].
        states: f32[N, H, D, V].
        slots: i32[S], where the state of each row is; N or more for padding rows.
        is_fresh: bool[S], whether a row starts from zeros.
        query_start: i32[S+1]; row s owns tokens query_start[s]:query_start[s + 1], later tokens are padding.
        corrects: static; whether what the state holds under a key is taken off before the value is added.
        decode: static promise that T == S and row s owns exactly token s, or is a padding row.
        implementation: "auto", "reference" or "xla". "auto" is xla.

    Returns:
        f32[T, H, V], zeros for padding, and the states.

    Raises:
        ValueError: unknown implementation.
    """
    args = (q, k, v, decay, beta, states, slots, is_fresh, query_start)
    match implementation:
        case "auto" | "xla":
            return gated_delta_xla(*args, corrects=corrects, decode=decode)
        case "reference":
            return reference(*args, corrects=corrects, decode=decode)
    raise ValueError(f"unknown implementation {implementation!r}; choose auto, reference or xla")


IMPLEMENTATIONS = {"xla": functools.partial(gated_delta, implementation="xla")}
