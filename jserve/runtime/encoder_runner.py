"""The programs of an encoder, and the runner that takes batches of texts through them.

`dispatch` returns without waiting and `collect` waits, as `runner.Runner`'s do; nothing stays on the device between
two steps but the weights.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from jserve.batch import Weights
from jserve.config import ModelConfig
from jserve.layers.build import Build
from jserve.models.bert import Encoder
from jserve.protocol import ProgramCounts, Request
from jserve.runtime.encoder_step import EncodeBucket, encode_buckets, make_encode, pack, packed_size
from jserve.runtime.executables import ExecutableStore, Program
from jserve.runtime.shapes import EngineShape
from jserve.weights.load import parameters


@dataclass(frozen=True, slots=True)
class EncoderPrograms:
    """Makes the programs of one encoder; arguments are abstract until the engine calls them."""

    family: type[Encoder]
    config: ModelConfig
    build: Build
    shape: EngineShape

    def abstract_model(self) -> Encoder:
        """The model without arrays."""
        return nnx.eval_shape(partial(self.family, self.build, self.config))

    def encode(self, bucket: EncodeBucket) -> Program:
        """(weights, packed) to vectors: see `encode.make_encode`."""

        def lower() -> jax.stages.Lowered:
            model, mesh = self.abstract_model(), self.build.mesh
            whole = NamedSharding(mesh, PartitionSpec())
            weights: Any = tuple(
                jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=p.sharding(mesh)) for p in parameters(model)
            )
            packed: Any = jax.ShapeDtypeStruct((packed_size(bucket),), jnp.int32, sharding=whole)
            platform = mesh.devices.flat[0].platform
            traced = jax.jit(make_encode(model, bucket), out_shardings=whole).trace(weights, packed)
            return traced.lower(lowering_platforms=("cuda" if platform == "gpu" else platform,))

        return Program(str(bucket), lower)


@dataclass(frozen=True, slots=True)
class LaunchedTexts:
    """A step on its way."""

    requests: list[Request]
    bucket: EncodeBucket
    vectors: jax.Array
    """f32[S, E]"""


class EncoderRunner:
    """Runs steps with the programs that are there; `add` may bring more at any time, from any thread."""

    def __init__(self, programs: EncoderPrograms, store: ExecutableStore, mesh: jax.sharding.Mesh) -> None:
        self.shape = programs.shape
        self._programs = programs
        self._store = store
        self._mesh = mesh
        self._buckets = {str(bucket): bucket for bucket in encode_buckets(self.shape)}
        self._steps: dict[EncodeBucket, jax.stages.Compiled] = {}
        self._failed: set[str] = set()
        self._weights: Weights = ()

    @property
    def lengths(self) -> tuple[int, ...]:
        """What texts are padded to, ascending."""
        return tuple(sorted({bucket.length for bucket in self._buckets.values()}))

    def programs_required(self, *, early: bool = False) -> list[Program]:
        """Programs to `add` before the first step; `early` is the one that holds any one text."""
        buckets = list(self._buckets.values())
        longest = next(bucket for bucket in buckets if bucket.length == buckets[-1].length)
        return [self._programs.encode(bucket) for bucket in ([longest] if early else buckets)]

    def programs_missing(self) -> list[Program]:
        """All that have not been added, those of the fewest tokens first."""
        missing = [bucket for bucket in self._buckets.values() if bucket not in self._steps]
        return [self._programs.encode(bucket) for bucket in sorted(missing, key=lambda bucket: bucket.tokens)]

    def programs_optional(self) -> list[Program]:
        """None: those that are not required early are required later."""
        return []

    def add(self, program: Program) -> bool:
        """Compile or load a program and put it to use. Returns whether it was loaded."""
        try:
            compiled, loaded = self._store.get(program, self._mesh)
        except BaseException:
            self._failed.add(program.name)
            raise
        self._failed.discard(program.name)
        self._steps[self._buckets[program.name]] = compiled
        return loaded

    def count_programs(self) -> ProgramCounts:
        """How many there are, and are to come."""
        return ProgramCounts(len(self._steps), len(self._failed), len(self._buckets))

    def take_news(self) -> list[tuple[str, str]]:
        """See `ExecutableStore.take_news`."""
        return self._store.take_news()

    def start(self, weights: Weights, small_batch: Weights = ()) -> None:
        """Take the weights; needs the required programs."""
        self._weights = weights

    def step_memory(self) -> int:
        """Bytes of the largest step's temporaries as the compiler counts them; 0 where it does not say."""
        return max(self._store.temporaries.values(), default=0)

    def tidy_store(self) -> None:
        """See `ExecutableStore.tidy`."""
        self._store.tidy()

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
