"""Matrix products. Weights lie inputs first, which XLA:CPU's thin float32 products want (1.3 to 2 times
faster at 2 to 32 rows than the checkpoint's outputs-first order); the other products do not care.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from jserve.layers.build import Build
from jserve.layers.source import InputsFirst, Source


class Linear(nnx.Module):
    """y = x W + b for a weight `[inputs, *outputs]`; the output keeps the axes of `outputs`.

    `source` gives the weight as checkpoints keep it, `[*outputs, inputs]`. `shard` is the axis that the
    tensor axis splits: 0 is row parallel (the compiler then adds the all-reduce), an output axis column
    parallel; the bias is split like the outputs.
    """

    def __init__(
        self,
        build: Build,
        source: Source,
        shape: tuple[int, ...],
        *,
        shard: int,
        bias: Source | None = None,
    ) -> None:
        self.weight = build.param(InputsFirst(source), shape, shard)
        bias_shard = shard - 1 if shard else None
        self.bias = None if bias is None else build.param(bias, shape[1:], bias_shard)
        self.precision = build.precision
        # Sums that the all-reduce completes cross the devices in the activations' type: float32 would double
        # the bytes of every all-reduce, and those of a long prefill cost as much as its products.
        self.sums = build.activations if shard == 0 and build.tensor_parallel > 1 else jnp.dtype("float32")

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [T, inputs] to [T, *outputs], in x's dtype."""
        weight = self.weight[...]
        y = jax.lax.dot_general(
            x.astype(weight.dtype),
            weight,
            (((1,), (0,)), ((), ())),
            precision=self.precision,
            preferred_element_type=self.sums,
        )
        return (y if self.bias is None else y + self.bias[...]).astype(x.dtype)


class Embedding(nnx.Module):
    """The token table `[V, E]`, split over the vocabulary; V may be padded to a multiple of the tensor axis."""

    def __init__(self, build: Build, source: Source, shape: tuple[int, int]) -> None:
        self.weight = build.param(source, shape, shard=0)
        self.build = build
        self.precision = build.precision

    def __call__(self, token_ids: jax.Array) -> jax.Array:
        """i32[T] to [T, E]."""
        return jnp.take(self.weight[...], token_ids, axis=0, mode="clip").astype(self.build.activations)

    def logits(self, x: jax.Array) -> jax.Array:
        """[S, E] to f32[S, V], with the table as the output projection; split as the table is.

        Both sides are pinned, or the compiler takes the caller's split of the rows back through all layers.
        """
        weight = self.weight[...]
        y = jax.lax.dot_general(
            self.build.split(x, None).astype(weight.dtype),
            weight,
            (((1,), (1,)), ((), ())),
            precision=self.precision,
            preferred_element_type=jnp.float32,
        )
        return self.build.split(y, 1)
