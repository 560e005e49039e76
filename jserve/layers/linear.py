"""Matrix products. Weights lie inputs first, which XLA:CPU's thin float32 products want (1.3 to 2 times
faster at 2 to 32 rows than the checkpoint's outputs-first order); bfloat16 products do not care, and lie
outputs first where `layers.small_batch` reads them too.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from jserve.layers import small_batch
from jserve.layers.build import TENSOR_AXIS, Build
from jserve.layers.source import InputsFirst, Source
from jserve.quant import PackedMatrix, QuantizedWeight
from pallas_kernels.dense_matmul import dense_matmul, is_supported


class Linear(nnx.Module):
    """y = x W + b for a weight `[inputs, *outputs]`; the output keeps the axes of `outputs`.

    `source` gives the weight as checkpoints keep it, `[*outputs, inputs]`. `shard` is the axis that the
    tensor axis splits: 0 is row parallel (each device's products are then summed over all), an output axis
    column parallel, None neither: every device has it all. The bias is split like the outputs.
    """

    def __init__(
        self,
        build: Build,
        source: Source,
        shape: tuple[int, ...],
        *,
        shard: int | None,
        bias: Source | None = None,
    ) -> None:
        if build.outputs_first:
            moved = None if shard is None else (shard - 1) % len(shape)
            self.weight = build.matrix(source, (*shape[1:], shape[0]), moved)
        else:
            self.weight = build.matrix(InputsFirst(source), shape, shard)
        bias_shard = shard - 1 if shard else None
        self.bias = None if bias is None else build.param(bias, shape[1:], bias_shard)
        self.build = build
        self.apart: tuple[str, ...] = ()
        """Attributes that hold the parts of the weight, in place of `weight`, where their types differ."""
        self.apart_axis = 0
        """The axis of outputs along which these parts follow one another."""
        self.sums_over_devices = shard == 0 and build.tensor_parallel > 1

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [T, inputs] to [T, *outputs], in x's dtype."""
        weight = None if self.apart else self.weight.get_value()
        if weight is None:
            parts = [getattr(self, name).get_value().matmul(x) for name in self.apart]
            y = jnp.concatenate(parts, axis=self.apart_axis + 1)
        elif isinstance(weight, PackedMatrix):
            y = weight.matmul(x)
        elif isinstance(weight, QuantizedWeight):
            y = self._times_quantized(x, weight)
        elif self.sums_over_devices:
            split, whole = PartitionSpec(None, TENSOR_AXIS), PartitionSpec()
            y = self.build.spread(self._sum_over_devices, (split, PartitionSpec(TENSOR_AXIS)), whole)(x, weight)
        else:
            inputs = weight.ndim - 1 if self.build.outputs_first else 0
            y = _product(self.build, x, weight, inputs, rounds=self.bias is None)
        return (y if self.bias is None else y + self.bias[...]).astype(x.dtype)

    def _times_quantized(self, x: jax.Array, weight: QuantizedWeight) -> jax.Array:
        if self.build.tensor_parallel == 1:
            return weight.matmul(x)
        parts: Any = self.weight.get_metadata()["axes"]
        *outputs, inputs = tuple(parts.values)
        product: Callable[..., jax.Array] = self._sum_quantized if inputs else lambda x, weight: weight.matmul(x)
        spread = self.build.spread(product, (PartitionSpec(None, inputs), parts), PartitionSpec(None, *outputs))
        result: jax.Array = spread(x, weight)
        return result

    def _sum_quantized(self, x: jax.Array, weight: QuantizedWeight) -> jax.Array:
        return jax.lax.psum(weight.matmul(x).astype(x.dtype), TENSOR_AXIS)

    def partials(self, x: jax.Array) -> jax.Array:
        """Row parallel and without a bias: [T, inputs] to [devices, T, *outputs], what each device adds to the sum.

        For those who add something of their own before they sum over the devices.
        """
        if not self.sums_over_devices:
            return self(x)[None]

        weight = self.weight.get_value()
        is_quantized = isinstance(weight, QuantizedWeight)

        def local(x: jax.Array, weight: Any) -> jax.Array:
            return (weight.matmul(x) if is_quantized else _product(self.build, x, weight, 0))[None]

        split, rows = PartitionSpec(None, TENSOR_AXIS), PartitionSpec(TENSOR_AXIS)
        parts = self.weight.get_metadata()["axes"] if is_quantized else rows
        result: jax.Array = self.build.spread(local, (split, parts), rows)(x, weight)
        return result

    def _sum_over_devices(self, x: jax.Array, weight: jax.Array) -> jax.Array:
        # What crosses is in x's dtype: in float32 an all-reduce has twice the bytes, and those of a long
        # prefill then cost as much as its products. Within a device sums stay float32.
        return jax.lax.psum(_product(self.build, x, weight, 0, rounds=True).astype(x.dtype), TENSOR_AXIS)


class Embedding(nnx.Module):
    """The token table `[V, E]`, split over the vocabulary; V may be padded to a multiple of the tensor axis.

    `bias`, `[V]`, is added to logits.
    """

    def __init__(self, build: Build, source: Source, shape: tuple[int, int], bias: Source | None = None) -> None:
        self.weight = build.matrix(source, shape, shard=0)
        self.bias = None if bias is None else build.param(bias, shape[:1], 0)
        self.build = build

    def __call__(self, token_ids: jax.Array) -> jax.Array:
        """i32[T] to [T, E]."""
        weight = self.weight.get_value()
        if isinstance(weight, PackedMatrix):
            return weight.rows(token_ids).astype(self.build.activations)
        if self.build.tensor_parallel == 1:
            return self._take(weight, token_ids)
        rows, whole = PartitionSpec(TENSOR_AXIS), PartitionSpec()
        result: jax.Array = self.build.spread(self._take_share, (rows, whole), whole)(weight, token_ids)
        return result

    def logits(self, x: jax.Array) -> jax.Array:
        """[S, E] to f32[S, V], with the table as the output projection; split over V as the table is."""
        weight = self.weight.get_value()
        if isinstance(weight, PackedMatrix):
            logits = weight.matmul(x)
        else:
            product: Callable[..., jax.Array] = partial(_product, self.build, inputs=1)
            if self.build.tensor_parallel > 1:
                whole, columns = PartitionSpec(), PartitionSpec(None, TENSOR_AXIS)
                product = self.build.spread(product, (whole, PartitionSpec(TENSOR_AXIS)), columns)
            logits = product(x, weight)
        return logits if self.bias is None else logits + self.bias[...].astype(logits.dtype)

    def _take(self, table: jax.Array, token_ids: jax.Array) -> jax.Array:
        rows = jnp.take(table, token_ids, axis=0, mode="clip")
        return (small_batch.as_float32(rows) if self.build.bf16_as_uint16 else rows).astype(self.build.activations)

    def _take_share(self, table: jax.Array, token_ids: jax.Array) -> jax.Array:
        """The device that has a token's row gives it, the others give zeros."""
        row = token_ids - jax.lax.axis_index(TENSOR_AXIS) * table.shape[0]
        mine = (row >= 0) & (row < table.shape[0])
        return jax.lax.psum(jnp.where(mine[:, None], self._take(table, row), 0), TENSOR_AXIS)


def _product(build: Build, x: jax.Array, weight: jax.Array, inputs: int, *, rounds: bool = False) -> jax.Array:
    """x times a weight over the weight's axis `inputs`, both sides in the weight's dtype; float32, or where the
    caller `rounds` it to x's dtype at once, perhaps that.
    """
    outputs = weight.shape[:-1]
    if build.bf16_as_uint16 and build.dtype == jnp.bfloat16:
        # Not a conversion to bfloat16 and back, which the compiler may take for none.
        x = jax.lax.reduce_precision(x, 8, 7)
    is_native = build.products == "native" and (build.bf16_as_uint16 or build.dtype == jnp.float32)
    if is_native and is_supported(x.shape[1]):
        y = dense_matmul(x, weight.reshape(-1, weight.shape[-1]), implementation="native")
        return y.reshape(-1, *outputs)
    if build.bf16_as_uint16:
        return small_batch.product(x, weight)
    if inputs:
        # One axis of outputs: XLA:CPU writes a 16-bit weight out as float32 to bring several in order.
        weight, inputs = weight.reshape(-1, weight.shape[-1]), 1
    y = jax.lax.dot_general(
        x.astype(weight.dtype),
        weight,
        (((1,), (inputs,)), ((), ())),
        precision=build.precision,
        preferred_element_type=build.rounded_sums if rounds else jnp.float32,
    )
    return y.reshape(-1, *outputs) if inputs else y
