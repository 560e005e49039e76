"""Feed-forward blocks."""

from collections.abc import Callable
from functools import partial

import jax
from flax import nnx

from jserve.config import ModelConfig
from jserve.errors import CheckpointError
from jserve.layers.build import Build
from jserve.layers.linear import Linear
from jserve.layers.source import Stacked, Tensor

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}


class GatedMLP(nnx.Module):
    """down(act(gate(x)) * up(x)); gate and up are one product."""

    def __init__(self, build: Build, config: ModelConfig) -> None:
        hidden, inner = config.hidden_size, config.intermediate_size
        if config.hidden_act not in ACTIVATIONS:
            raise CheckpointError(
                f"hidden_act {config.hidden_act!r} is not supported; supported are {', '.join(ACTIVATIONS)}"
            )
        pair = ("../gate_proj", "../up_proj")
        self.gate_up_proj = Linear(
            build,
            Stacked(tuple(f"{name}.weight" for name in pair), (inner, hidden)),
            (hidden, 2, inner),
            shard=2,
            bias=Stacked(tuple(f"{name}.bias" for name in pair), (inner,)) if config.mlp_bias else None,
        )
        self.down_proj = Linear(
            build,
            Tensor("weight", (hidden, inner)),
            (inner, hidden),
            shard=0,
            bias=Tensor("bias", (hidden,)) if config.mlp_bias else None,
        )
        self.activation = config.hidden_act

    def __call__(self, x: jax.Array) -> jax.Array:
        """[T, E] to [T, E]."""
        gate_up = self.gate_up_proj(x)
        return self.down_proj(ACTIVATIONS[self.activation](gate_up[:, 0]) * gate_up[:, 1])
