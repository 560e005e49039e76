"""Puts quantized weights where an abstract model has float ones. Families and layers know nothing of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flax import nnx

from jserve.errors import CheckpointError
from jserve.layers.expert_source import FirstFound, OutputsFirst
from jserve.layers.latent_attention import LatentHeads
from jserve.layers.linear import Linear
from jserve.layers.moe import Experts
from jserve.layers.source import InputsFirst, Source, absolute_name, spellings
from jserve.quant import (
    OfExperts,
    OnLoad,
    Quantization,
    Scheme,
    abstract_experts,
    abstract_weight,
    expert_shardings,
    fit_devices,
    shardings,
)


@dataclass(frozen=True, slots=True)
class WeightPlan:
    """How the weights of a model are quantized. Hashable."""

    quantization: Quantization
    floats: frozenset[str] = frozenset()
    """Modules that the checkpoint has in floating point, whatever its configuration says."""

    @classmethod
    def of(cls, quantization: Quantization | None, tensors: Mapping[str, Any]) -> "WeightPlan | None":
        """`tensors` are those of the checkpoint, by name; empty where only its configuration is known."""
        if quantization is None or isinstance(quantization, OnLoad):
            return None if quantization is None else cls(quantization)
        wide = ("float16", "bfloat16", "float32", "float64")
        names = (".weight", ".experts.gate_up_proj", ".experts.down_proj")
        floats = [name for name, info in tensors.items() if name.endswith(names) and info.dtype in wide]
        return cls(quantization, frozenset(name.removesuffix(".weight") for name in floats))

    def scheme(self, modules: tuple[str, ...]) -> Scheme | None:
        """How the weight that is fused from these modules is quantized.

        Raises CheckpointError where they are quantized in different ways.
        """
        schemes = {module: self._scheme(module) for module in modules}
        kinds = set(schemes.values())
        if len(kinds) > 1:
            listed = "; ".join(f"{module}: {scheme or 'not quantized'}" for module, scheme in schemes.items())
            raise CheckpointError(
                f"projections of one input are served as one product and must be quantized alike, but are not: {listed}"
            )
        return kinds.pop()

    def _scheme(self, module: str) -> Scheme | None:
        if not self.floats.isdisjoint(spellings(module)):
            return None
        return self.quantization.scheme(module)


def quantize(model: nnx.Module, plan: WeightPlan) -> None:
    """Replace the weights of an abstract model's linear layers and experts by quantized ones, as the plan says."""
    for path, module in list(nnx.iter_modules(model)):
        if isinstance(module, Linear):
            _quantize(module, tuple(map(str, path)), plan)
        elif isinstance(module, LatentHeads) and not isinstance(plan.quantization, OnLoad):
            module.key, module.value = (_read_quantized(part, path, plan) for part in (module.key, module.value))
        elif isinstance(module, Experts):
            for name in ("gate_up_proj", "down_proj"):
                _quantize_experts(module, name, tuple(map(str, path)), plan)


def _read_quantized(part: nnx.Param[Any], path: tuple[Any, ...], plan: WeightPlan) -> nnx.Param[Any]:
    """A parameter in floating point that is dequantized while it is read, where the checkpoint quantizes it."""
    meta, value = part.get_metadata(), part.get_value()
    names = meta["source"].names()
    scheme = plan.scheme(tuple(absolute_name(tuple(map(str, path)), name).removesuffix(".weight") for name in names))
    if scheme is None or scheme.layout(value.shape[-1]) is None:
        return part
    return nnx.Param(value, axes=meta["axes"], source=meta["source"], scheme=scheme)


def _quantize(linear: Linear, path: tuple[str, ...], plan: WeightPlan) -> None:
    variable = linear.weight
    meta, shape = variable.get_metadata(), variable.get_value().shape
    source, axes = meta["source"], meta["axes"]
    if isinstance(source, InputsFirst):
        source, shape, axes = source.source, (*shape[1:], shape[0]), (*axes[1:], axes[0])
    scheme = plan.scheme(_modules(path, source))
    inputs = shape[-1]
    layout = scheme.layout(inputs) if scheme is not None else None
    if scheme is None or layout is None:
        return
    layout = fit_devices(layout, inputs, linear.build.tensor_parallel if axes[-1] is not None else 1)
    weight = abstract_weight(layout, shape[:-1], inputs)
    linear.weight = nnx.Param(weight, axes=shardings(layout, axes), source=source, scheme=scheme)  # type: ignore[arg-type]


def _quantize_experts(experts: Experts, name: str, path: tuple[str, ...], plan: WeightPlan) -> None:
    variable = getattr(experts, name)
    meta, (count, inputs, *outputs) = variable.get_metadata(), variable.get_value().shape
    expert_axis, inputs_axis, *outputs_axes = meta["axes"]
    source = meta["source"] if isinstance(plan.quantization, OnLoad) else meta["quantized"]
    each = plan.scheme(_modules(path, source))
    build = experts.build
    parts = build.tensor_parallel // build.expert_parallel if inputs_axis is not None else 1
    scheme = None if each is None else OfExperts(each, parts)
    layout = None if scheme is None else scheme.layout(inputs)
    if layout is None:
        return
    ways = source.ways if isinstance(source, FirstFound) else (source,)
    source = FirstFound(tuple(OutputsFirst(way) for way in ways))
    weight = abstract_experts(layout, (count, *outputs), inputs)
    axes = expert_shardings(layout, (expert_axis, *outputs_axes, inputs_axis))
    setattr(experts, name, nnx.Param(weight, axes=axes, source=source, scheme=scheme))


def _modules(path: tuple[str, ...], source: Source) -> tuple[str, ...]:
    return tuple(absolute_name(path, name).removesuffix(".weight") for name in source.names())
