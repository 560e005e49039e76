"""What a pooled vector goes through: sentence-transformers' Dense modules, or the head of a classifier."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from jserve.config import DenseConfig
from jserve.layers import mlp
from jserve.layers.build import Build
from jserve.layers.norm import over_rms
from jserve.layers.source import Tensor

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    **mlp.ACTIVATIONS,
    "identity": lambda x: x,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
}
"""By the names of `DenseConfig.activation`."""
_CLIMB = "../../"
"""From a `Dense` in the model's list of them to the checkpoint's top."""


class Dense(nnx.Module):
    """act(W x + b), and a LayerNorm where the family has one. In float32, and whole on every device: it is small."""

    def __init__(self, build: Build, config: DenseConfig) -> None:
        weight, bias = (config.outputs, config.inputs), (config.outputs,)
        self.weight = build.param(Tensor(f"{_CLIMB}{config.name}.weight", weight), weight)
        self.bias = build.param(Tensor(f"{_CLIMB}{config.name}.bias", bias), bias) if config.bias else None
        self.norm = build.param(Tensor(f"{_CLIMB}{config.norm}.weight", bias), bias) if config.norm else None
        self.config = config

    def __call__(self, x: jax.Array) -> jax.Array:
        """f32[S, inputs] to f32[S, outputs]."""
        y = jnp.matmul(x, self.weight[...].astype(jnp.float32).T, precision=jax.lax.Precision.HIGHEST)
        y = ACTIVATIONS[self.config.activation](y if self.bias is None else y + self.bias[...].astype(jnp.float32))
        if self.norm is None:
            return y
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        return over_rms(y, self.config.norm_eps) * self.norm[...].astype(jnp.float32)


def after_pooling(layers: Sequence[Dense], x: jax.Array) -> jax.Array:
    """f32[S, E] of pooled texts through all of `layers`, in their order."""
    for layer in layers:
        x = layer(x)
    return x
