"""Takes a `StepPlan` to the device and brings its tokens home.

`dispatch` and `sample` return without waiting; `collect` waits. The device runs steps in the order of their
dispatch, so a step may read what an earlier one, still running, will have written. Owns every device array of
the engine.
"""

import threading
from collections import Counter
from dataclasses import dataclass, replace

import jax
import numpy as np

from jserve.batch import EngineState, LayerKV, SamplingState
from jserve.protocol import ProgramCounts, TokenLogprobs
from jserve.runtime import readings, sampling
from jserve.runtime.executables import ExecutableStore, Program
from jserve.runtime.pack import Needs, Rows, SlotSampling, bias_row, history_rows, pack_batch
from jserve.runtime.programs import PAGE_UPDATE_ROWS, Programs
from jserve.runtime.readings import NOTHING, Readings, Wanted
from jserve.runtime.sampling import Variant
from jserve.runtime.shapes import Bucket, EngineShape
from jserve.schedule.plan import StepPlan, StepTokens
from jserve.schedule.sequence import Sequence

Weights = tuple[jax.Array, ...]


@dataclass(frozen=True, slots=True)
class Launched:
    """A step on its way."""

    plan: StepPlan
    bucket: Bucket
    output: jax.Array | None
    """i32[S, 1] or i32[S, OUTPUT_COLUMNS]; None where no row samples, and before `sample`."""
    readings: Readings | None = None
    """What else some row wants."""
    unsampled: "Unsampled | None" = None
    """Set where the step waits for `sample`, because a row that samples has a constraint."""


@dataclass(frozen=True, slots=True)
class Unsampled:
    """What the sampler of a step needs, apart from the masks."""

    variant: Variant
    logits: jax.Array
    """f32[S, V]"""
    packed: np.ndarray
    """i32[10, S] of `SamplingInput`."""


