"""Writes and reads the Orbax checkpoint of `jserve convert`: parameters in serving layout, for any mesh.

They are stored as one device holds them. A mesh whose devices hold plain shares reads just these, in parallel and
without joining or transposing anything; where a mesh keeps a KV head several times, or a CPU another order of axes,
the stored array is brought into that shape on the host.
"""

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from jserve.checkpoint import Checkpoint
from jserve.checkpoint.converted import MANIFEST, VERSION, WEIGHTS
from jserve.errors import CheckpointError, ConfigError
from jserve.layers.source import GroupedHeads, Index, InputsFirst, Source, join
from jserve.quant import Layout, OfExperts, fit_devices
from jserve.quant.converted import config_of
from jserve.quant.scheme import consecutive
from jserve.weights.load import Parameter, Progress, in_parallel, parameters, place

logger = logging.getLogger(__name__)

WITHOUT_OUTPUTS = ("group_index", "input_scale")
"""Arrays of a quantized weight that have no axis of heads."""


def name_of(parameter: Parameter) -> str:
    """The same in every model of one checkpoint, whatever its mesh."""
    return f"{parameter.key[0]}.{parameter.part}" if parameter.part else parameter.key[0]


def layouts_of(model: nnx.Module) -> dict[str, Layout]:
    """The layouts of all quantized weights, by each of the checkpoint's modules that they are made of."""
    layouts: dict[str, Layout] = {}
    for parameter in parameters(model):
        scheme: Any = parameter.scheme
        if scheme is not None and parameter.part == "values":
            inputs = parameter.shape[-1] * (2 if parameter.dtype == jnp.uint8 else 1)
            layout: Layout | None = scheme.layout(inputs)
            assert layout is not None
            names = (parameter.absolute(name).removesuffix(".weight") for name in parameter.source.names())
            layouts |= dict.fromkeys(names, fit_devices(layout, inputs, 1))
    return layouts


