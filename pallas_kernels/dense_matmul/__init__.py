"""Products with float weights on a CPU, one operation for a row or for hundreds; float32 throughout.

`reference.py` is the definition and, as "xla", runs everywhere; `native_code.py` is code for the CPU of this machine.
GPUs have no use for it: XLA's own products are as fast as the device there.
"""

import functools

import jax
import jax.ffi
import jax.numpy as jnp

from ..native.library import require, target_name
from .reference import reference

__all__ = ["IMPLEMENTATIONS", "KERNEL", "dense_matmul", "is_supported"]

KERNEL = "dense_matmul"
MULTIPLE = 16
"""What the number of inputs of the native kernel must be a multiple of."""


def is_supported(inputs: int) -> bool:
    """Whether the native kernel takes weights of so many inputs."""
    return inputs % MULTIPLE == 0


def dense_matmul(x: jax.Array, weight: jax.Array, *, implementation: str = "xla") -> jax.Array:
    """x times a weight that lies outputs first; each row is summed in the same order, whatever the others are.

    Args:
        x: f32[T, K].
        weight: f32[N, K], or the bits of bfloat16 in u16[N, K].
        implementation: "xla", or "native", which wants Numba, or code that was compiled before.

    Returns:
        f32[T, N].

    Raises:
        NotImplementedError: "native" does not take this K, or the device is not a CPU.
        RuntimeError: "native" could not be loaded.
        ValueError: unknown implementation.
    """
    match implementation:
        case "xla":
            return reference(x, weight)
        case "native":
            return _native(x, weight)
    raise ValueError(f"unknown implementation {implementation!r}; choose xla or native")


def _native(x: jax.Array, weight: jax.Array) -> jax.Array:
    kind = weight.dtype.name
    if not is_supported(x.shape[1]):
        raise NotImplementedError(f"native products want inputs that {MULTIPLE} divides, not {x.shape[1]}")
    require(KERNEL, kind)
    form = jax.ShapeDtypeStruct((x.shape[0], weight.shape[0]), jnp.float32)
    product: jax.Array = jax.ffi.ffi_call(target_name(KERNEL, kind), form)(x, weight)
    return product


IMPLEMENTATIONS = {
    "xla": functools.partial(dense_matmul, implementation="xla"),
    "native": functools.partial(dense_matmul, implementation="native"),
}
