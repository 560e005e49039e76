"""Fill an abstract model from a checkpoint, each device reading only its own slices.

All names and shapes are checked before a byte of a tensor is read. Host memory stays near the largest
parameter times the number of readers, never a second copy of the model.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jserve.checkpoint import Checkpoint, TensorInfo
from jserve.errors import CheckpointError
from jserve.layers.expert_source import FirstFound
from jserve.layers.fused_source import Part
from jserve.layers.source import ALIGNMENT, Index, Source, absolute_name, aligned_empty, as_known, spellings
from jserve.quant import GgufBlocks, PackedMatrix, PackedScheme, QuantizedWeight, Scheme
from jserve.weights.packed import dummy_packed, read_packed
from jserve.weights.quantized import UNREAD, ArrayForm, dummy_quantized, read_dequantized, read_quantized
from pallas_kernels.moe import PackedExperts

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with (parameters done, parameters in all)."""

READERS = 8
NOT_WEIGHTS = (
    *(".inv_freq", "lm_head.weight", ".attn.bias", ".attention.bias", ".masked_bias"),
    *("position_ids", "pooler.dense.weight", "pooler.dense.bias"),
)
"""What some checkpoints hold besides: frequencies, a tied head once more, causal masks, and what an encoder puts
before a classifier.
"""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One array of an abstract model: where it stands, its shape, and where it comes from."""

    module: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: jnp.dtype
    axes: tuple[str | None, ...]
    source: Source
    name: str = "weight"
    part: str = ""
    """Which array of a quantized weight it is; all arrays of one stand next to each other."""
    scheme: Scheme | PackedScheme | None = None
    """How the checkpoint quantizes it. Without a `part` it is dequantized while it is read."""
    packed: tuple[int, ...] = ()
    """The shape `[*outputs, inputs]` of a packed weight, which its arrays do not show."""

    def sharding(self, mesh: Mesh) -> NamedSharding:
        return NamedSharding(mesh, PartitionSpec(*self.axes))

    @property
    def key(self) -> tuple[str, ...]:
        """The tensors that it is made from, by full name; the same in every model of one checkpoint."""
        first, *others = (self.absolute(name) for name in self.source.names())
        if isinstance(self.source, Part):  # one of several that share a tensor
            first = f"{first}[{self.name}]"
        return (first, *others, self.part)

    @property
    def variable(self) -> tuple[str, ...]:
        """The same for all arrays of one weight."""
        return (*self.module, self.name)

    @property
    def form(self) -> ArrayForm:
        return ArrayForm(self.shape, np.dtype(self.dtype))

    def settled(self, tensors: Mapping[str, TensorInfo]) -> "Parameter":
        """Itself, come to the way in which this checkpoint keeps it where there are several."""
        if not isinstance(self.source, FirstFound):
            return self
        for way in self.source.ways:
            names = [self.absolute(name) for name in way.names()]
            if all(any(spelling in tensors for spelling in spellings(name)) for name in names):
                return replace(self, source=way)
        return replace(self, source=self.source.ways[0])

    def absolute(self, name: str) -> str:
        """The checkpoint's name for a name relative to the module that owns this parameter."""
        return absolute_name(self.module, name)

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Tensors that the checkpoint must have, by relative name, with the shape that each must have."""
        names = self.source.names()
        if self.scheme is None:
            return names
        parts = [self.scheme.tensors(name, shape) for name, shape in names.items()]
        return {name: shape for tensors in parts for name, shape in tensors.items()}


def parameters(model: nnx.Module) -> list[Parameter]:
    """All parameters of a model, in the order of `jax.tree.leaves(nnx.state(model))`."""
    listed = []
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        meta, value = variable.get_metadata(), variable.get_value()
        *module, name = map(str, path)
        arrays, axes = {"": value}, {"": meta["axes"]}
        packed = (*value.outputs, value.packed.inputs) if isinstance(value, PackedMatrix) else ()
        if isinstance(value, QuantizedWeight | PackedExperts | PackedMatrix):
            arrays, axes = value.arrays(), meta["axes"].arrays()
        for part, array in arrays.items():
            split, scheme = tuple(axes[part]), meta.get("scheme")
            listed.append(
                Parameter((*module,), array.shape, array.dtype, split, meta["source"], name, part, scheme, packed)
            )
    return listed


def load(
    model: nnx.Module, checkpoint: Checkpoint, mesh: Mesh, progress: Progress | None = None
) -> tuple[jax.Array, ...]:
    """Every parameter of `model`, sharded over `mesh`, in the order of `parameters`.

    Raises CheckpointError naming the tensor that is missing or has another shape.
    """
    wanted = [parameter.settled(checkpoint.tensors()) for parameter in parameters(model)]
    names = resolve_names(wanted, checkpoint.tensors())
    _warn_of_unused(checkpoint.tensors(), set(names.values()))

    def fetch(group: Sequence[Parameter]) -> list[jax.Array]:
        first = group[0]

        has_blocks: Any = checkpoint  # a GGUF file, where a scheme says so
        stored = has_blocks.read_blocks if isinstance(first.scheme, GgufBlocks) else checkpoint.read

        def read(name: str, index: Index) -> np.ndarray:
            return stored(names[first.absolute(name)], index)

        scheme: Any = first.scheme  # a `PackedScheme` where the parameter is packed, else a `Scheme`
        if scheme is None:
            return [place(first, mesh, partial(first.source.read, read))]
        if not first.part:
            return [place(first, mesh, partial(read_dequantized, scheme, first.source, read))]
        forms = {parameter.part: parameter.form for parameter in group}
        if first.packed:
            return _put(group, mesh, read_packed(scheme, first.source, read, first.packed, forms))
        return _put(group, mesh, read_quantized(scheme, first.source, read, forms))

    return in_parallel(wanted, fetch, progress)


def load_bits(
    model: nnx.Module, plain: nnx.Module, weights: tuple[jax.Array, ...], checkpoint: Checkpoint, mesh: Mesh
) -> tuple[jax.Array, ...]:
    """Every parameter of `model`, whose matrices are uint16 bits of bfloat16 and the others those of `plain`.

    `weights` are the arrays of `plain`; they are shared wherever the bytes are the same.
    """
    wanted = parameters(model)
    others = {p.key: array for p, array in zip(parameters(plain), weights, strict=True)}

    def fetch(group: Sequence[Parameter]) -> list[jax.Array]:
        return [share(parameter) for parameter in group]

    def share(parameter: Parameter) -> jax.Array:
        array = others[parameter.key]
        if array.dtype == parameter.dtype:
            return array
        if array.dtype == jnp.bfloat16:  # on a CPU this copies nothing
            return jax.device_put(np.asarray(array).view(np.uint16), parameter.sharding(mesh), may_alias=True)

        def read(name: str, index: Index) -> np.ndarray:
            return checkpoint.read(names[parameter.absolute(name)], index)

        def fill(index: Index | None) -> np.ndarray:
            data = parameter.source.read(read, _bounded(index, parameter.shape))
            return _in_type(np.ascontiguousarray(data), jnp.dtype("uint16"), on_cpu=True)

        return jax.make_array_from_callback(parameter.shape, parameter.sharding(mesh), fill)

    names = resolve_names(wanted, checkpoint.tensors()) if any(a.dtype == jnp.float32 for a in weights) else {}
    return in_parallel(wanted, fetch, None)


def load_dummy(model: nnx.Module, mesh: Mesh, seed: int = 0, progress: Progress | None = None) -> tuple[jax.Array, ...]:
    """Random weights of the real shapes, for benchmarks: normal, deviation 0.02; vectors are ones."""
    pool = np.random.default_rng(seed).standard_normal(1 << 20, dtype=np.float32) * 0.02

    def fetch(group: Sequence[Parameter]) -> list[jax.Array]:
        parameter = group[0]
        if parameter.part:
            scheme: Any = parameter.scheme
            forms = {each.part: each.form for each in group}
            if parameter.packed:
                return _put(group, mesh, dummy_packed(forms, parameter.packed[-1], pool))
            return _put(group, mesh, dummy_quantized(scheme, forms, pool))

        def fill(index: Index | None) -> np.ndarray:
            shape = tuple(part.stop - part.start for part in _bounded(index, parameter.shape))
            values = np.ones(shape, np.float32) if len(shape) == 1 else np.resize(pool, shape)
            return _in_type(values, parameter.dtype, on_cpu=False)

        return [jax.make_array_from_callback(parameter.shape, parameter.sharding(mesh), fill)]

    return in_parallel(parameters(model), fetch, progress)


def place(parameter: Parameter, mesh: Mesh, read: Callable[[Index], np.ndarray]) -> jax.Array:
    """A parameter whose slices `read` gives, on the devices that hold them."""
    on_cpu = mesh.devices.flat[0].platform == "cpu"

    def fill(index: Index | None) -> np.ndarray:
        return _in_type(read(_bounded(index, parameter.shape)), parameter.dtype, on_cpu=on_cpu)

    array = jax.make_array_from_callback(parameter.shape, parameter.sharding(mesh), fill)
    # The transfer holds on to `data`: without waiting, readers would pile up host memory ahead of it.
    return jax.block_until_ready(array)


def _in_type(data: np.ndarray, dtype: jnp.dtype, *, on_cpu: bool) -> np.ndarray:
    """Values in a parameter's type, for a CPU in memory that jax need not copy; uint16 are the bits of bfloat16.

    A transposed view stays one: the transfer brings it into the device's order, eight times as fast as numpy.
    """
    if dtype == np.uint16:
        return _in_type(data, jnp.dtype(jnp.bfloat16), on_cpu=on_cpu).view(np.uint16)
    is_kept = on_cpu and data.flags.c_contiguous and (data.dtype != dtype or data.ctypes.data % ALIGNMENT > 0)
    if not is_kept:
        return data.astype(dtype, copy=False)
    copy = aligned_empty(data.shape, dtype)
    if data.dtype == dtype:
        np.copyto(as_known(copy), as_known(data))
    else:
        np.copyto(copy, data, casting="unsafe")
    return copy


def _put(group: Sequence[Parameter], mesh: Mesh, arrays: Mapping[str, np.ndarray]) -> list[jax.Array]:
    """The arrays of one quantized weight from the host to their devices."""
    return jax.block_until_ready([jax.device_put(arrays[p.part], p.sharding(mesh), may_alias=True) for p in group])


def _bounded(index: Index | None, shape: tuple[int, ...]) -> Index:
    index = (slice(None),) * len(shape) if index is None else index
    return tuple(slice(*part.indices(size)[:2]) for part, size in zip(index, shape, strict=True))


def in_parallel(
    wanted: list[Parameter], fetch: Callable[[Sequence[Parameter]], list[jax.Array]], progress: Progress | None
) -> tuple[jax.Array, ...]:
    """What `fetch` makes of all arrays of each weight, in the order of `wanted`."""
    groups = [list(group) for _, group in groupby(wanted, lambda parameter: parameter.variable)]
    arrays: list[jax.Array] = []
    with ThreadPoolExecutor(min(READERS, os.cpu_count() or 1), "load") as readers:
        for fetched in readers.map(fetch, groups):
            for array in fetched:
                arrays.append(array)
                if progress:
                    progress(len(arrays), len(wanted))
    return tuple(arrays)


def resolve_names(wanted: list[Parameter], tensors: Mapping[str, TensorInfo]) -> dict[str, str]:
    """The checkpoint's spelling of every name that the model asks for; all shapes checked.

    Raises CheckpointError naming the tensor that is missing or has another shape.
    """
    names: dict[str, str] = {}
    for parameter in (parameter.settled(tensors) for parameter in wanted):
        for relative, shape in parameter.tensors().items():
            name = parameter.absolute(relative)
            spelling = next((variant for variant in spellings(name) if variant in tensors), None)
            if spelling is None:
                raise CheckpointError(_missing(name, tensors))
            info = tensors[spelling]
            if parameter.scheme is None:
                _refuse_scaled(spelling, tensors)
            if info.shape != shape and (parameter.scheme is None or _without_ones(info.shape) != _without_ones(shape)):
                raise CheckpointError(
                    f"{info.file}: tensor {spelling} has shape {list(info.shape)} but the configuration "
                    f"implies {list(shape)}; config.json and the weights do not belong together"
                )
            names[name] = spelling
    return names


def _refuse_scaled(name: str, tensors: Mapping[str, TensorInfo]) -> None:
    """A tensor that is read as it is must not be one that only its scales make whole."""
    if name.endswith(".weight") and any(f"{name}{suffix}" in tensors for suffix in ("_scale", "_scale_inv")):
        raise CheckpointError(
            f"{tensors[name].file}: {name} is quantized, which is supported of linear layers and experts inside the "
            "model alone, not of the token table, the output projection and norms; quantize the model without it"
        )


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Formats differ in whether one scale is [], [1] or [1, 1], and those of outputs [N] or [N, 1]."""
    return tuple(size for size in shape if size != 1)


def _missing(name: str, tensors: Mapping[str, TensorInfo]) -> str:
    folder = next((str(info.file.parent) for info in tensors.values()), "the checkpoint")
    return (
        f"{folder}: tensor {name} is missing ({len(tensors)} tensors are there); "
        "the download may be incomplete, or the weights are of another architecture than config.json says"
    )


def unused_weights(tensors: Mapping[str, TensorInfo], used: set[str]) -> list[str]:
    """Names of the tensors that a model does not read, and that another would."""
    return [name for name in tensors if name not in used and not name.endswith((*NOT_WEIGHTS, *UNREAD))]


def _warn_of_unused(tensors: Mapping[str, TensorInfo], used: set[str]) -> None:
    unused = unused_weights(tensors, used)
    if unused:
        logger.warning(
            "%d tensors of the checkpoint are not used by this architecture, such as %s",
            len(unused),
            ", ".join(unused[:3]),
        )