def write(
    folder: Path,
    model: nnx.Module,
    arrays: tuple[jax.Array, ...],
    checkpoint: Checkpoint,
    own: Mapping[str, Any],
) -> None:
    """Write all but the tokenizer into `folder`, which must not exist. `arrays` are those of `parameters(model)`; `own`
    are fields of config.json in which the arrays differ from the checkpoint.
    """
    import orbax.checkpoint as ocp

    if folder.exists():
        raise ConfigError(f"{folder} exists; remove it, or name another folder")
    tree = {name_of(p): _by_value(array) for p, array in zip(parameters(model), arrays, strict=True)}
    if len(tree) < len(arrays):
        raise CheckpointError(f"{checkpoint.path}: two parameters are made of the same tensor first; cannot convert it")
    folder.mkdir(parents=True)
    try:
        # A file for each array, as it lies in memory: mapped, nothing is copied that no device wants.
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_compression=False)) as writer:
            writer.save((folder / WEIGHTS).resolve(), args=ocp.args.PyTreeSave(tree))
        layouts = layouts_of(model)
        kept = {"quantization_config": config_of(layouts)} if layouts else {}
        _write_json(folder / "config.json", _with(checkpoint.config(), dict(own)) | kept)
        _write_json(folder / "generation_config.json", checkpoint.generation_config())
        listed = {name: {"shape": array.shape, "dtype": array.dtype.name} for name, array in tree.items()}
        _write_json(folder / MANIFEST, {"version": VERSION, "source": str(checkpoint.path), "arrays": listed})
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def read(
    model: nnx.Module, stored: nnx.Module, checkpoint: Checkpoint, mesh: Mesh, progress: Progress | None = None
) -> tuple[jax.Array, ...]:
    """Every parameter of `model`, sharded over `mesh`, in the order of `parameters`.

    `stored` is the model as it was converted: for one device. Raises CheckpointError where they do not belong together.
    """
    there = {name_of(parameter): parameter for parameter in check(stored, checkpoint)}

    def fetch(group: Sequence[Parameter]) -> list[jax.Array]:
        return [fetch_one(parameter) for parameter in group]

    def fetch_one(parameter: Parameter) -> jax.Array:
        origin = there.get(name_of(parameter))
        if origin is None:  # groups that only this mesh cuts
            return place(parameter, mesh, _consecutive(parameter, there))
        array = partial(checkpoint.read, name_of(parameter))
        is_alike = origin.source == parameter.source or parameter.part in WITHOUT_OUTPUTS
        if origin.shape == parameter.shape and is_alike:
            return place(parameter, mesh, array)
        if isinstance(parameter.scheme, OfExperts):  # groups that this mesh cuts, with the scale repeated
            whole = np.repeat(array(()), parameter.shape[-1] // origin.shape[-1], axis=-1)
            return place(parameter, mesh, lambda index: whole[index])
        whole = _padded(_reorder(origin.source, parameter.source)(array(())), parameter.shape)
        return place(parameter, mesh, lambda index: whole[index])

    return in_parallel(parameters(model), fetch, progress)


def _by_value(array: jax.Array) -> jax.Array:
    """Bits of bfloat16, which experts have in memory, as the numbers that they are: not every device has the bits."""
    if array.dtype != jnp.uint16:
        return array
    return jax.device_put(np.asarray(array).view(jnp.bfloat16), array.sharding, may_alias=True)


def _consecutive(parameter: Parameter, there: Mapping[str, Parameter]) -> Callable[[Index], np.ndarray]:
    """The group of each input of a weight whose groups are neighbours."""
    (inputs,) = parameter.shape
    groups = there[name_of(replace(parameter, part="scale"))].shape[-1]
    whole = consecutive(inputs, -(-inputs // groups))
    return lambda index: whole[index]


def check(stored: nnx.Module, checkpoint: Checkpoint) -> list[Parameter]:
    """The parameters as they are stored. Raises CheckpointError where one is missing or has another shape."""
    wanted, tensors = parameters(stored), checkpoint.tensors()
    for parameter in wanted:
        info = tensors.get(name_of(parameter))
        if info is None or info.shape != parameter.shape:
            there = "missing" if info is None else f"of shape {list(info.shape)}"
            raise CheckpointError(
                f"{checkpoint.path}: array {name_of(parameter)} is {there} but config.json implies "
                f"{list(parameter.shape)}; convert the model again"
            )
    return wanted


def bits(model: nnx.Module, plain: nnx.Module, weights: tuple[jax.Array, ...], mesh: Mesh) -> tuple[jax.Array, ...]:
    """Every parameter of `model`, whose matrices are uint16 bits of bfloat16, out of `weights`, the arrays of `plain`.

    Exact where these are bfloat16 by value, which a checkpoint in bfloat16 is.
    """

    def convert(wanted: Parameter, there: Parameter, array: jax.Array) -> jax.Array:
        if array.dtype == wanted.dtype:
            return array
        values = _reorder(there.source, wanted.source)(np.asarray(array))
        rounded = np.ascontiguousarray(values.astype(jnp.bfloat16, copy=False)).view(np.uint16)
        return jax.device_put(rounded, wanted.sharding(mesh), may_alias=True)

    return tuple(map(convert, parameters(model), parameters(plain), weights))


Change = Callable[[np.ndarray], np.ndarray]


def _reorder(stored: Source, wanted: Source) -> Change:
    first, last = _inner(stored), _inner(wanted)

    def change(array: np.ndarray) -> np.ndarray:
        values = np.moveaxis(array, 0, -1) if isinstance(stored, InputsFirst) else array
        if isinstance(first, GroupedHeads) and isinstance(last, GroupedHeads):
            values = _copy_heads(values, first, last)
        return np.moveaxis(values, -1, 0) if isinstance(wanted, InputsFirst) else values

    return change


def _inner(source: Source) -> Source:
    """What is left when every source that wraps another is taken off."""
    while (wrapped := getattr(source, "source", None)) is not None:
        source = wrapped
    return source


def _copy_heads(array: np.ndarray, stored: GroupedHeads, wanted: GroupedHeads) -> np.ndarray:
    """[K, G + 2, D, ...] with each KV head `wanted.copies` times, each with its share of the query heads."""
    if stored.copies == wanted.copies:
        return array
    groups, copies = wanted.groups, wanted.copies
    query = array[:, : stored.groups].reshape(-1, groups, *array.shape[2:])
    return join([query, np.repeat(array[:, stored.groups :], copies, axis=0)], axis=1)


def _padded(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """With rows of zeros up to `shape`: a vocabulary that devices share evenly."""
    if values.shape == shape:
        return values
    if values.ndim != len(shape) or values.shape[1:] != shape[1:] or values.shape[0] > shape[0]:
        raise CheckpointError(
            f"a stored array of shape {list(values.shape)} cannot be brought into {list(shape)}, which this number of "
            "devices needs; use fewer, or start from the model that was converted"
        )
    return np.pad(values, [(0, wanted - there) for wanted, there in zip(shape, values.shape, strict=True)])


def _with(config: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """A configuration with these fields, also in the part of it that is about text."""
    text = config.get("text_config")
    return config | fields | ({"text_config": text | fields} if isinstance(text, dict) else {})


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
