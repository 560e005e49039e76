"""What a model takes on devices that need not be here: weights, KV bytes per token, tokens that fit.

The same plan that a start makes (`memory.plan_shape`), over a mesh that exists on paper.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh

from jserve.checkpoint import Checkpoint
from jserve.config import EngineConfig, ModelConfig
from jserve.errors import ConfigError
from jserve.layers.build import EXPERT_AXIS, INNER_AXIS, TENSOR_AXIS, Build
from jserve.layers.quantized import WeightPlan
from jserve.models.blueprint import Blueprint
from jserve.models.encoder import TextModel
from jserve.models.registry import resolve_encoder
from jserve.runtime import memory, platform
from jserve.runtime.autotuning import products_of
from jserve.runtime.encoder_step import plan_encoder
from jserve.runtime.file_bits import quantization_of
from jserve.runtime.load_model import check_weights
from jserve.runtime.look_alike import resolve_decoder
from jserve.runtime.prepare import check_encoder, check_parallel, with_trained_length
from jserve.runtime.shapes import EngineShape
from jserve.weights.load import parameters

MIB = 1 << 20
GPU_MEMORY = {
    "b200": 183_359,
    "h200": 143_771,
    "h100": 81_559,
    "a100-80": 81_920,
    "a100-40": 40_960,
    "l40s": 46_068,
    "l4": 23_034,
    "rtx5090": 32_607,
    "rtx4090": 24_564,
    "rtx3090": 24_576,
}
"""MiB that `nvidia-smi` reports as the total of one device."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a server would do: `plan` is per device, `tokens` have room in its KV cache. `kv_bytes_per_token` is of
    all devices together, 0 of an encoder, which has no cache; and so is what a token takes that lies before the
    windows of layers that have some.
    """

    config: ModelConfig
    dtype: str
    plan: memory.MemoryPlan
    shape: EngineShape
    kv_bytes_per_token: int
    kv_bytes_before_windows: int

    @property
    def tokens(self) -> int:
        return self.shape.tokens_in(self.shape.num_pages)

    @property
    def tokens_that_fit(self) -> int:
        """Tokens that what is left of the memory could hold; a server takes no more than it can use."""
        plan = self.plan
        if not self.kv_bytes_per_token:
            return 0
        return self.shape.tokens_in((plan.limit - plan.needed) // plan.page_bytes)


@dataclass(frozen=True)
class _PaperDevice:
    platform: str


@dataclass(frozen=True)
class _PaperMesh:
    """As much of a mesh as planning looks at."""

    kind: str
    parts: int
    expert_parts: int

    @cached_property
    def devices(self) -> np.ndarray:
        devices = np.empty(self.parts, object)
        devices[:] = [_PaperDevice(self.kind)] * self.parts
        return devices

    @cached_property
    def shape(self) -> dict[str, int]:
        return {EXPERT_AXIS: self.expert_parts, INNER_AXIS: self.parts // self.expert_parts}

    @property
    def size(self) -> int:
        return self.parts


def device_memory(device: str) -> int:
    """Bytes of one device by name, or of a size such as 24GiB. Raises ConfigError naming those that are known."""
    if device == "cpu":
        return platform.free_host_memory()
    if device in GPU_MEMORY:
        return GPU_MEMORY[device] * MIB
    raise ConfigError(f"--device {device!r} is not known; known are cpu, {', '.join(GPU_MEMORY)}")


def estimate(checkpoint: Checkpoint, engine_config: EngineConfig, device: str) -> Capacity:
    """Plan a start on `engine_config.tensor_parallel_size` devices of a kind, without weights.

    Raises StartupError, with the words of a real start, where the model would not run there.
    """
    parts = engine_config.tensor_parallel_size
    kind = "cpu" if device == "cpu" else "gpu"
    encoder = resolve_encoder(checkpoint.config(), source=checkpoint.path)
    if encoder is not None:
        return _estimate_encoder(checkpoint, engine_config, device, *encoder)
    family, config = resolve_decoder(checkpoint)
    engine_config = with_trained_length(engine_config, checkpoint, config)
    check_parallel(config, parts, engine_config.expert_parallel_size)
    paper = _PaperMesh(kind, parts, engine_config.expert_parallel_size)
    plain = Build(jnp.dtype("float32"), jnp.dtype("float32"), paper)  # type: ignore[arg-type]
    quantization = quantization_of(engine_config, checkpoint, kind, parts)
    weights = WeightPlan.of(quantization, checkpoint.tensors())
    blueprint = Blueprint(family, config, plain, weights)
    model = blueprint.abstract_model()
    wanted = parameters(model)
    check_weights(model, blueprint, checkpoint)
    mesh = AbstractMesh(tuple(paper.shape.values()), TENSOR_AXIS)
    elements, packed = 0, 0
    for parameter in wanted:
        size = math.prod(parameter.sharding(mesh).shard_shape(parameter.shape))  # type: ignore[arg-type]
        if parameter.part:
            packed += size * jnp.dtype(parameter.dtype).itemsize
        else:
            elements += size
    dtype = platform.resolve_dtype(engine_config.dtype, config.dtype, kind, elements)
    activations = platform.activation_dtype(dtype, kind)
    build = Build(dtype, activations, paper, kv_cache=engine_config.kv_cache_dtype)  # type: ignore[arg-type]
    limit = _limit(engine_config, device)
    cache = family.cache(build, config)
    products = products_of(model, mesh, activations, config.vocab_size)
    weights_bytes = packed + elements * dtype.itemsize
    shape, plan = memory.plan_shape(engine_config, config, build, cache, weights_bytes, limit, products=products)
    of_group = plan.page_bytes * parts // shape.page_size
    beyond = of_group * shape.windows.count(None)
    return Capacity(config, dtype.name, plan, shape, of_group * shape.num_groups, beyond)


def _estimate_encoder(
    checkpoint: Checkpoint, engine_config: EngineConfig, device: str, family: type[TextModel], config: ModelConfig
) -> Capacity:
    check_encoder(engine_config, checkpoint)
    engine_config = with_trained_length(engine_config, checkpoint, config)
    kind = "cpu" if device == "cpu" else "gpu"
    paper = _PaperMesh(kind, 1, 1)
    plain = Build(jnp.dtype("float32"), jnp.dtype("float32"), paper)  # type: ignore[arg-type]
    blueprint = Blueprint(family, config, plain)
    model = blueprint.abstract_model()
    check_weights(model, blueprint, checkpoint)
    elements = sum(math.prod(parameter.shape) for parameter in parameters(model))
    dtype = platform.resolve_dtype(engine_config.dtype, config.dtype, kind, elements)
    build = Build(dtype, platform.activation_dtype(dtype, kind), paper)  # type: ignore[arg-type]
    shape, plan = plan_encoder(engine_config, config, build, elements * dtype.itemsize, _limit(engine_config, device))
    return Capacity(config, dtype.name, plan, shape, 0, 0)


def _limit(engine_config: EngineConfig, device: str) -> int:
    """Bytes of a device that a server uses."""
    memory_bytes = device_memory(device)
    return memory_bytes if device == "cpu" else int(memory_bytes * engine_config.gpu_memory_utilization)
