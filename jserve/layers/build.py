"""What every layer is told when it is built: dtype, mesh, and which implementations to use."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jserve.layers.source import Source

TENSOR_AXIS = "tp"


@dataclass(frozen=True, slots=True)
class Build:
    """Passed to the constructor of every module; hashable, so it may stay in a module as static data."""

    dtype: jnp.dtype
    """Of weights, and of both sides of every product; sums are float32."""
    activations: jnp.dtype
    """Between products."""
    mesh: jax.sharding.Mesh
    """Has the axis "tp"."""
    attention: str = "auto"
    """Implementation of `pallas_kernels.paged_attention`."""
    thin: bool = False
    """Steps of a few tokens have a model of their own: see `bits`. On one CPU device, where it is exact."""
    bits: bool = False
    """Matrices are the bits of bfloat16 in uint16, which `layers.thin` multiplies."""

    @property
    def tensor_parallel(self) -> int:
        """Devices along the tensor axis."""
        return int(self.mesh.shape[TENSOR_AXIS])

    @property
    def outputs_first(self) -> bool:
        """Whether weights lie as in checkpoints, [*outputs, inputs]; both models then share one array."""
        return self.bits or (self.thin and self.dtype == jnp.bfloat16)

    @property
    def kv_dtype(self) -> jnp.dtype:
        """Of the KV cache: the activations', but bits of bfloat16 where a bfloat16 model has float32 activations."""
        widened = self.dtype == jnp.bfloat16 and self.activations == jnp.float32
        return jnp.dtype("uint16") if widened else self.activations

    @property
    def precision(self) -> jax.lax.Precision:
        """Of matrix products: float32 models are computed in float32, never in TF32."""
        return jax.lax.Precision.HIGHEST if self.dtype == jnp.float32 else jax.lax.Precision.DEFAULT

    def spread(self, function: Callable[..., Any], inputs: Any, outputs: Any) -> Callable[..., Any]:
        """`function` run by each device on its own shares, as the partition specs cut them; left to itself the
        compiler gathers a whole table for one token, and splits by rows what one caller wants by rows.
        """
        return jax.shard_map(function, mesh=self.mesh, in_specs=inputs, out_specs=outputs, check_vma=False)

    def param(self, source: Source, shape: tuple[int, ...], shard: int | None = None) -> nnx.Param[jax.Array]:
        """A parameter that is filled later from `source`, split over the tensor axis along axis `shard`."""
        axes = tuple(TENSOR_AXIS if axis == shard else None for axis in range(len(shape)))
        return nnx.Param(jnp.zeros(shape, self.dtype), axes=axes, source=source)

    def matrix(self, source: Source, shape: tuple[int, ...], shard: int) -> nnx.Param[jax.Array]:
        """A parameter for products, of at least two axes."""
        return (replace(self, dtype=jnp.dtype("uint16")) if self.bits else self).param(source, shape, shard)
