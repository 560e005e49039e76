"""Fill an abstract model from a checkpoint, each device reading only its own slices.

All names and shapes are checked before a byte of a tensor is read. Host memory stays near the largest
parameter times the number of readers, never a second copy of the model.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jserve.checkpoint import Checkpoint, TensorInfo
from jserve.errors import CheckpointError
from jserve.layers.source import Index, ReadTensor, Source

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with (parameters done, parameters in all)."""

READERS = 8


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of an abstract model: where it stands, its shape, and where it comes from."""

    module: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: jnp.dtype
    axes: tuple[str | None, ...]
    source: Source

    def sharding(self, mesh: Mesh) -> NamedSharding:
        return NamedSharding(mesh, PartitionSpec(*self.axes))

    @property
    def key(self) -> tuple[str, ...]:
        """The tensors that it is made from, by full name; the same in every model of one checkpoint."""
        return tuple(self.absolute(name) for name in self.source.names())

    def absolute(self, name: str) -> str:
        """The checkpoint's name for a name relative to the module that owns this parameter."""
        module = self.module
        while name.startswith("../"):
            module, name = module[:-1], name[3:]
        return ".".join((*module, name))


def parameters(model: nnx.Module) -> list[Parameter]:
    """All parameters of a model, in the order of `jax.tree.leaves(nnx.state(model))`."""
    found = []
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        meta, value = variable.get_metadata(), variable.get_value()
        module = tuple(str(part) for part in path[:-1])
        found.append(Parameter(module, value.shape, value.dtype, meta["axes"], meta["source"]))
    return found


def load(
    model: nnx.Module, checkpoint: Checkpoint, mesh: Mesh, progress: Progress | None = None
) -> tuple[jax.Array, ...]:
    """Every parameter of `model`, sharded over `mesh`, in the order of `parameters`.

    Raises CheckpointError naming the tensor that is missing or has another shape.
    """
    wanted = parameters(model)
    names = resolve_names(wanted, checkpoint.tensors())
    _warn_of_unused(checkpoint.tensors(), set(names.values()))

    def fetch(parameter: Parameter) -> jax.Array:
        def read(name: str, index: Index) -> np.ndarray:
            return checkpoint.read(names[parameter.absolute(name)], index)

        return _place(parameter, mesh, read)

    return _in_parallel(wanted, fetch, progress)


def load_bits(
    model: nnx.Module, plain: nnx.Module, weights: tuple[jax.Array, ...], checkpoint: Checkpoint, mesh: Mesh
) -> tuple[jax.Array, ...]:
    """Every parameter of `model`, whose matrices are uint16 bits of bfloat16 and the others those of `plain`.

    `weights` are the arrays of `plain`; they are shared wherever the bytes are the same.
    """
    wanted = parameters(model)
    others = {p.key: array for p, array in zip(parameters(plain), weights, strict=True)}

    def fetch(parameter: Parameter) -> jax.Array:
        array = others[parameter.key]
        if array.dtype == parameter.dtype:
            return array
        if array.dtype == jnp.bfloat16:  # on a CPU this copies nothing
            return jax.device_put(np.asarray(array).view(np.uint16), parameter.sharding(mesh), may_alias=True)

        def read(name: str, index: Index) -> np.ndarray:
            return checkpoint.read(names[parameter.absolute(name)], index)

        def fill(index: Index | None) -> np.ndarray:
            data = parameter.source.read(read, _bounded(index, parameter.shape))
            return np.ascontiguousarray(data).astype(jnp.bfloat16, copy=False).view(np.uint16)

        return jax.make_array_from_callback(parameter.shape, parameter.sharding(mesh), fill)

    names = resolve_names(wanted, checkpoint.tensors()) if any(a.dtype == jnp.float32 for a in weights) else {}
    return _in_parallel(wanted, fetch, None)


