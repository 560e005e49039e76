"""Logits of every position of a prompt, by one compiled step over a loaded checkpoint: an engine without the rest."""

from contextlib import closing
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jserve.batch import EngineState
from jserve.checkpoint import open_checkpoint
from jserve.config import EngineConfig
from jserve.runtime import platform
from jserve.runtime.prepare import Prepared, prepare
from jserve.runtime.programs import Programs
from jserve.runtime.shapes import Bucket
from jserve.runtime.step import StepLayout, make_step
from jserve.weights.load import load

PAGE = 16


def prepared_and_weights(
    folder: Path,
    quantization: str | None = None,
    parts: int = 1,
    kv_cache_dtype: str = "auto",
    expert_parts: int = 1,
) -> tuple[Prepared, tuple[jax.Array, ...]]:
    engine_config = EngineConfig(
        model=str(folder),
        dtype="float32",
        quantization=quantization,
        kv_cache_dtype=kv_cache_dtype,
        tensor_parallel_size=parts,
        expert_parallel_size=expert_parts,
        max_num_seqs=2,
        max_num_batched_tokens=64,
        page_size=PAGE,
        kv_cache_memory_bytes=4 << 20,
    )
    with closing(open_checkpoint(folder)) as checkpoint:
        mesh = platform.make_mesh(parts, expert_parts)
        prepared = prepare(engine_config, checkpoint, mesh)
        return prepared, load(prepared.model, checkpoint, mesh)


def prefill_logits(
    folder: Path,
    prompt: list[int],
    quantization: str | None = None,
    parts: int = 1,
    kv_cache_dtype: str = "auto",
    expert_parts: int = 1,
) -> np.ndarray:
    """f32[len(prompt), V]. The prompt has at most 64 tokens."""
    prepared, weights = prepared_and_weights(folder, quantization, parts, kv_cache_dtype, expert_parts)
    bucket = Bucket(len(prompt), 1)
    layout = StepLayout(bucket, prepared.shape.page_updates(bucket))
    step = make_step(prepared.model, prepared.config, prepared.shape, bucket)
    graph, state = nnx.split(prepared.model, nnx.Param)
    structure = jax.tree.structure(state)

    def logits(weights: tuple[jax.Array, ...], state: EngineState, packed: jax.Array) -> jax.Array:
        _, _, hidden = step(weights, state, jnp.zeros(2, jnp.int32), packed)
        return nnx.merge(graph, jax.tree.unflatten(structure, weights)).logits(hidden)

    none = np.full(3 * layout.updates, prepared.shape.max_num_seqs)
    packed = np.array([*prompt, 0, 0, len(prompt), len(prompt), *none], np.int32)
    abstract = Programs(prepared.blueprint, prepared.shape).abstract_state()
    table = np.tile(np.arange(abstract.page_table.shape[1], dtype=np.int32), (abstract.page_table.shape[0], 1))
    pages = [jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding) for leaf in abstract.leaves[:-1]]
    return np.asarray(jax.jit(logits)(weights, abstract.like((*pages, jnp.asarray(table))), packed))
