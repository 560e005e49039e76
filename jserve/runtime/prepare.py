"""What a start decides from the flags, the model's configuration and the device, before anything is loaded."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax.numpy as jnp
import msgspec
from flax import nnx
from jax.sharding import Mesh

from jserve.checkpoint import Checkpoint, Classifier, Embedder
from jserve.config import EngineConfig, MixtureConfig, ModelConfig
from jserve.errors import ConfigError
from jserve.layers.build import Build
from jserve.layers.quantized import WeightPlan
from jserve.models.blueprint import Blueprint
from jserve.models.causal_lm import CausalLM
from jserve.models.encoder import TextModel
from jserve.models.registry import resolve_encoder
from jserve.quant import OfExperts, detect
from jserve.runtime import memory, platform
from jserve.runtime.autotuning import products_of
from jserve.runtime.encoder_runner import EncoderPrograms, EncoderRunner
from jserve.runtime.encoder_step import plan_encoder
from jserve.runtime.executables import ExecutableStore
from jserve.runtime.file_bits import keeps_bits, quantization_of
from jserve.runtime.look_alike import resolve_decoder
from jserve.runtime.model_runner import ModelRunner
from jserve.runtime.native import (
    Folders,
    attention_compiled_beside,
    has_native_packed,
    has_native_products,
    multiplies_bfloat16,
    with_native_attention,
)
from jserve.runtime.program_digest import configuration_key
from jserve.runtime.programs import Programs
from jserve.runtime.runner import Runner
from jserve.runtime.shapes import EngineShape
from jserve.weights.load import parameters
from jserve.weights.tied_head import with_trained_head
from pallas_kernels.packed_matmul import has_native_code

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Prepared:
    """All that is decided before anything is loaded or compiled."""

    blueprint: Blueprint[Any]
    model: nnx.Module
    """Abstract."""
    shape: EngineShape
    plan: memory.MemoryPlan
    key: str
    """What stored programs depend on."""
    make_runner: Callable[[ExecutableStore, Mesh], ModelRunner]
    """Makes what runs the programs, with none of them there."""

    @property
    def config(self) -> ModelConfig:
        return self.blueprint.config

    @property
    def build(self) -> Build:
        return self.blueprint.build


def prepare(engine_config: EngineConfig, checkpoint: Checkpoint, mesh: Mesh, folders: Folders = ()) -> Prepared:
    """Read the model's configuration and plan the memory. Raises StartupError where it does not fit.

    `folders` hold compiled code; what is missing is stored in the last of them.
    """
    device = mesh.devices.flat[0]
    encoder = resolve_encoder(checkpoint.config(), source=checkpoint.path)
    if encoder is not None:
        return _prepare_encoder(engine_config, checkpoint, mesh, *encoder)
    family, config = resolve_decoder(checkpoint)
    engine_config = with_trained_length(engine_config, checkpoint, config)
    check_parallel(config, engine_config.tensor_parallel_size, engine_config.expert_parallel_size)
    quantization = quantization_of(engine_config, checkpoint, device.platform, mesh.size)
    weights = WeightPlan.of(quantization, checkpoint.tensors())
    pools_only = any(kind.of(checkpoint.config(), source=checkpoint.path) for kind in (Embedder, Classifier))
    if not pools_only and engine_config.load_format != "dummy":
        config = with_trained_head(config, checkpoint)
    build = _build(engine_config, config, family, mesh, checkpoint, weights, folders, generates=not pools_only)
    blueprint = _with_native_packed(Blueprint(family, config, build, weights), engine_config, checkpoint, folders)
    build, model = blueprint.build, blueprint.abstract_model()
    weights_bytes = _bytes_per_device(model, mesh)
    if build.small_batch and not build.outputs_first:
        small_batch = blueprint.abstract_model(bf16_as_uint16=True)
        weights_bytes += _bytes_per_device(small_batch, mesh, of=jnp.dtype("uint16"))
    shape, plan = memory.plan_shape(
        engine_config,
        config,
        build,
        family.cache(build, config),
        weights_bytes,
        memory.device_limit(device),
        dequantized=_largest_dequantized(model, build),
        products=products_of(model, mesh, build.activations, config.vocab_size),
    )
    memory.print_budget(plan, shape, device.device_kind)
    programs = Programs(blueprint, shape, pools_only)
    return Prepared(blueprint, model, shape, plan, configuration_key(programs, mesh), partial(Runner, programs))


def _with_native_packed(
    blueprint: Blueprint[CausalLM], engine_config: EngineConfig, checkpoint: Checkpoint, folders: Folders
) -> Blueprint[CausalLM]:
    """Itself, where native code multiplies its packed weights or it has none; else what is fastest without."""
    build, mesh = blueprint.build, blueprint.build.mesh
    if build.packed == "xla" or has_native_packed(blueprint.abstract_model(), folders):
        return blueprint
    build, weights = replace(build, packed="xla"), blueprint.weights
    if keeps_bits(engine_config, checkpoint, mesh.devices.flat[0].platform, mesh.size):
        weights = None
    return replace(blueprint, build=build, weights=weights)


def _prepare_encoder(
    engine_config: EngineConfig, checkpoint: Checkpoint, mesh: Mesh, family: type[TextModel], config: ModelConfig
) -> Prepared:
    """The same for an encoder: on one device, with weights as they are, and without a cache."""
    check_encoder(engine_config, checkpoint)
    engine_config, device = with_trained_length(engine_config, checkpoint, config), mesh.devices.flat[0]
    plain = Build(jnp.dtype("float32"), jnp.dtype("float32"), mesh)
    elements = _elements_per_device(Blueprint(family, config, plain).abstract_model(), mesh)
    dtype = platform.resolve_dtype(engine_config.dtype, config.dtype, device.platform, elements)
    build = Build(dtype, platform.activation_dtype(dtype, device.platform), mesh)
    logger.info("weights in %s, activations in %s, no KV cache", build.dtype, build.activations)
    shape, plan = plan_encoder(engine_config, config, build, elements * dtype.itemsize, memory.device_limit(device))
    memory.print_budget(plan, shape, device.device_kind)
    blueprint = Blueprint(family, config, build)
    programs = EncoderPrograms(blueprint, shape)
    key = configuration_key(programs, mesh)
    return Prepared(blueprint, blueprint.abstract_model(), shape, plan, key, partial(EncoderRunner, programs))


def check_encoder(engine_config: EngineConfig, checkpoint: Checkpoint) -> None:
    """Raise StartupError where an encoder cannot be served with these flags, or from such files."""
    if checkpoint.format == "converted":
        raise ConfigError(f"{checkpoint.path} is converted, which encoders are not; serve the model it was made of")
    if engine_config.tensor_parallel_size > 1 or engine_config.expert_parallel_size > 1:
        raise ConfigError("an encoder is served on one device; leave --tensor-parallel-size out")
    if (
        detect(checkpoint.config(), engine_config.quantization, checkpoint.tensors(), source=checkpoint.path)
        is not None
    ):
        raise ConfigError(
            "an encoder is served with weights in floating point; leave --quantization out, and take a checkpoint "
            "that is not quantized"
        )


def with_trained_length(engine_config: EngineConfig, checkpoint: Checkpoint, config: ModelConfig) -> EngineConfig:
    """The configuration with the length that a model for embeddings was trained for, in place of an automatic one."""
    embedder = Embedder.of(checkpoint.config(), source=checkpoint.path)
    if embedder is None or embedder.max_tokens is None or engine_config.max_model_len is not None:
        return engine_config
    longest = min(embedder.max_tokens, config.max_position_embeddings)
    return msgspec.structs.replace(engine_config, max_model_len=longest)


def _build(
    engine_config: EngineConfig,
    config: ModelConfig,
    family: type[CausalLM],
    mesh: Mesh,
    checkpoint: Checkpoint,
    weights: WeightPlan | None,
    folders: Folders,
    *,
    generates: bool,
) -> Build:
    """The dtypes and kernels that the flags and the device lead to."""
    kind = mesh.devices.flat[0].platform
    plain = Build(jnp.dtype("float32"), jnp.dtype("float32"), mesh)
    elements = _elements_per_device(Blueprint(family, config, plain, weights).abstract_model(), mesh)
    dtype = platform.resolve_dtype(engine_config.dtype, config.dtype, kind, elements)
    build = Build(dtype, platform.activation_dtype(dtype, kind), mesh, kv_cache=engine_config.kv_cache_dtype)
    if kind == "cpu" and mesh.size == 1:
        is_exact = dtype == jnp.float32 and _is_exact_in_16_bits(engine_config, config, checkpoint)
        in_16_bits = is_exact or dtype == jnp.bfloat16
        with attention_compiled_beside(build, config, folders):
            weights_kind = "uint16" if in_16_bits else "float32"
            is_native = dtype in (jnp.float32, jnp.bfloat16) and has_native_products(weights_kind, folders)
        if is_native:
            is_widened = dtype == jnp.bfloat16 and not multiplies_bfloat16()
            build = replace(build, products="native", bf16_as_uint16=is_exact or is_widened)
        is_small_batch = dtype == jnp.bfloat16 or (is_exact and platform.fits_twice(6 * elements))
        # Steps of few tokens are for answers.
        build = replace(build, small_batch=generates and is_small_batch and not build.bf16_as_uint16)
        if weights is not None and has_native_code() and checkpoint.format != "converted":
            build = replace(build, packed="native")
    if engine_config.quantization == "gguf-a8":
        build = replace(build, gguf_activations="int8")
    build = with_native_attention(build, config, folders)
    rounded = f"quantized ({weights.quantization.name}), the others in " if weights is not None else "in "
    logger.info(
        "weights %s%s, activations in %s, KV cache in %s; products: %s, attention: %s",
        rounded,
        "float32, held in 16 bits" if build.bf16_as_uint16 and dtype == jnp.float32 else build.dtype,
        build.activations,
        kv_cache_name(build),
        build.products,
        build.attention,
    )
    return build


def kv_cache_name(build: Build) -> str:
    if build.kv_cache != "auto":
        return build.kv_cache
    return "bfloat16" if build.kv_dtype == jnp.uint16 else build.kv_dtype.name


def _is_exact_in_16_bits(engine_config: EngineConfig, config: ModelConfig, checkpoint: Checkpoint) -> bool:
    """Whether every matrix is bfloat16 and its bits hold all of the float32 model; without weights, as declared."""
    matrices = [info for info in checkpoint.tensors().values() if len(info.shape) > 1]
    declared = engine_config.load_format != "dummy" and config.dtype == "bfloat16"
    return declared and all(info.dtype == "bfloat16" for info in matrices)


def check_parallel(config: ModelConfig, parts: int, expert_parts: int = 1) -> None:
    """Raise ConfigError where so many devices cannot share the model's layers, or its experts in so many parts."""
    kv_heads = sorted({config.of_layer(layer).num_kv_heads for layer in range(config.num_layers)})
    has_dense = config.mixture is None or config.mixture.dense_layers
    inner = config.intermediate_size if has_dense else parts
    if config.num_heads % parts or any(kv % parts and parts % kv for kv in kv_heads) or inner % parts:
        raise ConfigError(
            f"--tensor-parallel-size {parts} does not divide this model: it has {config.num_heads} heads, "
            f"{' or '.join(map(str, kv_heads))} KV heads and an intermediate size of {config.intermediate_size}; "
            "choose a common divisor"
        )
    if config.mixture is not None:
        _check_experts(config.mixture, parts, expert_parts)
    elif expert_parts > 1:
        raise ConfigError(f"--expert-parallel-size is {expert_parts} but this model has no experts; leave it out")


