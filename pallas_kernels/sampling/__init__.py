"""Top-k and top-p as one threshold a row: one operation for the sampler's filters.

Owns the choice of an implementation and nothing else. `reference.py` is the definition, `xla.py` runs everywhere,
`triton_threshold.py` is the kernel for NVIDIA GPUs.
"""

import functools
from typing import Any

import jax

from ..paged_attention.target import Target
from .reference import reference
from .xla import kept_threshold_xla

__all__ = ["IMPLEMENTATIONS", "kept_threshold"]


def kept_threshold(mass: jax.Array, top_k: jax.Array, top_p: jax.Array, *, implementation: str = "auto") -> jax.Array:
    """The smallest mass that each row keeps after top-k, and after top-p on what top-k left.

    A token is kept where its mass is at least the threshold; equals are kept or dropped together. Top-p keeps the
    fewest of the largest whose sum is at least its share of what is there (Holtzman et al. 2020, section 3.1).

    Args:
        mass: f32[S, V], probabilities up to a factor, none negative.
        top_k: i32[S], at least 1; V or more is off.
        top_p: f32[S], above 0; 1 is off.
        implementation: "auto", "reference", "xla" or "triton". "auto" is triton on an NVIDIA GPU and xla
            everywhere else. "triton" on a CPU runs the Pallas interpreter.

    Returns:
        f32[S]; 0 where both are off.

    Raises:
        NotImplementedError: mass is not float32.
        ValueError: unknown implementation.
    """
    match implementation:
        case "auto":
            on_gpu = Target.current().platform == "gpu"
            return _triton(mass, top_k, top_p) if on_gpu else kept_threshold_xla(mass, top_k, top_p)
        case "reference":
            return reference(mass, top_k, top_p)
        case "xla":
            return kept_threshold_xla(mass, top_k, top_p)
        case "triton":
            return _triton(mass, top_k, top_p)
    raise ValueError(f"unknown implementation {implementation!r}; choose auto, reference, xla or triton")


def _triton(mass: jax.Array, top_k: jax.Array, top_p: jax.Array) -> jax.Array:
    # Imported on use: a CPU server never pays for loading Pallas.
    from .triton_threshold import kept_threshold_triton

    target = Target.current()
    return kept_threshold_triton(mass, top_k, top_p, target=target, interpret=target.platform != "gpu")


IMPLEMENTATIONS: dict[str, Any] = {
    "xla": functools.partial(kept_threshold, implementation="xla"),
    "triton": functools.partial(kept_threshold, implementation="triton"),
}
