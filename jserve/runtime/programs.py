"""All programs of an engine and how each is lowered: steps per bucket, samplers per variant, slot updates."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jserve.batch import CacheArray, EngineState, SamplingInput, SamplingState, SlotArray
from jserve.config import ModelConfig
from jserve.constrain.bits import num_words
from jserve.layers.build import TENSOR_AXIS, Build
from jserve.models.blueprint import Blueprint
from jserve.models.causal_lm import CausalLM
from jserve.protocol import MAX_CHOSEN
from jserve.runtime import prompt_read_step, sampling
from jserve.runtime.executables import Program
from jserve.runtime.layout import CacheLayout
from jserve.runtime.program_keys import (
    ChosenLogprobs,
    CopyStates,
    EmptyState,
    InstallBias,
    InstallPages,
    InstallSampling,
    Logprobs,
    LogprobsOfFew,
    Pool,
    Sample,
    SampleFew,
    Score,
    Step,
)
from jserve.runtime.sampling import Variant
from jserve.runtime.shapes import Bucket, EngineShape
from jserve.runtime.states import COPIED_STATES, Cache, copy_states, state_places
from jserve.runtime.step import StepLayout, make_step
from jserve.weights.load import parameters

SAMPLING_FIELDS = len(SamplingInput.__dataclass_fields__)
PAGE_UPDATE_ROWS = 256
"""Page-table entries that one call of the page-install program takes."""


@dataclass(frozen=True, slots=True)
class Programs:
    """Makes the programs of one engine; arguments are abstract until the engine calls them."""

    blueprint: Blueprint[CausalLM]
    shape: EngineShape
    pools_only: bool = False
    """Whether the model is for embeddings or labels, so that nothing is ever sampled."""

    @property
    def config(self) -> ModelConfig:
        return self.blueprint.config

    @property
    def build(self) -> Build:
        return self.blueprint.build

    def is_small_batch(self, bucket: Bucket) -> bool:
        """Whether steps of this bucket take the weights of the small-batch model."""
        return bucket.tokens <= self.build.small_batch_tokens

    def step(self, bucket: Bucket) -> Program:
        """(weights, `leaves` of the state, last_token, packed) to (leaves, logits, hidden); the state is donated."""

        def lower() -> jax.stages.Lowered:
            model = _abstract_model(self.blueprint, self.is_small_batch(bucket))
            weights = self._weights(model)
            layout = StepLayout(bucket, self.shape.page_updates(bucket))
            abstract = self.abstract_state()
            state = abstract.leaves
            places = (tuple(leaf.sharding for leaf in state), self.by_rows(bucket.rows))
            of_tree = make_step(model, self.config, self.shape, bucket, self.build.attention)

            def step(weights: Any, leaves: Any, last_token: jax.Array, packed: jax.Array) -> Any:
                after, logits, hidden = of_tree(weights, abstract.like(leaves), last_token, packed)
                return after.leaves, logits, hidden

            flat = jax.jit(
                step,
                donate_argnums=1,
                out_shardings=(*places, None if bucket.is_decode else self.replicated),
            )
            return self._lower(flat, weights, state, self._slots(), self._integers(layout.size))

        return Program(Step(bucket), lower)

    def sampler(self, rows: int, variant: Variant) -> Program:
        """(logits, last_token, state, packed, masks) to (last_token, state, output)."""

        def lower() -> jax.stages.Lowered:
            sampler = jax.jit(
                sampling.make_sampler(variant, partial(self._split_rows, rows)),
                donate_argnums=(1, 2),
                out_shardings=self.replicated,
            )
            state = self.abstract_sampling() if variant.edits else None
            packed = self._integers(SAMPLING_FIELDS, rows)
            masks = self.masks(rows) if variant.edits else None
            return self._lower(sampler, self._logits(rows), self._slots(), state, packed, masks)

        return Program(Sample(rows, variant), lower)

    def few_sampler(self, rows: int) -> Program:
        """(logits, output, last_token, state, packed, masks) to (last_token, state, output): see
        `sampling.make_few_sampler`.
        """

        def lower() -> jax.stages.Lowered:
            few = sampling.few_rows(rows)
            made = sampling.make_few_sampler(self._take_rows(rows))
            sampler = jax.jit(made, donate_argnums=(1, 2, 3), out_shardings=self.replicated)
            packed, masks = self._integers(SAMPLING_FIELDS + 1, few), self.few_masks(rows)
            output, state = self._integers(rows), self.abstract_sampling()
            return self._lower(sampler, self._logits(rows), output, self._slots(), state, packed, masks)

        return Program(SampleFew(rows), lower)

    def logprobs(self, rows: int) -> Program:
        """(logits, output) to i32[S, SCORE_COLUMNS]: see `sampling.logprobs_of`."""

        def lower() -> jax.stages.Lowered:
            whole = jax.jit(self._split(rows, sampling.logprobs_of, inputs=2), out_shardings=self.replicated)
            return self._lower(whole, self._logits(rows), self._integers(rows))

        return Program(Logprobs(rows), lower)

    def few_logprobs(self, rows: int) -> Program:
        """(logits, output, row numbers) to i32[F, SCORE_COLUMNS]: see `sampling.make_few_logprobs`."""

        def lower() -> jax.stages.Lowered:
            made = sampling.make_few_logprobs(self._take_rows(rows))
            few = jax.jit(made, out_shardings=self.replicated)
            numbers = self._integers(sampling.few_rows(rows))
            return self._lower(few, self._logits(rows), self._integers(rows), numbers)

        return Program(LogprobsOfFew(rows), lower)

    def score(self, tokens: int) -> Program:
        """(weights, hidden, packed) to output: see `prompt_read_step.make_score`."""

        def lower() -> jax.stages.Lowered:
            model = _abstract_model(self.blueprint)
            chunk = min(prompt_read_step.SCORE_ROWS, tokens)
            score = jax.jit(
                prompt_read_step.make_score(model, partial(self._split, chunk, inputs=2), chunk),
                out_shardings=self.replicated,
            )
            return self._lower(score, self._weights(model), self._hidden(tokens), self._integers(2, tokens))

        return Program(Score(tokens), lower)

    def pool(self, tokens: int) -> Program:
        """(weights, hidden, packed) to sums: see `prompt_read_step.make_pool`."""

        def lower() -> jax.stages.Lowered:
            model = _abstract_model(self.blueprint)
            pool = jax.jit(prompt_read_step.make_pool(model), out_shardings=self.replicated)
            packed = self._integers(2, self.shape.max_num_seqs)
            return self._lower(pool, self._weights(model), self._hidden(tokens), packed)

        return Program(Pool(tokens), lower)

    def chosen_logprobs(self, rows: int) -> Program:
        """(logits, ids) to their logprobs: see `prompt_read_step.chosen_logprobs`."""

        def lower() -> jax.stages.Lowered:
            chosen = jax.jit(
                self._split(rows, prompt_read_step.chosen_logprobs, inputs=2), out_shardings=self.replicated
            )
            return self._lower(chosen, self._logits(rows), self._integers(rows, MAX_CHOSEN))

        return Program(ChosenLogprobs(rows), lower)

    def install_sampling(self) -> Program:
        """(state, slot, counts, in_prompt, bias) to state."""

        def lower() -> jax.stages.Lowered:
            vocab = (self.shape.vocab_size,)
            rows = [self._abstract(vocab, dtype) for dtype in (jnp.int16, jnp.bool_, jnp.float32)]
            install = jax.jit(sampling.install, donate_argnums=0)
            return self._lower(install, self.abstract_sampling(), self._integers(), *rows)

        return Program(InstallSampling(), lower)

    def install_bias(self) -> Program:
        """(state, slot, bias) to state."""

        def lower() -> jax.stages.Lowered:
            bias = self._abstract((self.shape.vocab_size,), jnp.float32)
            install = jax.jit(sampling.install_bias, donate_argnums=0)
            return self._lower(install, self.abstract_sampling(), self._integers(), bias)

        return Program(InstallBias(), lower)

    def install_pages(self) -> Program:
        """(page_table, updates i32[256, 3]) to page_table, for more updates than a step can carry."""

        def install(page_table: jax.Array, updates: jax.Array) -> jax.Array:
            slot, index, page = updates.T
            return page_table.at[slot, index].set(page, mode="drop")

        def lower() -> jax.stages.Lowered:
            table = self.abstract_state().page_table
            return self._lower(jax.jit(install, donate_argnums=0), table, self._integers(PAGE_UPDATE_ROWS, 3))

        return Program(InstallPages(), lower)

    def copy_states(self) -> Program:
        """(states of all layers, pairs i32[4, 2]) to states: see `states.copy_states`."""

        def lower() -> jax.stages.Lowered:
            states = tuple(self.abstract_state().leaves[place] for place in self.state_places)
            copy = jax.jit(copy_states, donate_argnums=0, out_shardings=tuple(state.sharding for state in states))
            return self._lower(copy, states, self._integers(COPIED_STATES, 2))

        return Program(CopyStates(), lower)

    @property
    def state_places(self) -> tuple[int, ...]:
        """Which of the leaves of an `EngineState` are states of sequences."""
        return state_places(self._lanes())

    def zeros(self) -> Program:
        """() to `leaves` of a state with nothing in it, made on the devices."""

        def lower() -> jax.stages.Lowered:
            state = self.abstract_state().leaves
            places = tuple(leaf.sharding for leaf in state)
            empty = jax.jit(lambda: tuple(jnp.zeros(leaf.shape, leaf.dtype) for leaf in state), out_shardings=places)
            return self._lower(empty)

        return Program(EmptyState(), lower)

    def required(self, *, early: bool = False) -> list[Program]:
        """What must be there before anything is served. `early`: what serves anything, and a few streams well."""
        on_cpu = self.build.mesh.devices.flat[0].platform == "cpu"
        mixed, *decode = self.shape.buckets()[:3]
        copies = [self.copy_states()] if self.shape.num_snapshots else []
        if self.pools_only:
            return [self.step(mixed), self.pool(mixed.tokens), self.install_pages(), *copies, self.zeros()]
        steps = self.shape.first_decode_steps(on_cpu=on_cpu) if early else decode
        whole = sorted({mixed.rows} | {b.rows for b in (steps[:1] if early and on_cpu else steps)})
        variants = [Variant(), Variant(draws=True), sampling.VARIANTS[-1]]
        return [
            *(self.step(bucket) for bucket in (mixed, *steps)),
            *(self.sampler(count, variant) for count in whole for variant in variants),
            *(self.sampler(b.rows, variant) for b in steps if b.rows not in whole for variant in variants[:2]),
            *(self.logprobs(count) for count in whole),
            *(self.chosen_logprobs(count) for count in whole),
            self.score(mixed.tokens),
            self.pool(mixed.tokens),
            self.install_pages(),
            *copies,
            self.install_sampling(),
            self.install_bias(),
            self.zeros(),
        ]

    def optional(self) -> list[Program]:
        """Programs that make steps cheaper, the most useful first."""
        buckets = self.shape.buckets()
        few = min(bucket.rows for bucket in buckets if not bucket.is_decode)

        def usefulness(bucket: Bucket) -> tuple[bool, bool, int]:
            """Prompts of a few chats first, then decode steps, then prompts of many."""
            return bucket.is_decode or bucket.rows > few, not bucket.is_decode, bucket.tokens

        every: list[Program] = []
        if self.pools_only:
            mixed = [bucket for bucket in sorted(buckets, key=usefulness) if not bucket.is_decode]
            every = [make for each in mixed for make in (self.step(each), self.pool(each.tokens))]
            buckets = []
        for bucket in sorted(buckets, key=usefulness):
            every += [self.sampler(bucket.rows, variant) for variant in sampling.VARIANTS[:2]]
            every.append(self.step(bucket))
        every += [self.sampler(b.rows, variant) for variant in sampling.VARIANTS for b in buckets]
        for rows in sorted({bucket.rows for bucket in buckets}):
            every += [self.logprobs(rows), self.chosen_logprobs(rows)]
            if sampling.few_rows(rows):
                every += [self.few_sampler(rows), self.few_logprobs(rows)]
        for tokens in sorted({bucket.tokens for bucket in buckets if not bucket.is_decode}):
            every += [self.score(tokens), self.pool(tokens)]
        required_keys = {program.key for program in self.required()}
        by_key = {program.key: program for program in every if program.key not in required_keys}
        return list(by_key.values())

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.build.mesh, PartitionSpec())

    def by_rows(self, rows: int) -> NamedSharding:
        """How logits [S, V] are sharded: every device samples its share of the rows, where they can be shared out.

        What crosses the devices is then 1 / tp of what gathering all logits on each of them takes.
        """
        return NamedSharding(self.build.mesh, PartitionSpec(TENSOR_AXIS if self._can_split(rows) else None))

    def _can_split(self, rows: int) -> bool:
        parts = self.build.tensor_parallel
        return parts > 1 and rows % parts == 0

    def _split_rows(self, rows: int, choose: sampling.RowChoice) -> sampling.RowChoice:
        """Each device for itself, so that its loops stop when its own rows are done and ask no other device."""
        if not self._can_split(rows):
            return choose
        by_rows, whole = PartitionSpec(TENSOR_AXIS), PartitionSpec()
        specs = (by_rows, whole, PartitionSpec(None, TENSOR_AXIS), by_rows)
        return jax.shard_map(choose, mesh=self.build.mesh, in_specs=specs, out_specs=by_rows, check_vma=False)

    def _split(self, rows: int, function: Callable[..., jax.Array], *, inputs: int) -> Callable[..., jax.Array]:
        """`function` of arrays by rows, shared out by rows over the devices where it can be."""
        if not self._can_split(rows):
            return function
        by_rows = PartitionSpec(TENSOR_AXIS)
        specs = (by_rows,) * inputs
        return jax.shard_map(function, mesh=self.build.mesh, in_specs=specs, out_specs=by_rows, check_vma=False)

    def _take_rows(self, rows: int) -> sampling.TakeRows:
        """`sampling.take_rows` where each device has a share of the rows: it gives those it has, the others zeros."""
        if not self._can_split(rows):
            return sampling.take_rows

        def take_share(logits: jax.Array, numbers: jax.Array) -> jax.Array:
            mine = numbers - jax.lax.axis_index(TENSOR_AXIS) * logits.shape[0]
            is_mine = (mine >= 0) & (mine < logits.shape[0])
            return jax.lax.psum(jnp.where(is_mine[:, None], sampling.take_rows(logits, mine), 0), TENSOR_AXIS)

        return self.build.spread(take_share, (PartitionSpec(TENSOR_AXIS), PartitionSpec()), PartitionSpec())

    def abstract_state(self) -> EngineState:
        """Shapes and shardings of the state."""
        shape = self.shape

        def kept(array: CacheArray | SlotArray) -> Any:
            place = NamedSharding(self.build.mesh, PartitionSpec(None, TENSOR_AXIS if array.sharded else None))
            size: tuple[int, ...] = (
                (shape.num_pages, array.heads, shape.page_size, array.width)
                if isinstance(array, CacheArray)
                else (shape.num_states, array.heads, *array.size)
            )
            return jax.ShapeDtypeStruct(size, array.dtype, sharding=place)

        kv = tuple(tuple(map(kept, lane)) for lane in self._lanes())
        return EngineState(kv, self._integers(shape.num_groups * shape.max_num_seqs, shape.pages_per_sequence))

    def _lanes(self) -> Cache:
        layout = CacheLayout.of(self.config.layer_windows, self.shape.windows)
        return layout.of_lanes(self.blueprint.family.cache(self.build, self.config))

    def abstract_sampling(self) -> SamplingState:
        """Shapes and shardings of the sampling state."""
        size = (self.shape.max_num_seqs, self.shape.vocab_size)
        return SamplingState(*(self._abstract(size, dtype) for dtype in (jnp.int16, jnp.bool_, jnp.float32)))

    def _weights(self, model: CausalLM) -> tuple[Any, ...]:
        mesh = self.build.mesh
        return tuple(jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=p.sharding(mesh)) for p in parameters(model))

    def _hidden(self, tokens: int) -> Any:
        return self._abstract((tokens, self.config.hidden_size), self.build.activations)

    def masks(self, rows: int) -> jax.ShapeDtypeStruct:
        """i32[S, ceil(V / 32)], which tokens each row of a step may choose."""
        size = (rows, num_words(self.shape.vocab_size))
        return jax.ShapeDtypeStruct(size, jnp.int32, sharding=self.by_rows(rows))

    def few_masks(self, rows: int) -> jax.ShapeDtypeStruct:
        """i32[F, ceil(V / 32)], likewise for a few of a step's rows."""
        masks: jax.ShapeDtypeStruct = self._integers(sampling.few_rows(rows), num_words(self.shape.vocab_size))
        return masks

    def _logits(self, rows: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, self.shape.vocab_size), jnp.float32, sharding=self.by_rows(rows))

    def _slots(self) -> Any:
        return self._integers(self.shape.max_num_seqs)

    def _integers(self, *shape: int) -> Any:
        return self._abstract(shape, jnp.int32)

    def _abstract(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=self.replicated)

    def _lower(self, function: Any, *args: Any) -> jax.stages.Lowered:
        platform = self.build.mesh.devices.flat[0].platform
        return function.trace(*args).lower(lowering_platforms=("cuda" if platform == "gpu" else platform,))


@functools.lru_cache(maxsize=2)
def _abstract_model(blueprint: Blueprint[CausalLM], small_batch: bool = False) -> CausalLM:
    """Made once for all programs, which only read it: 0.2 s for 30 layers."""
    return blueprint.abstract_model(bf16_as_uint16=small_batch)
