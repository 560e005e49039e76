"""Puts quantized weights where an abstract model has float ones. Families and layers know nothing of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flax import nnx

from jserve.errors import CheckpointError
from jserve.layers.expert_source import FirstFound, OutputsFirst
from jserve.layers.fused_source import Split
from jserve.layers.latent_attention import LatentHeads
from jserve.layers.linear import Embedding, Linear
from jserve.layers.moe import Experts
from jserve.layers.source import GroupedHeads, InputsFirst, Source, Stacked, absolute_name, spellings
from jserve.quant import (
    Gguf,
    OfExperts,
    OnLoad,
    PackedScheme,
    Quantization,
    Repacked,
    Scheme,
    abstract_experts,
    abstract_packed,
    abstract_weight,
    expert_shardings,
    fit_devices,
    shardings,
    whole_partitions,
)


@dataclass(frozen=True, slots=True)
class WeightPlan:
    """How the weights of a model are quantized. Hashable."""

    quantization: Quantization | Gguf
    floats: frozenset[str] = frozenset()
    """Modules that the checkpoint has in floating point, whatever its configuration says."""

    @classmethod
    def of(cls, quantization: Quantization | Gguf | None, tensors: Mapping[str, Any]) -> "WeightPlan | None":
        """`tensors` are those of the checkpoint, by name; empty where only its configuration is known."""
        if quantization is None or isinstance(quantization, OnLoad | Gguf):
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
        if isinstance(self.quantization, Gguf) or not self.floats.isdisjoint(spellings(module)):
            return None
        return self.quantization.scheme(module)


def quantize(model: nnx.Module, plan: WeightPlan) -> None:
    """Replace the weights of an abstract model's linear layers and experts by quantized ones, as the plan says."""
    for path, module in list(nnx.iter_modules(model)):
        if isinstance(plan.quantization, Gguf):
            if isinstance(module, Linear | Embedding):
                _keep_blocks(module, tuple(map(str, path)), plan.quantization)
        elif isinstance(module, Linear):
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
    if scheme is not None and linear.build.packed == "native":
        packed = _packed(linear, Repacked(scheme), source, shape, "float")
        if packed is not None:
            linear.weight = packed
            return
    layout = scheme.layout(inputs) if scheme is not None else None
    if scheme is None or layout is None:
        return
    layout = fit_devices(layout, inputs, linear.build.tensor_parallel if axes[-1] is not None else 1)
    weight = abstract_weight(layout, shape[:-1], inputs)
    linear.weight = nnx.Param(weight, axes=shardings(layout, axes), source=source, scheme=scheme)  # type: ignore[arg-type]


def _keep_blocks(module: Linear | Embedding, path: tuple[str, ...], quantization: Gguf) -> None:
    """A weight in the blocks of the file; those of several types become parts, those without blocks stay."""
    variable = module.weight
    source, shape = variable.get_metadata()["source"], variable.get_value().shape
    if isinstance(source, InputsFirst):
        source, shape = source.source, (*shape[1:], shape[0])
    schemes = [quantization.scheme(name) for name in _modules(path, source)]
    activations = module.build.gguf_activations
    if len(set(schemes)) == 1:
        packed = None if schemes[0] is None else _packed(module, schemes[0], source, shape, activations)
        module.weight = variable if packed is None else packed
        return
    apart = _apart(source)
    if apart is None or not isinstance(module, Linear):
        return
    axis, parts = apart
    made = [
        None if scheme is None else _packed(module, scheme, part, (*outputs, shape[-1]), activations)
        for scheme, (part, outputs) in zip(schemes, parts, strict=True)
    ]
    if all(packed is not None for packed in made):
        del module.weight
        module.apart, module.apart_axis = tuple(f"part{n}" for n in range(len(made))), axis
        for name, packed in zip(module.apart, made, strict=True):
            setattr(module, name, packed)


def _packed(
    module: Linear | Embedding,
    scheme: PackedScheme,
    source: Source,
    shape: tuple[int, ...],
    activations: str,
) -> nnx.Param[Any] | None:
    """A packed parameter `[*outputs, inputs]`; None where its sizes do not fit, or devices share it."""
    *outputs, inputs = shape
    layout = scheme.packed_layout(inputs)
    if module.build.tensor_parallel > 1 or layout is None or not layout.fits((*outputs,), inputs):
        return None
    matrix = abstract_packed(layout, (*outputs,), inputs, activations=activations, implementation=module.build.packed)
    return nnx.Param(matrix, axes=whole_partitions(matrix), source=source, scheme=scheme)


Outputs = tuple[int, ...]


def _apart(source: Source) -> tuple[int, list[tuple[Source, Outputs]]] | None:
    """A source of several tensors as one of each, with the outputs that it gives, and the axis along which they follow
    one another; None where they lie otherwise.
    """
    match source:
        case GroupedHeads(copies=1):
            count, dim = source.num_kv_heads, source.head_dim
            names, sizes = source.names(), (source.groups, 1, 1)
            each = [(count, size, dim) for size in sizes]
            return 1, [(Split(name, axes, source.inner), axes) for name, axes in zip(names, each, strict=True)]
        case Stacked():
            outputs = (1, *source.shape[:-1])
            return 0, [(Stacked((name,), source.shape), outputs) for name in source.tensors]
    return None


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