class Runner:
    """Runs steps with the programs that are there; `add` may bring more at any time, from any thread."""

    def __init__(self, programs: Programs, store: ExecutableStore, mesh: jax.sharding.Mesh) -> None:
        self.shape: EngineShape = programs.shape
        self._programs = programs
        self._store = store
        self._mesh = mesh
        self._registering = threading.Lock()
        self._steps: dict[Bucket, jax.stages.Compiled] = {}  # the smallest first
        self._samplers: dict[tuple[int, Variant], jax.stages.Compiled] = {}
        self._others: dict[str, jax.stages.Compiled] = {}
        self._slots = SlotSampling(self.shape)
        self._biased: set[int] = set()  # slots whose bias on the device is not zero
        self._weights: Weights = ()
        self.thin_weights: Weights = ()
        self._state: tuple[jax.Array, ...] = ()  # `EngineState.leaves`
        self._sampling: SamplingState | None = None
        self._last_token: jax.Array | None = None
        self._no_masks: dict[int, jax.Array] = {}  # by the number of rows: every token is allowed
        self._added: set[str] = set()
        self._failed: set[str] = set()
        self.bucket_steps: Counter[Bucket] = Counter()

    def programs_required(self, *, early: bool = False) -> list[Program]:
        """Programs to `add` before the first step; `early` are the fewest that serve anything."""
        return self._programs.required(early=early)

    def programs_missing(self) -> list[Program]:
        """All that have not been added, the required and the most useful first."""
        return [program for program in (*self.programs_required(), *self.programs_optional()) if not self._has(program)]

    def _has(self, program: Program) -> bool:
        return program.name in self._added

    def programs_optional(self) -> list[Program]:
        """Programs that make steps cheaper, the most useful first."""
        buckets = self.shape.buckets()
        few = min(bucket.rows for bucket in buckets if not bucket.is_decode)

        def usefulness(bucket: Bucket) -> tuple[bool, bool, int]:
            """Prompts of a few chats first, then decode steps, then prompts of many."""
            return bucket.is_decode or bucket.rows > few, not bucket.is_decode, bucket.tokens

        every: list[Program] = []
        for bucket in sorted(buckets, key=usefulness):
            every += [self._programs.sampler(bucket.rows, variant) for variant in sampling.VARIANTS[:2]]
            every.append(self._programs.step(bucket))
        every += [self._programs.sampler(b.rows, variant) for variant in sampling.VARIANTS for b in buckets]
        every += [self._programs.chosen_logprobs(bucket.rows) for bucket in buckets]
        for tokens in sorted({bucket.tokens for bucket in buckets if not bucket.is_decode}):
            every += [self._programs.score(tokens), self._programs.pool(tokens)]
        required = {program.name for program in self.programs_required()}
        named = {program.name: program for program in every if program.name not in required}
        return list(named.values())

    def add(self, program: Program) -> bool:
        """Compile or load a program and put it to use. Returns whether it was loaded."""
        try:
            compiled, loaded = self._store.get(program, self._mesh)
        except BaseException:
            self._failed.add(program.name)
            raise
        self._register(program.name, compiled)
        self._added.add(program.name)
        self._failed.discard(program.name)
        return loaded

    def count_programs(self) -> ProgramCounts:
        """How many there are, and are to come."""
        every = {program.name for program in (*self.programs_required(), *self.programs_optional())}
        return ProgramCounts(len(self._added & every), len(self._failed & every), len(every))

    def take_news(self) -> list[tuple[str, str]]:
        """See `ExecutableStore.take_news`."""
        return self._store.take_news()

    def _register(self, name: str, compiled: jax.stages.Compiled) -> None:
        with self._registering:  # two threads that replace the same table would lose an entry
            for bucket in self.shape.buckets():
                if name == f"step {bucket}":
                    self._steps = dict(sorted({**self._steps, bucket: compiled}.items()))
                    return
                for variant in sampling.VARIANTS:
                    if name == f"sample {bucket.rows} {variant}":
                        self._samplers = {**self._samplers, (bucket.rows, variant): compiled}
                        return
            self._others[name] = compiled

    def start(self, weights: Weights, thin: Weights = ()) -> None:
        """Take the weights, and those of thin steps, and allocate everything else; needs the required programs."""
        self._weights, self.thin_weights = weights, thin
        self.reset()

    def reset(self) -> None:
        """Empty pages and slots, as after a start."""
        shape, place = self.shape, self._put
        empty = self._others["empty pages"]
        layers = self._programs.config.num_layers
        table = np.zeros((shape.max_num_seqs, shape.pages_per_sequence), np.int32)
        self._state = EngineState(tuple(LayerKV(empty(), empty()) for _ in range(layers)), place(table)).leaves
        self._sampling = jax.tree.map(place, sampling.empty_state(shape.max_num_seqs, shape.vocab_size))
        self._last_token = place(np.zeros(shape.max_num_seqs, np.int32))
        for rows in {bucket.rows for bucket in shape.buckets()}:
            masks = self._programs.masks(rows)
            self._no_masks[rows] = jax.device_put(np.full(masks.shape, -1, np.int32), masks.sharding)

    def dispatch(self, plan: StepPlan) -> Launched:
        """Start a step. The plan's rows must fit `EngineShape`.

        Where a row that samples has a constraint, the step waits for `sample` before it chooses tokens, and
        so must the caller before the next `dispatch`.
        """
        for chunk in plan.chunks[plan.num_decodes :]:
            if chunk.is_first:
                self._enter_slot(chunk.slot, chunk.sequence)
        rows = Rows.of(plan)
        needs = self._slots.needs(rows)
        wanted = Wanted.of(plan, needs is not None and needs.chosen)
        bucket, variant = self._choose_programs(plan, needs, wanted)
        packed = pack_batch(plan, rows, bucket, self.shape)
        if len(packed.late_updates):
            self._install_pages(packed.late_updates)
        step = self._steps[bucket]
        weights = self.thin_weights if self._programs.is_thin(bucket) else self._weights
        self._state, logits, hidden = step(weights, self._state, self._last_token, packed.vector)
        self.bucket_steps[bucket] += 1
        extra = None
        if wanted is not NOTHING:
            made = (logits, hidden)
            extra = readings.launch(wanted, plan, bucket, self._others, self._weights, self._slots, made)
        if needs is None or variant is None:
            return Launched(plan, bucket, None, extra)
        if needs.variant.edits:
            self._lift_bans(plan)
        unsampled = Unsampled(variant, logits, self._slots.pack(rows, packed))
        if needs.masks:
            return Launched(plan, bucket, None, extra, unsampled)
        return Launched(plan, bucket, self._sample(bucket, unsampled, None), extra)

    def sample(self, launched: Launched, masks: np.ndarray | None) -> Launched:
        """Start the sampler of a step that waits for it. masks: i32[S, ceil(V / 32)]; None allows everything."""
        assert launched.unsampled is not None
        output = self._sample(launched.bucket, launched.unsampled, masks)
        return replace(launched, output=output, unsampled=None)

    def _sample(self, bucket: Bucket, waiting: Unsampled, masks: np.ndarray | None) -> jax.Array:
        edits = waiting.variant.edits
        state = self._sampling if edits else None
        allowed = (self._no_masks[bucket.rows] if masks is None else masks) if edits else None
        sampler = self._samplers[bucket.rows, waiting.variant]
        self._last_token, state, output = sampler(waiting.logits, self._last_token, state, waiting.packed, allowed)
        if edits:
            self._sampling = state
        output.copy_to_host_async()
        return output

    def collect(self, launched: Launched) -> StepTokens:
        """Wait for a step's tokens."""
        plan, extra, vocab = launched.plan, launched.readings, self.shape.vocab_size
        count = len(plan.chunks)
        read = extra.take_home(plan, vocab) if extra is not None else ()
        if launched.output is None:
            return StepTokens([0] * count, readings=read)
        output = np.asarray(launched.output)[:count]
        tokens = output[:, 0].tolist()
        if output.shape[1] == 1:
            return StepTokens(tokens, readings=read)
        chosen = np.asarray(extra.chosen) if extra is not None and extra.chosen is not None else None
        return StepTokens(tokens, _read_logprobs(plan, output, chosen, vocab), read)

    def mixed_sizes(self, rows: int) -> tuple[int, ...]:
        """The tokens, ascending, to which mixed steps of so many rows are padded by the programs there are."""
        return tuple(bucket.tokens for bucket in self._steps if bucket.rows >= rows and not bucket.is_decode)

    def step_memory(self) -> int:
        """Bytes of the largest step's temporaries as the compiler counts them; 0 where it does not say."""
        sizes = self._store.temporaries.items()
        return max((size for name, size in sizes if name.startswith("step ")), default=0)

    def tidy_store(self) -> None:
        """See `ExecutableStore.tidy`."""
        self._store.tidy()

    def _choose_programs(self, plan: StepPlan, needs: Needs | None, wanted: Wanted) -> tuple[Bucket, Variant | None]:
        """The smallest bucket there is that holds the plan and has a sampler for it, and the cheapest such
        sampler. While programs are compiled behind, a bucket's step may be there before all its samplers.
        """
        tokens, rows = plan.num_tokens, len(plan.chunks)
        for bucket in self._steps:
            if bucket.rows < rows or bucket.tokens < tokens or (bucket.is_decode and not plan.is_decode):
                continue
            if wanted is not NOTHING and not wanted.is_served_by(bucket, self._others):
                continue
            if needs is None:
                return bucket, None
            for variant in sampling.COVERING[needs.variant]:
                if (bucket.rows, variant) in self._samplers:
                    return bucket, variant
        raise ValueError(f"no program holds a step of {tokens} tokens and {rows} rows")

    def _install_pages(self, updates: np.ndarray) -> None:
        for start in range(0, len(updates), PAGE_UPDATE_ROWS):
            part = np.full((PAGE_UPDATE_ROWS, 3), self.shape.max_num_seqs, np.int32)
            chosen = updates[start : start + PAGE_UPDATE_ROWS]
            part[: len(chosen)] = chosen
            *kv, table = self._state
            self._state = (*kv, self._others["install pages"](table, part))

    def _enter_slot(self, slot: int, sequence: Sequence) -> None:
        """Bring a slot's sampling state up to date for the sequence that enters it."""
        self._slots.enter(slot, sequence)
        vocab = self.shape.vocab_size
        if sequence.request.sampling.edits_logits:
            outputs = len(sequence.token_ids) - sequence.num_prompt
            history, bias = history_rows(sequence, vocab), bias_row(sequence, outputs, vocab)
            install = self._others["install sampling"]
            self._sampling = install(self._sampling, np.int32(slot), *history, bias)
            self._biased.add(slot)
        elif slot in self._biased:
            self._biased.discard(slot)
            self._install_bias(slot, np.zeros(vocab, np.float32))

    def _install_bias(self, slot: int, bias: np.ndarray) -> None:
        self._sampling = self._others["install bias"](self._sampling, np.int32(slot), bias)

    def _lift_bans(self, plan: StepPlan) -> None:
        """Allow the stop tokens of rows that have just reached their min_tokens."""
        for chunk in plan.chunks:
            reached = chunk.sequence.request.sampling.min_tokens
            if chunk.sequence.constraint is not None:
                continue
            if reached and chunk.output_index == reached and chunk.samples and not chunk.is_first:
                self._install_bias(chunk.slot, bias_row(chunk.sequence, reached, self.shape.vocab_size))

    def _put(self, array: np.ndarray) -> jax.Array:
        return jax.device_put(array, self._programs.replicated)


def _read_logprobs(
    plan: StepPlan, output: np.ndarray, chosen: np.ndarray | None, vocab: int
) -> list[TokenLogprobs | None]:
    """Of each row of i32[S, OUTPUT_COLUMNS] that asked; `chosen` f32[S, MAX_CHOSEN] likewise."""
    found: list[TokenLogprobs | None] = [None] * len(plan.chunks)
    for row, chunk in enumerate(plan.chunks):
        params = chunk.sequence.request.sampling
        count = len(params.logprob_token_ids)
        if chunk.samples and (params.logprobs is not None or count):
            extra = chosen[row : row + 1, :count] if chosen is not None and count else None
            (found[row],) = readings.read_logprobs(output[row : row + 1, 1:], params.logprobs or 0, vocab, extra)
    return found
