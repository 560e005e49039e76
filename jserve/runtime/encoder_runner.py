"""The programs of an encoder, and the runner that takes batches of texts through them.

`dispatch` returns without waiting and `collect` waits, as `runner.Runner`'s do; nothing stays on the device between
two steps but the weights.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jserve.batch import Weights
from jserve.models.blueprint import Blueprint
from jserve.models.encoder import TextModel
from jserve.protocol import Request
from jserve.runtime.encoder_step import EncodeBucket, encode_buckets, make_encode, pack, packed_size
from jserve.runtime.executables import ExecutableStore, Program
from jserve.runtime.program_keys import Encode, ProgramKey
from jserve.runtime.program_table import ProgramTable
from jserve.runtime.shapes import EngineShape
from jserve.weights.load import parameters


@dataclass(frozen=True, slots=True)
class EncoderPrograms:
    """Makes the programs of one encoder; arguments are abstract until the engine calls them."""

    blueprint: Blueprint[TextModel]
    shape: EngineShape

    def required(self, *, early: bool = False) -> list[Program]:
        """All, those of the fewest tokens first; `early` is the one that holds any one text."""
        buckets = encode_buckets(self.shape)
        longest = next(bucket for bucket in buckets if bucket.length == buckets[-1].length)
        chosen = [longest] if early else sorted(buckets, key=lambda bucket: bucket.tokens)
        return [self.encode(bucket) for bucket in chosen]

    def optional(self) -> list[Program]:
        """None: those that are not required early are required later."""
        return []

    def encode(self, bucket: EncodeBucket) -> Program:
        """(weights, packed) to vectors: see `encoder_step.make_encode`."""

        def lower() -> jax.stages.Lowered:
            model, mesh = self.blueprint.abstract_model(), self.blueprint.build.mesh
            whole = NamedSharding(mesh, PartitionSpec())
            weights: Any = tuple(
                jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=p.sharding(mesh)) for p in parameters(model)
            )
            packed: Any = jax.ShapeDtypeStruct((packed_size(bucket),), jnp.int32, sharding=whole)
            platform = mesh.devices.flat[0].platform
            traced = jax.jit(make_encode(model, bucket, self.shape.max_model_len), out_shardings=whole).trace(
                weights, packed
            )
            return traced.lower(lowering_platforms=("cuda" if platform == "gpu" else platform,))

        return Program(Encode(bucket), lower)


@dataclass(frozen=True, slots=True)
class LaunchedTexts:
    """A step on its way."""

    requests: list[Request]
    bucket: EncodeBucket
    vectors: jax.Array
    """f32[S, E]"""


class EncoderRunner:
    """Runs steps with the programs that are there; `table` may get more at any time, from any thread."""

    def __init__(self, programs: EncoderPrograms, store: ExecutableStore, mesh: jax.sharding.Mesh) -> None:
        self.shape = programs.shape
        self.table = ProgramTable(programs, store, mesh, self._take)
        self._steps: dict[EncodeBucket, jax.stages.Compiled] = {}
        self._weights: Weights = ()

    @property
    def lengths(self) -> tuple[int, ...]:
        """What texts are padded to, ascending."""
        return tuple(sorted({bucket.length for bucket in encode_buckets(self.shape)}))

    def _take(self, key: ProgramKey, compiled: jax.stages.Compiled) -> None:
        if isinstance(key, Encode):
            self._steps = {**self._steps, key.bucket: compiled}

    def start(self, weights: Weights, small_batch: Weights = ()) -> None:
        """Take the weights; needs the required programs."""
        self._weights = weights

    def choose(self, length: int, count: int) -> EncodeBucket:
        """The bucket for texts that are padded to `length`, of which `count` wait: the shortest that is there, with
        as many texts as are needed, or as there can be.
        """
        fitting = [bucket for bucket in sorted(self._steps) if bucket.length >= length]
        shortest = [bucket for bucket in fitting if bucket.length == fitting[0].length]
        return next((bucket for bucket in shortest if bucket.texts >= count), shortest[-1])

    def dispatch(self, requests: list[Request], bucket: EncodeBucket) -> LaunchedTexts:
        """Start a step of at most as many texts as the bucket has."""
        vectors = self._steps[bucket](self._weights, pack(requests, bucket))
        vectors.copy_to_host_async()
        return LaunchedTexts(requests, bucket, vectors)

    def collect(self, launched: LaunchedTexts) -> list[bytes]:
        """Wait for a step's vectors, f32[E] each, in the order of its requests."""
        return [vector.tobytes() for vector in np.asarray(launched.vectors, "<f4")[: len(launched.requests)]]
