"""Mixtures of experts: a router chooses some feed-forward blocks for each token, and their results are summed.

Every device sees all tokens and computes what its experts, or its slices of them, add; one all-reduce follows.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from jserve.batch import StepContext
from jserve.config import MixtureConfig, ModelConfig
from jserve.layers.build import EXPERT_AXIS, TENSOR_AXIS, Build
from jserve.layers.expert_source import AllExperts, EachExpert, FirstFound
from jserve.layers.mlp import ACTIVATIONS, GatedMLP, checked_activation
from jserve.layers.source import InputsFirst, Source, Tensor
from pallas_kernels.moe import PackedExperts, moe


@dataclass(frozen=True, slots=True)
class Routed:
    """Where tokens go: J experts each."""

    experts: jax.Array
    """i32[T, J]; X for tokens of padding, which is no expert."""
    weights: jax.Array
    """f32[T, J]"""


class Router(nnx.Module):
    """Scores of all experts for a token, float32."""

    def __init__(self, build: Build, config: ModelConfig, mixture: MixtureConfig, source: Source | None = None) -> None:
        size = (mixture.num_experts, config.hidden_size)
        self.weight = build.param(source or InputsFirst(Tensor("weight", size)), size[::-1])
        self.mixture, self.build = mixture, build

    def __call__(self, x: jax.Array, is_real: jax.Array) -> Routed:
        """x: [T, E]; is_real: bool[T], whether a token is not padding."""
        experts, weights = self.choose(self.logits(x))
        return Routed(jnp.where(is_real[:, None], experts, self.mixture.num_experts), weights)

    def logits(self, x: jax.Array) -> jax.Array:
        """[T, E] to f32[T, X]."""
        weight = self.weight[...]
        return jnp.dot(
            x.astype(weight.dtype), weight, precision=self.build.precision, preferred_element_type=jnp.float32
        )

    def choose(self, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        """f32[T, X] to each token's experts, i32[T, J], and their weights, f32[T, J]."""
        weights, experts = jax.lax.top_k(jax.nn.softmax(logits), self.mixture.experts_per_token)
        if self.mixture.normalize:
            weights /= weights.sum(-1, keepdims=True)
        return experts, weights


@dataclass(frozen=True, slots=True)
class ExpertSource:
    """Where a weight of all experts comes from."""

    floats: Source
    quantized: Source
    """In checkpoints whose `quantization_config` covers it: tensors `[.., outputs, inputs]` that it replaces."""


class Experts(nnx.Module):
    """down(act(gate(x)) * up(x)) of X experts, stacked: `[X, E, 2, F]` and `[X, F, E]`.

    They lie inputs first also where other weights do not: a product over one expert copies it in any case, and
    then XLA:CPU is twice as quick at 2 to 32 rows. `layers.quantized` puts `PackedExperts` in their place, which lie
    outputs first.
    """

    def __init__(
        self, build: Build, config: ModelConfig, mixture: MixtureConfig, gate_up: ExpertSource, down: ExpertSource
    ) -> None:
        count, hidden, inner = mixture.num_experts, config.hidden_size, mixture.intermediate_size
        shape = (count, hidden, 2, inner)
        self.gate_up_proj = build.stack(gate_up.floats, shape, inner=3, quantized=gate_up.quantized)
        self.down_proj = build.stack(down.floats, (count, inner, hidden), inner=1, quantized=down.quantized)
        self.count = count // build.expert_parallel
        self.activation = checked_activation(config.hidden_act)
        self.build = build

    def __call__(self, x: jax.Array, routed: Routed, partial: jax.Array | None = None) -> jax.Array:
        """x: [T, E]; partial: [devices, T, E], what each device adds to the sum over devices. [T, E] in x's dtype."""
        if self.build.tensor_parallel == 1:
            y = self._local(x, routed.experts, routed.weights, self._arrays())
            return (y if partial is None else y + partial[0]).astype(x.dtype)

        def local(
            x: jax.Array,
            experts: jax.Array,
            weights: jax.Array,
            arrays: tuple[Any, ...],
            partial: jax.Array | None,
        ) -> jax.Array:
            first = jax.lax.axis_index(EXPERT_AXIS) * self.count
            y = self._local(x, experts - first, weights, arrays)
            return jax.lax.psum((y if partial is None else y + partial[0]).astype(x.dtype), TENSOR_AXIS)

        whole = PartitionSpec()
        specs = (whole, whole, whole, self._specs(), PartitionSpec(TENSOR_AXIS))
        result: jax.Array = self.build.spread(local, specs, whole)(
            x, routed.experts, routed.weights, self._arrays(), partial
        )
        return result

    def activate(self, gate: jax.Array, up: jax.Array) -> jax.Array:
        """Between the two products, elementwise in float32."""
        return ACTIVATIONS[self.activation](gate) * up

    def _local(self, x: jax.Array, experts: jax.Array, weights: jax.Array, arrays: tuple[Any, ...]) -> jax.Array:
        return moe(x, experts, weights, *arrays, activate=self.activate)

    def _arrays(self) -> tuple[Any, ...]:
        return tuple(parameter.get_value() for parameter in self._parameters())

    def _specs(self) -> tuple[Any, ...]:
        """How devices share the arrays."""
        axes = [parameter.get_metadata()["axes"] for parameter in self._parameters()]
        return tuple(split if isinstance(split, PackedExperts) else PartitionSpec(*split) for split in axes)

    def _parameters(self) -> tuple[nnx.Param[Any], ...]:
        """In the order of `moe`'s arguments."""
        return self.gate_up_proj, self.down_proj


