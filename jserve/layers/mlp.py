"""Feed-forward blocks."""

from collections.abc import Callable
from functools import partial

import jax
from flax import nnx

from jserve.batch import StepContext, TextContext
from jserve.config import ModelConfig
from jserve.errors import CheckpointError
from jserve.layers.build import Build
from jserve.layers.fused_source import Fused, Transposed
from jserve.layers.linear import Linear
from jserve.layers.source import Source, Stacked, Tensor

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "relu2": lambda x: jax.nn.relu(x) ** 2,
}


class GatedMLP(nnx.Module):
    """down(act(gate(x)) * up(x)); gate and up are one product.

    `names` are the checkpoint's for gate, up and down. `fused` names its one tensor of gate and up, where it has no
    such two; with `gate_last` up comes first in it. `down_bias` where that product alone has one.
    """

    def __init__(
        self,
        build: Build,
        config: ModelConfig,
        *,
        names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
        fused: str | None = None,
        gate_last: bool = False,
        down_bias: bool = False,
    ) -> None:
        hidden, inner = config.hidden_size, config.intermediate_size
        self.activation = checked_activation(config.hidden_act)
        gate, up, down = names
        self.gate_last = gate_last

        def both(suffix: str, shape: tuple[int, ...]) -> Source:
            stacked = Stacked(tuple(f"../{name}.{suffix}" for name in (gate, up)), shape)
            return stacked if fused is None else Fused(stacked, f"../{fused}.{suffix}")

        self.gate_up_proj = Linear(
            build,
            both("weight", (inner, hidden)),
            (hidden, 2, inner),
            shard=2,
            bias=both("bias", (inner,)) if config.mlp_bias else None,
        )
        self.down_proj = Linear(
            build,
            Tensor(f"../{down}.weight", (hidden, inner)),
            (inner, hidden),
            shard=0,
            bias=Tensor(f"../{down}.bias", (hidden,)) if config.mlp_bias or down_bias else None,
        )

    def __call__(self, x: jax.Array, context: StepContext | TextContext) -> jax.Array:
        """[T, E] to [T, E]."""
        del context  # every token is treated alike
        return self.down_proj(self._inner(x))

    def partials(self, x: jax.Array) -> jax.Array:
        """[T, E] to [devices, T, E]: what each device adds to the result."""
        return self.down_proj.partials(self._inner(x))

    def _inner(self, x: jax.Array) -> jax.Array:
        gate_up = self.gate_up_proj(x)
        gate, up = (gate_up[:, 1], gate_up[:, 0]) if self.gate_last else (gate_up[:, 0], gate_up[:, 1])
        return ACTIVATIONS[self.activation](gate) * up


class MLP(nnx.Module):
    """down(act(up(x))), with biases where the family has them; `names` are the checkpoint's for up and down."""

    def __init__(
        self, build: Build, config: ModelConfig, *, names: tuple[str, str], bias: bool, inputs_first: bool = False
    ) -> None:
        hidden, inner = config.hidden_size, config.intermediate_size
        self.activation = self.read_activation(config)
        up, down = names

        def weight(name: str, shape: tuple[int, int]) -> Source:
            source = Tensor(f"../{name}.weight", shape)
            return Transposed(source) if inputs_first else source

        self.up = Linear(
            build,
            weight(up, (inner, hidden)),
            (hidden, inner),
            shard=1,
            bias=Tensor(f"../{up}.bias", (inner,)) if bias else None,
        )
        self.down = Linear(
            build,
            weight(down, (hidden, inner)),
            (inner, hidden),
            shard=0,
            bias=Tensor(f"../{down}.bias", (hidden,)) if bias else None,
        )

    def __call__(self, x: jax.Array, context: StepContext | TextContext) -> jax.Array:
        """[T, E] to [T, E]."""
        del context
        return self.down(self.activate(self.up(x)))

    def read_activation(self, config: ModelConfig) -> str:
        """The name of the activation. Raises CheckpointError where it is not known; related families differ here."""
        return checked_activation(config.hidden_act)

    def activate(self, x: jax.Array) -> jax.Array:
        """And here."""
        return ACTIVATIONS[self.activation](x)


def checked_activation(name: str) -> str:
    """`name` as it is. Raises CheckpointError where ACTIVATIONS lacks it."""
    if name not in ACTIVATIONS:
        raise CheckpointError(f"hidden_act {name!r} is not supported; supported are {', '.join(ACTIVATIONS)}")
    return name
