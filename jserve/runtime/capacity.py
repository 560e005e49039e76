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
from jserve.models.bert import Encoder
from jserve.models.registry import resolve, resolve_encoder
from jserve.quant import detect
from jserve.runtime import memory, platform
from jserve.runtime.encoder_runner import EncoderPrograms
from jserve.runtime.encoder_step import plan_encoder
from jserve.runtime.load_model import check_weights
from jserve.runtime.prepare import check_encoder, check_parallel, with_trained_length
from jserve.runtime.programs import Programs
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
        left = plan.limit - plan.weights - plan.temporaries - plan.sampling - plan.margin
        return self.shape.tokens_in(left // plan.page_bytes)


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
        found = np.empty(self.parts, object)
        found[:] = [_PaperDevice(self.kind)] * self.parts
        return found

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


def estimate(checkpoint: Checkpoint, asked: EngineConfig, device: str) -> Capacity:
    """Plan a start on `asked.tensor_parallel_size` devices of a kind, without weights.

    Raises StartupError, with the words of a real start, where the model would not run there.
    """
    parts = asked.tensor_parallel_size
    kind = "cpu" if device == "cpu" else "gpu"
    encoder = resolve_encoder(checkpoint.config(), source=checkpoint.path)
    if encoder is not None:
        return _estimate_encoder(checkpoint, asked, device, *encoder)
    family, config = resolve(checkpoint.config(), source=checkpoint.path)
    asked = with_trained_length(asked, checkpoint, config)
    check_parallel(config, parts, asked.expert_parallel_size)
    paper = _PaperMesh(kind, parts, asked.expert_parallel_size)
    plain = Build(jnp.dtype("float32"), jnp.dtype("float32"), paper)  # type: ignore[arg-type]
    shape = EngineShape(1, 2, 1, 1, 1, config.vocab_size)
    quantization = detect(checkpoint.config(), asked.quantization, checkpoint.tensors(), source=checkpoint.path)
    weights = WeightPlan.of(quantization, checkpoint.tensors())
    programs = Programs(family, config, plain, shape, weights)
    model = programs.abstract_model()
    wanted = parameters(model)
    check_weights(model, programs, checkpoint)
    mesh = AbstractMesh(tuple(paper.shape.values()), TENSOR_AXIS)
    elements, packed = 0, 0
    for parameter in wanted:
        size = math.prod(parameter.sharding(mesh).shard_shape(parameter.shape))  # type: ignore[arg-type]
        if parameter.part:
            packed += size * jnp.dtype(parameter.dtype).itemsize
        else:
            elements += size
    dtype = platform.resolve_dtype(asked.dtype, config.dtype, kind, elements)
    activations = platform.activation_dtype(dtype, kind)
    build = Build(dtype, activations, paper, kv_cache=asked.kv_cache_dtype)  # type: ignore[arg-type]
    limit = _limit(asked, device)
    cache = family.cache(build, config)
    shape, plan = memory.plan_shape(asked, config, build, cache, packed + elements * dtype.itemsize, limit)
    of_group = plan.page_bytes * parts // shape.page_size
    beyond = of_group * shape.windows.count(None)
    return Capacity(config, dtype.name, plan, shape, of_group * shape.num_groups, beyond)


def _estimate_encoder(
    checkpoint: Checkpoint, asked: EngineConfig, device: str, family: type[Encoder], config: ModelConfig
) -> Capacity:
    check_encoder(asked, checkpoint)
    asked = with_trained_length(asked, checkpoint, config)
    kind = "cpu" if device == "cpu" else "gpu"
    paper = _PaperMesh(kind, 1, 1)
    plain = Build(jnp.dtype("float32"), jnp.dtype("float32"), paper)  # type: ignore[arg-type]
    programs = EncoderPrograms(family, config, plain, EngineShape(1, 1, 1, 1, 0, config.vocab_size))
    model = programs.abstract_model()
    check_weights(model, programs, checkpoint)
    elements = sum(math.prod(parameter.shape) for parameter in parameters(model))
    dtype = platform.resolve_dtype(asked.dtype, config.dtype, kind, elements)
    build = Build(dtype, platform.activation_dtype(dtype, kind), paper)  # type: ignore[arg-type]
    shape, plan = plan_encoder(asked, config, build, elements * dtype.itemsize, _limit(asked, device))
    return Capacity(config, dtype.name, plan, shape, 0, 0)


def _limit(asked: EngineConfig, device: str) -> int:
    """Bytes of a device that a server uses."""
    memory_bytes = device_memory(device)
    return memory_bytes if device == "cpu" else int(memory_bytes * asked.gpu_memory_utilization)