@dataclass(frozen=True, slots=True)
class ExpertNames:
    """How a family's checkpoints name a mixture that keeps one tensor for each product of each expert."""

    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    folder: str = "mlp"
    router: str = "gate"
    all_gate_up: str = "gate_up_proj"
    """Where one tensor holds gate and up of all experts, relative to `experts`; `all_down` likewise."""
    all_down: str = "down_proj"
    shared: str = "shared_expert"


class MixtureOfExperts(nnx.Module):
    """Router and experts, and where the family has one the expert that every token goes through.

    Named `mlp`. Of the shared expert Qwen2 adds a share, which a gate of its own gives each token.
    """

    def __init__(
        self, build: Build, config: ModelConfig, names: ExpertNames = ExpertNames(), *, shared_gate: bool = False
    ) -> None:
        mixture = config.mixture
        assert mixture is not None
        count, hidden, inner = mixture.num_experts, config.hidden_size, mixture.intermediate_size
        prefix = f"../../{names.folder}."
        ways = (f"{prefix}{names.router}.weight", "weight")
        router = FirstFound(tuple(InputsFirst(Tensor(name, (count, hidden))) for name in ways))
        self.gate = self.make_router(build, config, mixture, router)
        pair, folder = (f"{names.gate}.weight", f"{names.up}.weight"), f"{prefix}experts."
        each = EachExpert(count, pair, (inner, hidden), folder)
        each_down = EachExpert(count, (f"{names.down}.weight",), (hidden, inner), folder)
        self.experts = Experts(
            build,
            config,
            mixture,
            ExpertSource(FirstFound((each, AllExperts(names.all_gate_up, count, inner, hidden, parts=2))), each),
            ExpertSource(FirstFound((each_down, AllExperts(names.all_down, count, hidden, inner))), each_down),
        )
        size, self.shared = mixture.shared_intermediate_size, names.shared
        shared = self.make_shared(build, replace(config, intermediate_size=size)) if size else None
        setattr(self, names.shared, shared)
        self.shared_expert_gate = (
            build.param(InputsFirst(Tensor("shared_expert_gate.weight", (1, hidden))), (hidden, 1))
            if shared_gate
            else None
        )

    def make_router(self, build: Build, config: ModelConfig, mixture: MixtureConfig, source: Source) -> Router:
        """What chooses; `source` is its weight's. Related families differ here."""
        return Router(build, config, mixture, source)

    def make_shared(self, build: Build, config: ModelConfig) -> GatedMLP:
        """The expert that every token goes through, of `config.intermediate_size`. Related families differ here."""
        return GatedMLP(build, config)

    def __call__(self, x: jax.Array, context: StepContext) -> jax.Array:
        """[T, E] to [T, E]. Padding is sent to no expert."""
        return self.experts(x, self.gate(x, context.is_real), self._shared(x))

    def _shared(self, x: jax.Array) -> jax.Array | None:
        """What each device adds of the shared expert, [devices, T, E]."""
        shared: GatedMLP | None = getattr(self, self.shared)
        if shared is None:
            return None
        partial = shared.partials(x)
        if self.shared_expert_gate is None:
            return partial
        weight = self.shared_expert_gate[...].astype(jnp.float32)
        share = jnp.dot(x.astype(jnp.float32), weight, precision=jax.lax.Precision.HIGHEST)
        return jax.nn.sigmoid(share) * partial
