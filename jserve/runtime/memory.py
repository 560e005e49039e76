"""What goes where in device memory, decided before anything is loaded, and shown as a table.

KV pages get what is left of the limit after weights, the temporaries of the largest step, the sampling
state, the states that layers keep of sequences, and a margin. Nothing is allocated after ready.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from jserve.batch import CacheArray
from jserve.config import EngineConfig, ModelConfig
from jserve.errors import ConfigError, OutOfMemoryError
from jserve.layers.attention import kv_head_copies
from jserve.layers.build import Build
from jserve.log import writes_json
from jserve.runtime import prompt_read_step
from jserve.runtime.autotuning import Product, reserve
from jserve.runtime.layout import CacheLayout, choose_windows
from jserve.runtime.platform import free_host_memory
from jserve.runtime.shapes import EngineShape
from jserve.runtime.states import Cache, slot_arrays, state_bytes, state_temporaries
from jserve.schedule.groups import longest_sequence

logger = logging.getLogger(__name__)

GIB = 1 << 30
MARGIN = 256 << 20
"""For fragmentation and library workspaces on a GPU."""
CPU_KV_BYTES = 2 * GIB
"""KV pages on a CPU by default."""
KV_BYTES_FLAG = "--kv-cache-memory-bytes"


@dataclass(frozen=True, slots=True)
class DefaultSizes:
    """Sizes that depend on the kind of device, before the user's flags."""

    max_num_seqs: int
    max_num_batched_tokens: int
    page_size: int


