"""Products with weights of 2 to 8 bits that decode bit for bit to the numbers of their file.

`weight.py` is the layout, `reference.py` the definition, `xla.py` runs everywhere, `native_code.py` is code for the CPU
of this machine. There is no kernel for GPUs yet: there XLA writes a weight out before it multiplies.
"""

import functools
import importlib.util

import jax
import jax.ffi
import jax.numpy as jnp

from ..native.library import require, target_name
from .reference import dequantize, dequantize_rows, reference
from .weight import ACTIVATIONS, CODINGS, STEP, TILE, Coding, PackedWeight
from .xla import packed_matmul_xla

__all__ = [
    "ACTIVATIONS",
    "CODINGS",
    "IMPLEMENTATIONS",
    "KERNEL",
    "STEP",
    "TILE",
    "Coding",
    "PackedWeight",
    "dequantize",
    "dequantize_rows",
    "has_native_code",
    "kind_of",
    "packed_matmul",
    "reference",
]

KERNEL = "packed_matmul"


def packed_matmul(
    x: jax.Array, weight: PackedWeight, *, activations: str = "float", implementation: str = "xla"
) -> jax.Array:
    """x times the transpose of the weight that `dequantize` gives; each row is summed by itself in a fixed order.

    Args:
        x: [T, K], float32, bfloat16 or float16.
        weight: of N outputs and K inputs.
        activations: "float" multiplies x as it is; "int8" rounds each ROUNDED_INPUTS neighbours of a row to 255 values
            about zero first, which CPUs multiply several times faster.
        implementation: "xla", or "native", which wants Numba, or code that was compiled before, and AVX2.

    Returns:
        f32[T, N].

    Raises:
        NotImplementedError: "native", and the device is not a CPU.
        RuntimeError: "native" could not be loaded.
        ValueError: unknown activations or implementation.
    """
    if activations not in ACTIVATIONS:
        raise ValueError(f"unknown activations {activations!r}; choose {', '.join(ACTIVATIONS)}")
    match implementation:
        case "xla":
            return packed_matmul_xla(x, weight, activations=activations)
        case "native":
            return _native(x, weight, activations)
    raise ValueError(f"unknown implementation {implementation!r}; choose xla or native")


@functools.cache
def has_native_code() -> bool:
    """Whether native code can be made for this CPU: Numba is there, and instructions that multiply bytes."""
    if importlib.util.find_spec("numba") is None:
        return False
    import llvmlite.binding as llvm

    return bool(llvm.get_host_cpu_features().get("avx2"))


def kind_of(weight: PackedWeight, activations: str) -> str:
    """The native kernel's kind for such a product."""
    return f"{weight.coding}_{'minimum_' if weight.has_minimum else ''}{activations}"


def _native(x: jax.Array, weight: PackedWeight, activations: str) -> jax.Array:
    if not has_native_code():
        raise NotImplementedError("native products with packed weights want Numba and a CPU with AVX2")
    kind = kind_of(weight, activations)
    require(KERNEL, kind)
    tiles = weight.codes.shape[0]
    arrays = {
        "high": jnp.zeros((tiles, 0, TILE, 4), jnp.uint8),
        "scale_codes": jnp.zeros((tiles, 0, TILE), jnp.int8),
        "minimum": jnp.zeros((tiles, 0, TILE), weight.scale.dtype),
        "minimum_codes": jnp.zeros((tiles, 0, TILE), jnp.int8),
        **weight.arrays(),
    }
    names = ("codes", "high", "scale", "scale_codes", "minimum", "minimum_codes")
    form = jax.ShapeDtypeStruct((x.shape[0], weight.outputs), jnp.float32)
    call = jax.ffi.ffi_call(target_name(KERNEL, kind), form)
    product: jax.Array = call(x.astype(jnp.float32), *(arrays[name] for name in names))
    return product


IMPLEMENTATIONS = {
    "xla": functools.partial(packed_matmul, implementation="xla"),
    "native": functools.partial(packed_matmul, implementation="native"),
}
