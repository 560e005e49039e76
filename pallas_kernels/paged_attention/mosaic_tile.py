"""What both Mosaic kernels do with a page of values."""

import importlib
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from .triton_tile import Ref

plgpu: Any = importlib.import_module("jax.experimental.pallas.mosaic_gpu")  # its names differ from JAX to JAX

__all__ = ["add_product"]


def add_product(o: jax.Array, weights: jax.Array, values: Ref, held: Ref | None) -> jax.Array:
    """o f32[R, D] + weights [R, B] times a page of values [B, D].

    `held` is shared memory for the weights of each warpgroup, where the kernel is interpreted: the interpreter has no
    products with an operand in registers, and none that go on.
    """
    if held is not None:
        own = held.at[lax.axis_index("group")]
        own[...] = weights
        plgpu.commit_smem()

        def product(sums: Ref) -> jax.Array:
            plgpu.wgmma(sums, own, values)
            return sums[...]

        return o + pl.run_scoped(product, plgpu.ACC(o.shape, jnp.float32))

    def add(sums: Ref) -> None:
        plgpu.wgmma(sums, weights, values)

    summed: jax.Array = pl.run_state(add)(plgpu.ACC.init(o))
    return summed
