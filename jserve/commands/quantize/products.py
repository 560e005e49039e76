"""The linear layers of a decoder layer as checkpoints keep them, and where scales of their inputs can go.

A scale of an input channel is divided out of what makes that channel: the norm before, the rows of values before the
attention's output projection (each KV head's for all its query heads), or those of up before down.
"""

from dataclasses import dataclass

import numpy as np

from jserve.checkpoint import Checkpoint
from jserve.commands.quantize.layers import DecoderLayers, Path, linear_paths, module_at
from jserve.errors import ConfigError
from jserve.layers.attention import Attention
from jserve.layers.fused_source import Transposed
from jserve.layers.mlp import GatedMLP
from jserve.layers.norm import LayerNorm, LayerNormWithoutBias, OffsetRMSNorm, RMSNorm
from jserve.layers.source import Index, InputsFirst, Source
from jserve.weights.load import Parameter


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """A linear layer, whose weight is that of all its tensors, one below the other: [rows, inputs]."""

    path: Path
    weights: dict[str, int]
    """Tensors of the checkpoint, and how many rows each has."""
    biases: tuple[str, ...]
    inputs: int
    order: np.ndarray
    """i64[*outputs], the row of each output of the layer as it is served."""

    def read(self, checkpoint: Checkpoint) -> np.ndarray:
        """f32[rows, inputs]"""
        return np.concatenate([checkpoint.read(name).astype(np.float32) for name in self.weights])

    def slices(self) -> dict[str, slice]:
        """The rows of each tensor."""
        ends = np.cumsum(list(self.weights.values())).tolist()
        starts = [0, *ends]
        return {name: slice(start, end) for name, start, end in zip(self.weights, starts, ends, strict=False)}


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Linear layers that share their input, and what takes the scales of its channels; of neither: no scales."""

    products: tuple[Product, ...]
    channel: np.ndarray
    """i32[inputs], which scale an input has."""
    norm: Path | None = None
    producer: Product | None = None
    rows: np.ndarray | None = None
    """i64[channels], the row of the producer that makes each channel."""

    @property
    def is_scaled(self) -> bool:
        return self.norm is not None or self.producer is not None


def products_of(layers: DecoderLayers, number: int) -> list[Product]:
    """All linear layers of a decoder layer. Raises ConfigError where one is kept as no other engine reads it."""
    by_variable = {p.variable: p for p in layers.parameters(number)}
    path = layers.path(number)
    products = []
    for own in linear_paths(layers.layer(number)):
        weight = by_variable[*path, *own, "weight"]
        bias = by_variable.get((*path, *own, "bias"))
        assert isinstance(weight.source, InputsFirst)
        source = weight.source.source
        _refuse_transposed(source, weight)
        inputs, *outputs = weight.shape
        rows = {name: shape[0] for name, shape in source.names().items()}
        products.append(
            Product(
                path=own,
                weights={layers.names[weight.absolute(name)]: count for name, count in rows.items()},
                biases=() if bias is None else tuple(layers.names[bias.absolute(name)] for name in bias.source.names()),
                inputs=inputs,
                order=_order(source, rows, tuple(outputs)),
            )
        )
    return products


def groups_of(layers: DecoderLayers, number: int, products: list[Product]) -> list[Group]:
    """All products of a decoder layer by their inputs."""
    layer = layers.layer(number)
    fed_by = layers.fed_by(number)
    by_path = {product.path: product for product in products}
    shared: dict[Path, list[Product]] = {}
    groups = []
    for product in products:
        norm = fed_by.get(product.path)
        if norm is not None and type(module_at(layer, norm)) in (
            *(RMSNorm, OffsetRMSNorm),
            *(LayerNorm, LayerNormWithoutBias),
        ):
            shared.setdefault(norm, []).append(product)
            continue
        groups.append(_after_rows(product, module_at(layer, product.path[:-1]), by_path))
    for norm, together in shared.items():
        groups.append(Group(tuple(together), np.arange(together[0].inputs, dtype=np.int32), norm=norm))
    return groups


def _after_rows(product: Product, owner: object, by_path: dict[Path, Product]) -> Group:
    """A product whose input channels are rows of another, or of none that can be told."""
    *folder, name = product.path
    same = np.arange(product.inputs, dtype=np.int32)
    if isinstance(owner, Attention) and name == "o_proj":
        producer = by_path[*folder, "qkv_proj"]
        rows = producer.order[:, -1]  # [K, D], of values
        heads, dim = rows.shape
        channel = np.repeat(np.arange(rows.size).reshape(heads, 1, dim), owner.groups, axis=1)
        return Group((product,), channel.reshape(-1).astype(np.int32), producer=producer, rows=rows.reshape(-1))
    if isinstance(owner, GatedMLP) and name == "down_proj":
        producer = by_path[*folder, "gate_up_proj"]
        return Group((product,), same, producer=producer, rows=producer.order[1])
    return Group((product,), same)


def _order(source: Source, rows: dict[str, int], outputs: tuple[int, ...]) -> np.ndarray:
    """Read the numbers of rows in place of weights."""
    ends = np.cumsum(list(rows.values())).tolist()
    first = dict(zip(rows, [0, *ends], strict=False))

    def read(name: str, index: Index) -> np.ndarray:
        return np.arange(first[name], first[name] + rows[name])[:, None][index]

    index = (*(slice(0, size) for size in outputs), slice(0, 1))
    return source.read(read, index)[..., 0]


def _refuse_transposed(source: Source, parameter: Parameter) -> None:
    inner: Source | None = source
    while inner is not None:
        if isinstance(inner, Transposed):
            name = parameter.absolute(next(iter(source.names())))
            raise ConfigError(
                f"{name} is kept inputs first, which neither AWQ nor GPTQ has a layout for; supported are families "
                "whose linear layers are kept outputs first, which are all but GPT-2"
            )
        inner = getattr(inner, "source", None)