def _check_experts(mixture: MixtureConfig, parts: int, expert_parts: int) -> None:
    if mixture.num_experts % expert_parts:
        raise ConfigError(
            f"--expert-parallel-size {expert_parts} does not divide this model's {mixture.num_experts} experts; "
            "choose a divisor"
        )
    inner_parts, shared = parts // expert_parts, mixture.shared_intermediate_size
    if mixture.intermediate_size % inner_parts or shared % parts:
        raise ConfigError(
            f"--tensor-parallel-size {parts} with --expert-parallel-size {expert_parts} splits each expert "
            f"{inner_parts} ways, which must divide its inner size of {mixture.intermediate_size}"
            + (f", and the shared expert's {shared} by {parts}" if shared else "")
            + "; raise --expert-parallel-size, or choose fewer devices"
        )


def _elements_per_device(model: nnx.Module, mesh: Mesh) -> int:
    """Numbers in the shares of all parameters that one device holds."""
    return sum(math.prod(p.sharding(mesh).shard_shape(p.shape)) for p in parameters(model))


def _bytes_per_device(model: CausalLM, mesh: Mesh, of: jnp.dtype | None = None) -> int:
    """Bytes of the shares of all parameters, or of those of one type, that one device holds."""
    return sum(
        math.prod(p.sharding(mesh).shard_shape(p.shape)) * jnp.dtype(p.dtype).itemsize
        for p in parameters(model)
        if of is None or p.dtype == of
    )


def _largest_dequantized(model: CausalLM, build: Build) -> int:
    """Bytes of the largest quantized weight on a device, of experts that of one, in the type of the activations."""
    packed = [math.prod(p.packed) for p in parameters(model) if p.packed and build.packed != "native"]
    shares = [(p, p.sharding(build.mesh).shard_shape(p.shape)) for p in parameters(model) if p.part == "values"]
    sizes = [
        math.prod(shape[1:] if isinstance(p.scheme, OfExperts) else shape) * (2 if p.dtype == jnp.uint8 else 1)
        for p, shape in shares
    ]
    return max([*sizes, *packed], default=0) * build.activations.itemsize
