"""The experts of a mixture: each token through the feed-forward blocks that a router chose for it.

Owns the choice of an implementation and nothing else. `reference.py` is the definition, `xla.py` runs everywhere,
`triton_moe.py` is the kernel for NVIDIA GPUs.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any

import jax

from ..paged_attention.target import Target
from .packed import PackedExperts, dequantize
from .reference import reference
from .xla import moe_xla

__all__ = ["IMPLEMENTATIONS", "PackedExperts", "dequantize", "moe"]

logger = logging.getLogger(__name__)


def moe(
    x: jax.Array,
    expert_ids: jax.Array,
    weights: jax.Array,
    gate_up: jax.Array | PackedExperts,
    down: jax.Array | PackedExperts,
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
            Either may be in 8 or 4 bits, as `PackedExperts` [X, 2, F, E] and [X, E, F].
        gate_up_bias: [X, 2, F]; down_bias: [X, E]; None where there is none; else in the same type.
        activate: (gate, up), each f32[n, F], to f32[n, F]; elementwise.
        implementation: "auto", "reference", "xla" or "triton". "auto" is triton on an NVIDIA GPU where it supports
            the types (else xla, with the reason logged once), and xla everywhere else. "triton" on a CPU runs the
            Pallas interpreter: the same arithmetic, and slow.

    Returns:
        f32[T, E]. No token is ever dropped: there is no capacity, and what a token gets does not depend on the
        others.

    Raises:
        NotImplementedError: the named implementation does not support these types; says what it does.
        ValueError: unknown implementation.
    """
    args = (x, expert_ids, weights, gate_up, down, gate_up_bias, down_bias)
    match implementation:
        case "auto":
            return _fastest(*args, activate=activate)
        case "reference":
            return reference(*args, activate=activate)
        case "xla":
            return moe_xla(*args, activate=activate)
        case "triton":
            return _triton(*args, activate=activate)
    raise ValueError(f"unknown implementation {implementation!r}; choose auto, reference, xla or triton")


def _fastest(*args: Any, activate: Any) -> jax.Array:
    if Target.current().platform != "gpu":
        return moe_xla(*args, activate=activate)
    try:
        return _triton(*args, activate=activate)
    except NotImplementedError as reason:
        _log_fallback(str(reason))
        return moe_xla(*args, activate=activate)


def _triton(*args: Any, activate: Any) -> jax.Array:
    # Imported on use: a CPU server never pays for loading Pallas.
    from .triton_moe import moe_triton

    target = Target.current()
    return moe_triton(*args, activate=activate, target=target, interpret=target.platform != "gpu")


@functools.cache
def _log_fallback(reason: str) -> None:
    logger.warning("experts run on the slower XLA path: %s", reason)


IMPLEMENTATIONS = {
    "xla": functools.partial(moe, implementation="xla"),
    "triton": functools.partial(moe, implementation="triton"),
}
