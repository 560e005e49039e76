"""What every layer is built with: dtype, mesh, and which implementations to use."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jserve.layers.source import Source

EXPERT_AXIS, INNER_AXIS = "expert", "tp"
TENSOR_AXIS = (EXPERT_AXIS, INNER_AXIS)
"""What most weights are split over: all devices. Experts are dealt out over the first of the two, and each
expert's inner size is split over the second.
"""


def mesh_over(devices: Sequence[Any], expert_parallel: int = 1) -> jax.sharding.Mesh:
    """The mesh of an engine; `expert_parallel` divides the number of devices."""
    return jax.sharding.Mesh(np.array(devices).reshape(expert_parallel, -1), TENSOR_AXIS)


@dataclass(frozen=True, slots=True)
class Build:
    """Passed to the constructor of every module; hashable, so it may stay in a module as static data."""

    dtype: jnp.dtype
    """The type of weights, and of both sides of every product; sums are float32."""
    activations: jnp.dtype
    """Between products."""
    mesh: jax.sharding.Mesh
    """Made by `mesh_over`."""
    attention: str = "auto"
    """Implementation of `pallas_kernels.paged_attention`."""
    kv_cache: str = "auto"
    """One of `config.KV_CACHE_DTYPES`."""
    products: str = "xla"
    """Implementation of `pallas_kernels.dense_matmul`, which multiplies float32 matrices and `bits`."""
    packed: str = "xla"
    """Implementation of `pallas_kernels.packed_matmul`, which multiplies weights in the bits of a GGUF file; "native"
    multiplies all weights in integers of 4 and 8 bits.
    """
    gguf_activations: str = "float"
    """What is multiplied with weights in the bits of a GGUF file: activations as they are, or rounded to "int8"."""
    small_batch: bool = False
    """Steps of a few tokens have a model of their own: see `bf16_as_uint16`. On one CPU device, where it is exact."""
    bf16_as_uint16: bool = False
    """Matrices are the bits of bfloat16 in uint16, multiplied as float32."""

    @property
    def tensor_parallel(self) -> int:
        """Devices that share each layer."""
        return int(self.mesh.size)

    @property
    def expert_parallel(self) -> int:
        """Parts of these that experts are dealt out over; the devices of a part share each of its experts."""
        return int(self.mesh.shape[EXPERT_AXIS])

    @property
    def outputs_first(self) -> bool:
        """Whether weights lie as in checkpoints, [*outputs, inputs]; both models then share one array."""
        return self.bf16_as_uint16 or self.products == "native" or (self.small_batch and self.dtype == jnp.bfloat16)

    @property
    def small_batch_tokens(self) -> int:
        """Tokens of the largest step of the small-batch model; XLA's bfloat16 products are as quick in larger ones."""
        return (8 if self.products == "native" else 2) if self.small_batch else 0

    @property
    def kv_dtype(self) -> jnp.dtype:
        """The type of a KV cache in floating point: the activations', but bits of bfloat16 where a bfloat16 model has
        float32 activations.
        """
        widened = self.dtype == jnp.bfloat16 and self.activations == jnp.float32
        return jnp.dtype("uint16") if widened else self.activations

    @property
    def precision(self) -> jax.lax.Precision:
        """The precision of matrix products: float32 models are computed in float32, never in TF32."""
        return jax.lax.Precision.HIGHEST if self.dtype == jnp.float32 else jax.lax.Precision.DEFAULT

    @property
    def rounded_sums(self) -> jnp.dtype:
        """The type in which a product leaves its float32 sums where the next thing is to round them.

        On a GPU that of activations: a library writes half the bytes then, and no pass follows that only rounds. On a
        CPU float32, as a 16-bit result is slow there.
        """
        on_cpu = self.mesh.devices.flat[0].platform == "cpu"
        return jnp.dtype("float32") if on_cpu else self.activations

    def spread(self, function: Callable[..., Any], inputs: Any, outputs: Any) -> Callable[..., Any]:
        """`function` run by each device on its own shares, as the partition specs cut them; left to itself the
        compiler gathers a whole table for one token, and splits by rows what one caller wants by rows.
        """
        return jax.shard_map(function, mesh=self.mesh, in_specs=inputs, out_specs=outputs, check_vma=False)

    def param(self, source: Source, shape: tuple[int, ...], shard: int | None = None) -> nnx.Param[jax.Array]:
        """A parameter that is filled later from `source`, split over the tensor axis along axis `shard`."""
        return self._split(source, shape, {} if shard is None else {shard: TENSOR_AXIS})

    def stack(
        self, source: Source, shape: tuple[int, ...], inner: int | None = None, quantized: Source | None = None
    ) -> nnx.Param[jax.Array]:
        """A parameter of all experts, whose first axis they are; axis `inner` is each expert's inner size.

        Of bfloat16 the bits in uint16 on a CPU: see `pallas_kernels.moe`. `quantized` is where quantized checkpoints
        keep it.
        """
        on_cpu = self.mesh.devices.flat[0].platform == "cpu"
        build = replace(self, dtype=jnp.dtype("uint16")) if on_cpu and self.dtype == jnp.bfloat16 else self
        over: dict[int, Any] = {0: EXPERT_AXIS} | ({} if inner is None else {inner: INNER_AXIS})
        return build._split(source, shape, over, quantized=quantized)

    def _split(
        self, source: Source, shape: tuple[int, ...], over: dict[int, Any], **metadata: Any
    ) -> nnx.Param[jax.Array]:
        axes = tuple(over.get(axis) for axis in range(len(shape)))
        return nnx.Param(jnp.zeros(shape, self.dtype), axes=axes, source=source, **metadata)

    def matrix(self, source: Source, shape: tuple[int, ...], shard: int | None) -> nnx.Param[jax.Array]:
        """A parameter for products, of at least two axes."""
        return (replace(self, dtype=jnp.dtype("uint16")) if self.bf16_as_uint16 else self).param(source, shape, shard)