def load_dummy(model: nnx.Module, mesh: Mesh, seed: int = 0, progress: Progress | None = None) -> tuple[jax.Array, ...]:
    """Random weights of the real shapes, for benchmarks: normal, deviation 0.02; vectors are ones."""
    pool = np.random.default_rng(seed).standard_normal(1 << 20, dtype=np.float32) * 0.02

    def fetch(parameter: Parameter) -> jax.Array:
        def fill(index: Index | None) -> np.ndarray:
            shape = tuple(part.stop - part.start for part in _bounded(index, parameter.shape))
            data = np.ones(shape, np.float32) if len(shape) == 1 else np.resize(pool.astype(parameter.dtype), shape)
            return data.astype(parameter.dtype, copy=False)

        return jax.make_array_from_callback(parameter.shape, parameter.sharding(mesh), fill)

    return _in_parallel(parameters(model), fetch, progress)


def _place(parameter: Parameter, mesh: Mesh, read: ReadTensor) -> jax.Array:
    def fill(index: Index | None) -> np.ndarray:
        data = parameter.source.read(read, _bounded(index, parameter.shape))
        # A transposed view stays one: the transfer brings it into the device's order, eight times as fast as numpy.
        return data.astype(parameter.dtype, copy=False)

    array = jax.make_array_from_callback(parameter.shape, parameter.sharding(mesh), fill)
    # The transfer holds on to `data`: without waiting, readers would pile up host memory ahead of it.
    return jax.block_until_ready(array)


def _bounded(index: Index | None, shape: tuple[int, ...]) -> Index:
    index = (slice(None),) * len(shape) if index is None else index
    return tuple(slice(*part.indices(size)[:2]) for part, size in zip(index, shape, strict=True))


def _in_parallel(
    wanted: list[Parameter], fetch: Callable[[Parameter], jax.Array], progress: Progress | None
) -> tuple[jax.Array, ...]:
    arrays = []
    with ThreadPoolExecutor(min(READERS, os.cpu_count() or 1), "load") as readers:
        for array in readers.map(fetch, wanted):
            arrays.append(array)
            if progress:
                progress(len(arrays), len(wanted))
    return tuple(arrays)


def resolve_names(wanted: list[Parameter], tensors: Mapping[str, TensorInfo]) -> dict[str, str]:
    """The checkpoint's spelling of every name that the model asks for; all shapes checked.

    Raises CheckpointError naming the tensor that is missing or has another shape.
    """
    names: dict[str, str] = {}
    for parameter in wanted:
        for relative, shape in parameter.source.names().items():
            name = parameter.absolute(relative)
            spelling = next((variant for variant in _spellings(name) if variant in tensors), None)
            if spelling is None:
                raise CheckpointError(_missing(name, tensors))
            info = tensors[spelling]
            if info.shape != shape:
                raise CheckpointError(
                    f"{info.file}: tensor {spelling} has shape {list(info.shape)} but the configuration "
                    f"implies {list(shape)}; config.json and the weights do not belong together"
                )
            names[name] = spelling
    return names


def _spellings(name: str) -> Iterator[str]:
    """A name as it is, and with the prefixes that repositories drop or add."""
    bare = name.removeprefix("model.")
    yield from (name, bare, f"language_model.{name}", f"model.language_model.{bare}")


def _missing(name: str, tensors: Mapping[str, TensorInfo]) -> str:
    folder = next((str(info.file.parent) for info in tensors.values()), "the checkpoint")
    return (
        f"{folder}: tensor {name} is missing ({len(tensors)} tensors are there); "
        "the download may be incomplete, or the weights are of another architecture than config.json says"
    )


def _warn_of_unused(tensors: Mapping[str, TensorInfo], used: set[str]) -> None:
    unused = [name for name in tensors if name not in used and not name.endswith((".inv_freq", "lm_head.weight"))]
    if unused:
        logger.warning(
            "%d tensors of the checkpoint are not used by this architecture, such as %s",
            len(unused),
            ", ".join(unused[:3]),
        )
