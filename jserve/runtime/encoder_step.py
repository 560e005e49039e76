"""The step of a model whose tokens see each other both ways: whole texts of about one length, as one function for each
bucket.

A bucket is S texts, each padded to L places, of which the texts see their own and no others. There is no cache and no
state: a step returns one vector a text.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jserve.batch import TextContext, Weights
from jserve.config import EngineConfig, ModelConfig
from jserve.errors import ConfigError, OutOfMemoryError
from jserve.layers.bidirectional import QUERY_BLOCK
from jserve.layers.build import Build
from jserve.layers.dense import after_pooling
from jserve.layers.rope import inverse_frequencies, rope_table
from jserve.models.encoder import TextLayer, TextModel
from jserve.protocol import Pooling, Request
from jserve.runtime import memory
from jserve.runtime.shapes import EngineShape, steps

POOLINGS: tuple[Pooling, ...] = ("mean", "cls", "last")
"""By their numbers on the device."""
_SHORTEST = 16


@dataclass(frozen=True, slots=True, order=True)
class EncodeBucket:
    """Padded shape of one step, ordered by length."""

    length: int
    """L"""
    texts: int
    """S"""

    @property
    def tokens(self) -> int:
        return self.length * self.texts

    def __str__(self) -> str:
        return f"encode {self.texts}x{self.length}"


def encode_buckets(shape: EngineShape) -> list[EncodeBucket]:
    """All buckets, the shortest first. The last length holds the longest text, even where a step has fewer tokens."""
    longest = -(-shape.max_model_len // _SHORTEST) * _SHORTEST
    if longest > QUERY_BLOCK:
        longest = -(-longest // QUERY_BLOCK) * QUERY_BLOCK
    buckets = []
    for length in steps(_SHORTEST, longest, 2):
        most = max(1, min(shape.max_num_seqs, shape.max_num_batched_tokens // length))
        buckets += [EncodeBucket(length, texts) for texts in steps(1, most, 4)]
    return buckets


def make_encode(
    model: TextModel, bucket: EncodeBucket, max_model_len: int
) -> Callable[[Weights, jax.Array], jax.Array]:
    """The function to compile for one bucket: (weights, packed i32 of `pack`) to f32[S, E], of any length.

    `model` is abstract; `weights` are its leaves. What texts of no tokens get has no meaning.
    """
    graph, abstract = nnx.split(model, nnx.Param)
    structure = jax.tree.structure(abstract)
    texts, length, config = bucket.texts, bucket.length, model.config
    ropes = [inverse_frequencies(rope, config.head_dim, max_model_len) for rope in config.ropes]

    def encode(weights: Weights, packed: jax.Array) -> jax.Array:
        built = nnx.merge(graph, jax.tree.unflatten(structure, weights))
        lengths, pooling, seconds = packed[: 3 * texts].reshape(3, texts)
        place = jnp.arange(length)
        positions = jnp.tile(place, texts)
        tables = tuple(rope_table(positions, frequencies, factor) for frequencies, factor in ropes)
        context = TextContext(positions, lengths, seconds, tables)
        x = built.embed_texts(packed[3 * texts :], context)
        for layer in built.layers:
            x = _apply_layer(*nnx.split(layer), x, context)
        final = built.final_norm(x).reshape(texts, length, -1).astype(jnp.float32)
        shares = _shares(place, lengths[:, None], pooling[:, None])
        pooled = jnp.einsum("sl,sle->se", shares, final, precision=jax.lax.Precision.HIGHEST)
        return after_pooling(built.dense, pooled)

    return encode


def _shares(place: jax.Array, lengths: jax.Array, pooling: jax.Array) -> jax.Array:
    """f32[S, L]: how much of each place is in the vector of its text. place: [L]; lengths, pooling: [S, 1]."""
    chosen = jnp.where(pooling == POOLINGS.index("cls"), place == 0, place == lengths - 1)
    chosen = jnp.where(pooling == POOLINGS.index("mean"), place < lengths, chosen).astype(jnp.float32)
    return chosen / jnp.maximum(jnp.sum(chosen, axis=1, keepdims=True), 1)


def _apply_layer_untraced(
    graph: nnx.GraphDef[TextLayer], weights: nnx.State, x: jax.Array, context: TextContext
) -> jax.Array:
    return nnx.merge(graph, weights).encode(x, context)


_apply_layer = jax.jit(_apply_layer_untraced, static_argnums=0)  # traced once, and unrolled


def packed_size(bucket: EncodeBucket) -> int:
    """Integers in the vector of a step."""
    return 3 * bucket.texts + bucket.tokens


def pack(requests: list[Request], bucket: EncodeBucket) -> np.ndarray:
    """i32[3 S + S L]: lengths, numbers of `POOLINGS`, places of second texts, and the token ids of each text, padded
    with zeros.
    """
    packed = np.zeros(packed_size(bucket), np.int32)
    lengths, poolings, seconds = packed[: 3 * bucket.texts].reshape(3, bucket.texts)
    tokens = packed[3 * bucket.texts :].reshape(bucket.texts, bucket.length)
    for row, request in enumerate(requests):
        lengths[row] = len(request.token_ids)
        poolings[row] = POOLINGS.index(request.pooling)
        seconds[row] = request.second_text
        tokens[row, : len(request.token_ids)] = request.token_ids
    return packed


def plan_encoder(
    engine_config: EngineConfig, config: ModelConfig, build: Build, weights: int, limit: int
) -> tuple[EngineShape, memory.MemoryPlan]:
    """Resolve every automatic size, as `memory.plan_shape` does for decoders; there are no pages and no slots.

    Raises OutOfMemoryError or ConfigError with the numbers and the flag where something does not fit.
    """
    on_cpu = build.mesh.devices.flat[0].platform == "cpu"
    default = memory.CPU_SIZES if on_cpu else memory.GPU_SIZES
    longest = engine_config.max_model_len or config.max_position_embeddings
    if longest > config.max_position_embeddings:
        raise ConfigError(
            f"--max-model-len is {longest} but the model has {config.max_position_embeddings} positions; lower it"
        )
    shape = EngineShape(
        max_num_seqs=engine_config.max_num_seqs or default.max_num_seqs,
        max_num_batched_tokens=engine_config.max_num_batched_tokens or default.max_num_batched_tokens,
        max_model_len=longest,
        page_size=1,
        num_pages=0,
        vocab_size=config.vocab_size,
    )
    temporaries = max(_temporaries(config, build, bucket) for bucket in encode_buckets(shape))
    margin = 0 if on_cpu else memory.MARGIN
    if weights + temporaries + margin > limit:
        raise OutOfMemoryError(
            f"the encoder does not fit: of {memory.gib(limit)}, weights take {memory.gib(weights)}, temporaries "
            f"{memory.gib(temporaries)} and the margin {memory.gib(margin)}; lower --max-num-batched-tokens or "
            "--max-model-len"
        )
    return shape, memory.MemoryPlan(limit, weights, temporaries, 0, margin, kv_pages=0, page_bytes=1)


def _temporaries(config: ModelConfig, build: Build, bucket: EncodeBucket) -> int:
    """Bytes that a step holds at most: scores beside their softmax, and a few copies of the residual or the inner
    values of a block in float32; two steps' inputs and outputs are small beside them.
    """
    block = min(bucket.length, QUERY_BLOCK)
    scores = 3 * 4 * bucket.texts * config.num_heads * block * bucket.length
    wide = max(config.intermediate_size, 4 * config.hidden_size)
    return scores + bucket.tokens * (4 * 4 * config.hidden_size + (8 + build.activations.itemsize) * wide)