CPU_SIZES = DefaultSizes(max_num_seqs=64, max_num_batched_tokens=256, page_size=32)
GPU_SIZES = DefaultSizes(max_num_seqs=256, max_num_batched_tokens=4096, page_size=64)


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes per device."""

    limit: int
    weights: int
    temporaries: int
    sampling: int
    margin: int
    kv_pages: int
    page_bytes: int
    states: int = 0
    """What layers keep of sequences in place of keys and values, in all slots and snapshots."""
    autotuning: int = 0
    """For what the compiler tries out while it compiles behind: see `autotuning.reserve`."""

    @property
    def needed(self) -> int:
        """All but KV pages."""
        return self.weights + self.temporaries + self.sampling + self.states + self.margin + self.autotuning

    @property
    def num_pages(self) -> int:
        return self.kv_pages // self.page_bytes


def page_bytes(cache: Cache, tensor_parallel: int, page_size: int) -> int:
    """Bytes of one page of all these layers, or lanes, on one device."""
    return page_size * sum(
        array.heads // (tensor_parallel if array.sharded else 1) * array.width * array.dtype.itemsize
        for layer in cache
        for array in layer
        if isinstance(array, CacheArray)
    )


def plan_shape(
    engine_config: EngineConfig,
    config: ModelConfig,
    build: Build,
    cache: Cache,
    weights: int,
    limit: int,
    *,
    dequantized: int = 0,
    products: Sequence[Product] = (),
) -> tuple[EngineShape, MemoryPlan]:
    """Resolve every automatic size. `weights` and `limit` are bytes on one device, and so is `dequantized`, what
    the largest quantized weight takes when a product writes it out; `products` are tried out on a GPU.

    Raises OutOfMemoryError or ConfigError with the numbers and the flag where something does not fit.
    """
    _check_kv_cache(engine_config, cache)
    _check_states(cache, build.tensor_parallel)
    on_cpu = build.mesh.devices.flat[0].platform == "cpu"
    default = CPU_SIZES if on_cpu else GPU_SIZES
    longest = _longest(engine_config, config)
    seqs = engine_config.max_num_seqs or default.max_num_seqs
    tokens = engine_config.max_num_batched_tokens or max(default.max_num_batched_tokens, 2 * seqs)
    if tokens < seqs:
        raise ConfigError(
            f"--max-num-batched-tokens is {tokens} but every one of --max-num-seqs {seqs} sequences needs one "
            "token a step; raise the one or lower the other"
        )
    size = _page_size(engine_config, config, longest, default.page_size)
    windows = choose_windows(config.layer_windows, alike=len(set(cache)) == 1)
    lanes = CacheLayout.of(config.layer_windows, windows).of_lanes(cache)
    shape = EngineShape(seqs, tokens, longest, size, 0, config.vocab_size, min_rows=2, windows=windows)
    plan = MemoryPlan(
        limit=limit,
        weights=weights,
        temporaries=estimate_temporaries(config, build, shape)
        + state_temporaries(cache, build.tensor_parallel, seqs, tokens)
        + dequantized,
        sampling=seqs * config.vocab_size * 7,
        margin=0 if on_cpu else MARGIN,
        kv_pages=0,
        page_bytes=page_bytes(lanes, build.tensor_parallel, size),
        autotuning=0 if on_cpu else reserve(products, _most_tokens(shape), _most_rows(shape), build.activations),
    )
    if slot_arrays(cache):
        shape, plan = _with_states(engine_config, plan, shape, state_bytes(cache, build.tensor_parallel), on_cpu)
    pages = _choose_pages(engine_config, plan, shape, on_cpu)
    shape, plan = replace(shape, num_pages=pages), replace(plan, kv_pages=pages * plan.page_bytes)
    return _fit_length(engine_config, shape), plan


def _page_size(engine_config: EngineConfig, config: ModelConfig, longest: int, usual: int) -> int:
    """Chunks that a sequence can reach beyond hold whole pages."""
    chunks = (
        [size for size in config.windows if size is not None and size < longest] if config.windows_are_chunks else []
    )
    size = engine_config.page_size or min([usual, *(chunk & -chunk for chunk in chunks)])
    if any(chunk % size for chunk in chunks):
        raise ConfigError(
            f"--page-size is {size} but this model attends in chunks of {chunks[0]} tokens, which hold whole pages; "
            f"choose a power of two of at most {chunks[0] & -chunks[0]}"
        )
    return size


def _with_states(
    engine_config: EngineConfig, plan: MemoryPlan, shape: EngineShape, each: int, on_cpu: bool
) -> tuple[EngineShape, MemoryPlan]:
    """With `each` bytes of states for every slot, and for snapshots: four of each slot, or what fits into a quarter of
    what is left.
    """
    slots = shape.max_num_seqs * each
    left = plan.limit - plan.needed - slots
    if left < 0:
        raise OutOfMemoryError(
            f"the states of {shape.max_num_seqs} sequences need {gib(slots)} but only {gib(max(left + slots, 0))} are "
            f"left: {_numbers(plan)}; lower --max-num-seqs"
        )
    room = (min(left, CPU_KV_BYTES) if on_cpu else left) // 4
    snapshots = min(4 * shape.max_num_seqs, room // each) if engine_config.enable_prefix_caching else 0
    if engine_config.enable_prefix_caching and not snapshots:
        logger.warning("no memory is left for copies of states, so no prefix is shared; lower --max-num-seqs")
    return replace(shape, num_snapshots=snapshots), replace(plan, states=slots + snapshots * each)


def _check_states(cache: Cache, parts: int) -> None:
    if not any(isinstance(array, CacheArray) for layer in cache for array in layer):
        raise ConfigError("no layer of this model keeps keys and values, which is not supported; take another model")
    uneven = {array.heads for array in slot_arrays(cache) if array.sharded and array.heads % parts}
    if uneven:
        raise ConfigError(
            f"--tensor-parallel-size {parts} does not divide this model: its layers keep states of {min(uneven)} "
            "heads; choose a divisor"
        )


def _check_kv_cache(engine_config: EngineConfig, cache: Cache) -> None:
    paged = [[array for array in layer if isinstance(array, CacheArray)] for layer in cache]
    if engine_config.kv_cache_dtype != "auto" and not all(
        any(array.dtype.itemsize == 1 for array in layer) for layer in paged if layer
    ):
        raise ConfigError(
            f"--kv-cache-dtype {engine_config.kv_cache_dtype} is for models that keep keys and values; this one keeps "
            "something else in its cache, in the type of the activations: leave it out"
        )


def _longest(engine_config: EngineConfig, config: ModelConfig) -> int:
    longest = engine_config.max_model_len or config.max_position_embeddings
    if longest > config.max_position_embeddings:
        raise ConfigError(
            f"--max-model-len is {longest} but the model was made for {config.max_position_embeddings} "
            "positions; lower it, or add rope scaling to config.json"
        )
    return longest


def _choose_pages(engine_config: EngineConfig, plan: MemoryPlan, shape: EngineShape, on_cpu: bool) -> int:
    left = plan.limit - plan.needed
    # What windows have left is not lost: it stays for prompts that begin alike.
    useful = shape.max_num_seqs * shape.num_groups * shape.pages_per_sequence * plan.page_bytes
    fewest = 2 * shape.num_groups
    if engine_config.kv_cache_memory_bytes is not None:
        kv_bytes = engine_config.kv_cache_memory_bytes
        if kv_bytes > left:
            raise OutOfMemoryError(
                f"{KV_BYTES_FLAG} is {gib(kv_bytes)} but only {gib(max(left, 0))} are left: {_numbers(plan)}; "
                f"lower {KV_BYTES_FLAG}"
            )
    else:
        kv_bytes = min(left, useful, CPU_KV_BYTES) if on_cpu else min(left, useful)
    pages = kv_bytes // plan.page_bytes if kv_bytes > 0 else 0
    if pages < fewest:
        raise OutOfMemoryError(
            f"no memory is left for the KV cache: {_numbers(plan)}, and two pages need "
            f"{gib(fewest * plan.page_bytes)}; lower --max-num-batched-tokens or --max-num-seqs, use "
            "--tensor-parallel-size over more devices"
            + ("" if on_cpu else ", or raise --gpu-memory-utilization")
            + (f", or raise {KV_BYTES_FLAG}" if engine_config.kv_cache_memory_bytes is not None else "")
        )
    return pages


def _fit_length(engine_config: EngineConfig, shape: EngineShape) -> EngineShape:
    """One sequence must fit in the pool: shorten an automatic length, refuse one from a flag."""
    room = longest_sequence(shape.num_pages, shape.windows, shape.page_size, shape.max_model_len)
    if shape.max_model_len == room:
        return shape
    if engine_config.max_model_len is not None:
        raise OutOfMemoryError(
            f"--max-model-len is {shape.max_model_len:,} tokens but the KV cache has room for {room:,} "
            f"({shape.num_pages:,} pages of {shape.page_size}); lower it, or raise {KV_BYTES_FLAG}"
        )
    return replace(shape, max_model_len=room)


def estimate_temporaries(config: ModelConfig, build: Build, shape: EngineShape) -> int:
    """Bytes that the largest step and the sampler after it hold at most; the compiler's own number is checked.

    A step holds some copies of the residual, and the wider of its two blocks: float32 sums beside their
    rounded selves. The compiler's numbers for Llama-3.1-8B on an H200 are 1.4 to 2.2 times smaller.
    """
    parts, width = build.tensor_parallel, jnp.dtype(build.activations).itemsize
    tokens = _most_tokens(shape)
    latent = config.latent
    dim = config.largest_head_dim if latent is None else latent.rank + latent.rope_dim  # queries are absorbed
    heads = config.num_heads * dim
    kv_heads = config.num_kv_heads * kv_head_copies(config, parts) * dim
    attention = 4 * (heads + 2 * kv_heads) + 2 * width * heads
    mlp = (8 + width) * config.largest_intermediate_size
    # Two steps' last hidden states are there at once: one is read while the next is computed.
    widest = max(max(attention, mlp) // parts, _mixture_temporaries(config, build))
    step = tokens * (8 * width * config.hidden_size + widest)
    if build.mesh.devices.flat[0].platform == "cpu":
        # Attention in float32, and what XLA:CPU was seen to keep of each layer to the end of the step.
        kept = tokens * config.hidden_size + 512 * kv_heads
        step += 4 * (6 * tokens * heads + config.num_layers * kept)
    rows = shape.max_num_seqs
    # Split over the devices where they share the rows out evenly; small steps have too few rows for that.
    rows = max(rows // parts, min(rows, parts)) if rows % parts == 0 else rows
    logits = 4 * rows * config.vocab_size
    scored = 4 * max(1, min(prompt_read_step.SCORE_ROWS, tokens) // parts) * config.vocab_size
    return max(step, 2 * logits, 3 * scored) + logits


def _most_tokens(shape: EngineShape) -> int:
    """The most of any step."""
    return max(bucket.tokens for bucket in shape.buckets())


def _most_rows(shape: EngineShape) -> int:
    """Logits that any program computes at once."""
    return max(shape.max_num_seqs, shape.min_rows, prompt_read_step.SCORE_ROWS)


def _mixture_temporaries(config: ModelConfig, build: Build) -> int:
    """Bytes a token of what a mixture's products hold on one device: of each expert that it is sent to, the inner
    values and the result, and where XLA computes it the token once more.
    """
    mixture = config.mixture
    if mixture is None:
        return 0
    width = jnp.dtype(build.activations).itemsize
    inner = width * mixture.intermediate_size * build.expert_parallel // build.tensor_parallel
    return mixture.experts_per_token * (inner + (4 + width) * config.hidden_size)


def device_limit(device: jax.Device) -> int:
    """Bytes that this process may use on the device, those in use included."""
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    return free_host_memory()


def print_budget(plan: MemoryPlan, shape: EngineShape, device: str) -> None:
    """The budget as a small table on standard error, or as a line where that is for a machine."""
    if writes_json():
        sizes = {field.name: getattr(plan, field.name) for field in fields(plan)}
        logger.info("memory per device (%s): %s", device, _numbers(plan), extra={"bytes": sizes})
        return
    table = Table(title=f"Memory per device ({device})", title_justify="left")
    table.add_column("what")
    table.add_column("size", justify="right")
    table.add_column("holds")
    tokens = shape.tokens_in(shape.num_pages)
    longest = max(1, tokens // shape.max_model_len)
    rows = {
        "weights": (plan.weights, ""),
        "KV pages": (plan.kv_pages, f"{tokens:,} tokens = {longest} x {shape.max_model_len:,}"),
        "temporaries": (plan.temporaries, f"steps of up to {shape.max_num_batched_tokens:,} tokens"),
        "sampling": (plan.sampling, f"{shape.max_num_seqs} sequences"),
        "states": (plan.states, f"{shape.max_num_seqs} sequences, {shape.num_snapshots} snapshots"),
        "margin": (plan.margin, ""),
        "autotuning": (plan.autotuning, "what the compiler tries out"),
    }
    for name, (size, holds) in rows.items():
        if size:
            table.add_row(name, gib(size), holds)
    total = sum(size for size, _ in rows.values())
    table.add_section()
    table.add_row("total", gib(total), f"of {gib(plan.limit)} usable")
    Console(stderr=True).print(table)


def _numbers(plan: MemoryPlan) -> str:
    return (
        f"of {gib(plan.limit)}, weights take {gib(plan.weights)}, temporaries {gib(plan.temporaries)}, "
        f"sampling {gib(plan.sampling)} and the margin {gib(plan.margin)}"
        + (f"; states of sequences take {gib(plan.states)}" if plan.states else "")
        + (f", with {gib(plan.autotuning)} for what the compiler tries out" if plan.autotuning else "")
    )


def gib(size: int) -> str:
    """Bytes for a person."""
    return f"{size / GIB:.2f} GiB" if size >= GIB // 10 else f"{size / (1 << 20):.1f} MiB"
