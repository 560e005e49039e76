"""The experts of a mixture: each token through the feed-forward blocks that a router chose for it.

Owns the choice of an implementation and nothing else. `reference.py` is the definition, `xla.py` runs everywhere.
"""

import functools
from collections.abc import Callable

import jax

from .reference import reference
from .xla import moe_xla

__all__ = ["IMPLEMENTATIONS", "moe"]


def moe(
    x: jax.Array,
    expert_ids: jax.Array,
    weights: jax.Array,
    gate_up: jax.Array,
    down: jax.Array,
    gate_up_bias: jax.Array | None = None,
    down_bias: jax.Array | None = None,
    *,
    activate: Callable[[jax.Array, jax.Array], jax.Array],
    implementation: str = "auto",
) -> jax.Array:
    """sum over j of weights[t, j] * (down of activate(gate, up) of expert expert_ids[t, j])(x[t]).

    Axis letters: T tokens, J experts per token, X experts, E embed, F an expert's inner size.

    Args:
        x: [T, E].
        expert_ids: i32[T, J]; ids outside 0 .. X-1 add nothing: experts of another device, tokens of padding.
        weights: f32[T, J].
        gate_up: [X, E, 2, F], gate before up; down: [X, F, E]; both float32, bfloat16 or float16. On a CPU give
            the bits of bfloat16 as uint16: XLA:CPU would convert all experts to float32 before it reads one.
        gate_up_bias: [X, 2, F]; down_bias: [X, E]; None where there is none; else in the same type.
        activate: (gate, up), each f32[n, F], to f32[n, F]; elementwise.
        implementation: "auto", "reference" or "xla". "auto" is xla.

    Returns:
        f32[T, E]. No token is ever dropped: there is no capacity, and what a token gets does not depend on the
        others.

    Raises:
        ValueError: unknown implementation.
    """
    args = (x, expert_ids, weights, gate_up, down, gate_up_bias, down_bias)
    match implementation:
        case "auto" | "xla":
            return moe_xla(*args, activate=activate)
        case "reference":
            return reference(*args, activate=activate)
    raise ValueError(f"unknown implementation {implementation!r}; choose auto, reference or xla")


IMPLEMENTATIONS = {"xla": functools.partial(moe, implementation="xla")}
