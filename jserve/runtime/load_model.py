"""Fills an abstract model: from tensors, from what `jserve convert` wrote, or at random."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from jserve.checkpoint import Checkpoint, find_ollama_model, is_ollama_name, keep_ollama_model, open_checkpoint
from jserve.config import EngineConfig
from jserve.errors import ConfigError
from jserve.layers.build import Build
from jserve.layers.quantized import WeightPlan
from jserve.models.blueprint import Blueprint
from jserve.models.registry import resolve, resolve_encoder
from jserve.quant import OnLoad, detect
from jserve.runtime import platform
from jserve.text.load import load_tokenizer
from jserve.text.save import save_tokenizer
from jserve.weights import converted
from jserve.weights.load import Progress, load, load_bits, load_dummy, parameters, resolve_names
from jserve.weights.tied_head import with_trained_head


def check_weights(model: nnx.Module, blueprint: Blueprint[Any], checkpoint: Checkpoint) -> None:
    """Raise CheckpointError where the files are not those of this model; reads no weights."""
    if checkpoint.format == "converted":
        if blueprint.weights is not None and isinstance(blueprint.weights.quantization, OnLoad):
            raise ConfigError(
                f"{checkpoint.path} is converted already: --quantization is for jserve convert, and the model that it "
                "is made of"
            )
        converted.check(_as_stored(blueprint), checkpoint)
    else:
        resolve_names(parameters(model), checkpoint.tensors())


def load_weights(
    engine_config: EngineConfig,
    model: nnx.Module,
    blueprint: Blueprint[Any],
    checkpoint: Checkpoint,
    mesh: Mesh,
    progress: Progress,
) -> tuple[jax.Array, ...]:
    """Every parameter of `model`, in the order of `parameters`."""
    if engine_config.load_format == "dummy":
        return load_dummy(model, mesh, engine_config.seed, progress)
    if checkpoint.format == "converted":
        return converted.read(model, _as_stored(blueprint), checkpoint, mesh, progress)
    return load(model, checkpoint, mesh, progress)


def load_small_batch_weights(
    model: nnx.Module, blueprint: Blueprint[Any], weights: tuple[jax.Array, ...], checkpoint: Checkpoint, mesh: Mesh
) -> tuple[jax.Array, ...]:
    """The parameters of the model of small batches; `weights` are those of `model`."""
    small_batch = blueprint.abstract_model(bf16_as_uint16=True)
    if checkpoint.format == "converted":
        return converted.bits(small_batch, model, weights, mesh)
    return load_bits(small_batch, model, weights, checkpoint, mesh)


def convert(engine_config: EngineConfig, folder: Path, progress: Callable[[int, int], None]) -> int:
    """`jserve convert`: write a model as it is served. Returns the bytes of its arrays.

    Weights keep the checkpoint's type unless `engine_config.dtype` says otherwise, and are quantized where the
    checkpoint or `engine_config.quantization` has them so; the whole model passes through the host's memory.

    Raises StartupError where the model is not supported or the folder is there.
    """
    if folder.exists():
        raise ConfigError(f"{folder} exists; remove it, or name another folder")
    mesh = platform.make_mesh(1)
    with closing(open_checkpoint(engine_config.model, architecture=engine_config.architecture)) as checkpoint:
        if checkpoint.format == "converted":
            raise ConfigError(f"{engine_config.model} is converted already")
        if resolve_encoder(checkpoint.config(), source=checkpoint.path) is not None:
            raise ConfigError(f"{engine_config.model} is an encoder, which is not converted; serve it as it is")
        family, config = resolve(checkpoint.config(), source=checkpoint.path)
        config = with_trained_head(config, checkpoint)
        quantization = detect(
            checkpoint.config(), engine_config.quantization, checkpoint.tensors(), source=checkpoint.path
        )
        weights = WeightPlan.of(quantization, checkpoint.tensors())
        tokenizer = load_tokenizer(engine_config.model)
        dtype = jnp.dtype(config.dtype if engine_config.dtype == "auto" else engine_config.dtype)
        model = Blueprint(family, config, Build(dtype, dtype, mesh), weights).abstract_model()
        arrays = load(model, checkpoint, mesh, progress)
        own = {"dtype": dtype.name, "tie_word_embeddings": model.config.tie_word_embeddings}
        converted.write(folder, model, arrays, checkpoint, own)
        save_tokenizer(tokenizer, folder)
        if is_ollama_name(engine_config.model):
            keep_ollama_model(find_ollama_model(engine_config.model), folder)
    return sum(array.nbytes for array in arrays)


def _as_stored(blueprint: Blueprint[Any]) -> nnx.Module:
    """The abstract model of one device, inputs first: the form in which `convert` writes it."""
    build = replace(
        blueprint.build, mesh=platform.make_mesh(1), products="xla", small_batch=False, bf16_as_uint16=False
    )
    return replace(blueprint, build=build).abstract_model()
