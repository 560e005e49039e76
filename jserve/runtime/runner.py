"""Takes a `StepPlan` to the device and reads its tokens back.

`dispatch` and `sample` return without waiting; `collect` waits. The device runs steps in the order of their
dispatch, so a step may read what an earlier one, still running, will have written. Owns every device array of
the engine.
"""

from collections import Counter
from dataclasses import dataclass

import jax
import numpy as np

from jserve.batch import SamplingState, Weights
from jserve.runtime import prompt_reads, sampling
from jserve.runtime.executables import ExecutableStore
from jserve.runtime.pack import FIELDS, Needs, Rows, SlotSampling, bias_row, history_rows, pack_batch
from jserve.runtime.program_keys import (
    CopyStates,
    EmptyState,
    InstallBias,
    InstallPages,
    InstallSampling,
    Logprobs,
    LogprobsOfFew,
    ProgramKey,
    Sample,
    SampleFew,
    Step,
)
from jserve.runtime.program_table import ProgramTable
from jserve.runtime.programs import PAGE_UPDATE_ROWS, Programs
from jserve.runtime.prompt_reads import NOTHING, PromptReads, SampledLogprobs, Wanted
from jserve.runtime.sampling import NOT_FINITE, Variant, few_rows
from jserve.runtime.shapes import Bucket, EngineShape
from jserve.runtime.states import COPIED_STATES
from jserve.schedule.plan import StepPlan, StepTokens
from jserve.schedule.sequence import Sequence

_NONE = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class Launched:
    """A step on its way."""

    plan: StepPlan
    bucket: Bucket
    output: jax.Array | None
    """i32[S] of tokens; None where no row samples, and before `sample`."""
    logprobs: SampledLogprobs | None = None
    """The logprobs of these tokens, where some row wants them."""
    prompt_reads: PromptReads | None = None
    """What else some row wants."""
    unsampled: "Unsampled | None" = None
    """Set where the step waits for `sample`, because a row that samples has a constraint."""
    end: jax.Array | None = None
    """What the step computes last, where no row samples: `collect` waits for it."""


@dataclass(frozen=True, slots=True)
class Unsampled:
    """What the sampler of a step needs, apart from the masks."""

    variant: Variant
    """For all rows, the costly ones included unless they go apart."""
    apart: np.ndarray
    """Numbers of the rows whose tokens are chosen by the sampler of a few rows, after the others'."""
    scored: np.ndarray
    """Numbers of the rows that want logprobs."""
    logits: jax.Array
    """f32[S, V]"""
    packed: np.ndarray
    """i32[11, S] of `SamplingInput`."""

    @property
    def mask_rows(self) -> np.ndarray:
        """Numbers of the rows that masks are for, in the order of the masks."""
        return self.apart if len(self.apart) else np.arange(self.packed.shape[1])

    @property
    def num_masks(self) -> int:
        """As many as `mask_rows`, or with padding at the end."""
        rows = self.packed.shape[1]
        return _rounded(len(self.apart), few_rows(rows)) if len(self.apart) else rows


@dataclass(frozen=True, slots=True)
class SamplerChoice:
    """See `Unsampled`."""

    variant: Variant
    apart: np.ndarray
    scored: np.ndarray


class Runner:
    """Runs steps with the programs that are there; `table` may get more at any time, from any thread."""

    def __init__(self, programs: Programs, store: ExecutableStore, mesh: jax.sharding.Mesh) -> None:
        self.shape: EngineShape = programs.shape
        self.table = ProgramTable(programs, store, mesh, self._take)
        self._programs = programs
        self._compiled = self.table.compiled
        self._steps: list[Step] = []  # the smallest first
        self._buckets = sorted(self.shape.buckets())
        self._samplers: dict[tuple[int, Variant], jax.stages.Compiled] = {}
        self._slots = SlotSampling(self.shape)
        self._biased: set[int] = set()  # slots whose bias on the device is not zero
        self.weights: Weights = ()
        self.small_batch_weights: Weights = ()
        self._state: tuple[jax.Array, ...] = ()  # `EngineState.leaves`
        self._sampling: SamplingState | None = None
        self._last_token: jax.Array | None = None
        self._no_masks: dict[int, jax.Array] = {}  # by the number of rows: every token is allowed
        self._no_few_masks: dict[int, jax.Array] = {}  # likewise for a few of so many
        self.bucket_steps: Counter[Bucket] = Counter()

    def _take(self, key: ProgramKey, compiled: jax.stages.Compiled) -> None:
        """Note a program where `dispatch` looks for it. What another thread reads is replaced, never changed."""
        match key:
            case Step():
                self._steps = sorted({*self._steps, key}, key=lambda step: step.bucket)
            case Sample(rows, variant):
                self._samplers = {**self._samplers, (rows, variant): compiled}

    def start(self, weights: Weights, small_batch: Weights = ()) -> None:
        """Take the weights, and those of small batches, and allocate everything else; needs the required programs."""
        self.weights, self.small_batch_weights = weights, small_batch
        self.reset()

    def reset(self) -> None:
        """Empty pages and slots, as after a start."""
        shape, place = self.shape, self._put
        with self.table.blamed(EmptyState()):
            self._state = jax.block_until_ready(self._compiled[EmptyState()]())
        self._sampling = jax.tree.map(place, sampling.empty_state(shape.max_num_seqs, shape.vocab_size))
        self._last_token = place(np.zeros(shape.max_num_seqs, np.int32))
        for rows in {bucket.rows for bucket in shape.buckets()}:
            masks = self._programs.masks(rows)
            self._no_masks[rows] = jax.device_put(np.full(masks.shape, -1, np.int32), masks.sharding)
            if few_rows(rows):
                self._no_few_masks[rows] = place(np.full(self._programs.few_masks(rows).shape, -1, np.int32))

    def dispatch(self, plan: StepPlan) -> Launched:
        """Start a step. The plan's rows must fit `EngineShape`.

        Where a row that samples has a constraint, the step waits for `sample` before it chooses tokens, and
        so must the caller before the next `dispatch`.
        """
        for chunk in plan.chunks[plan.num_decodes :]:
            if chunk.is_first:
                self._enter_slot(chunk.slot, chunk.sequence)
        for copies in (plan.saves, plan.restores):  # what is restored may just have been saved
            if copies:
                self._copy_states(copies)
        rows = Rows.of(plan)
        needs = self._slots.needs(rows)
        wanted = Wanted.of(plan, needs is not None and needs.chosen)
        step, choice = self._choose_programs(plan, rows, needs, wanted)
        bucket = step.bucket
        if self.table.notes_lacks:
            self._note_lack(plan, needs, wanted, bucket)
        packed = pack_batch(plan, rows, bucket, self.shape)
        if len(packed.late_updates):
            self._install_pages(packed.late_updates)
        logits, hidden = self._launch_step(step, packed.vector)
        extra = None
        if wanted is not NOTHING:
            outputs = (logits, hidden)
            extra = prompt_reads.launch(wanted, plan, bucket, self._compiled, self.weights, self._slots, outputs)
        if needs is None or choice is None:
            return Launched(plan, bucket, None, prompt_reads=extra, end=logits if hidden is None else hidden)
        if needs.variant.edits:
            self._lift_bans(plan)
        packed_sampling = self._slots.pack(rows, packed)
        unsampled = Unsampled(choice.variant, choice.apart, choice.scored, logits, packed_sampling)
        launched = Launched(plan, bucket, None, prompt_reads=extra, unsampled=unsampled)
        return launched if needs.masks else self.sample(launched, None)

    def _launch_step(self, step: Step, packed: np.ndarray) -> tuple[jax.Array, jax.Array | None]:
        """Start a step, of which these two are all that is to be known: a process that has the weights and has
        launched the same steps before can launch this one too. packed: i32 of `StepLayout`. Returns logits and hidden.
        """
        bucket = step.bucket
        weights = self.small_batch_weights if self._programs.is_small_batch(bucket) else self.weights
        self._state, logits, hidden = self._compiled[step](weights, self._state, self._last_token, packed)
        self.bucket_steps[bucket] += 1
        return logits, hidden

    def sample(self, launched: Launched, masks: np.ndarray | None) -> Launched:
        """Start the sampler of a step that waits for it.

        masks: i32[M, ceil(V / 32)] for `Unsampled.mask_rows`; None allows everything.
        """
        waiting, rows = launched.unsampled, launched.bucket.rows
        assert waiting is not None
        packed, apart = waiting.packed, waiting.apart
        if len(apart):
            packed = packed.copy()
            packed[FIELDS["slots"], apart] = self.shape.max_num_seqs  # what they get here is for nobody
        edits = waiting.variant.edits
        state = self._sampling if edits else None
        allowed = (self._no_masks[rows] if masks is None else masks) if edits else None
        sampler = self._samplers[rows, waiting.variant]
        self._last_token, state, output = sampler(waiting.logits, self._last_token, state, packed, allowed)
        if edits:
            self._sampling = state
        if len(apart):
            output = self._sample_apart(waiting, output, masks)
        output.copy_to_host_async()
        scores = self._launch_logprobs(waiting, output) if len(waiting.scored) else None
        return Launched(launched.plan, launched.bucket, output, scores, launched.prompt_reads)

    def _sample_apart(self, waiting: Unsampled, output: jax.Array, masks: np.ndarray | None) -> jax.Array:
        """`output` with the tokens of the rows that go apart."""
        rows = waiting.packed.shape[1]
        few, sampler = few_rows(rows), self._compiled[SampleFew(rows)]
        for start in range(0, len(waiting.apart), few):
            packed = self._slots.pack_few(waiting.packed, waiting.apart[start : start + few], few)
            allowed = self._no_few_masks[rows] if masks is None else masks[start : start + few]
            self._last_token, self._sampling, output = sampler(
                waiting.logits, output, self._last_token, self._sampling, packed, allowed
            )
        return output

    def _launch_logprobs(self, waiting: Unsampled, output: jax.Array) -> SampledLogprobs:
        rows, scored = waiting.packed.shape[1], waiting.scored
        few = few_rows(rows)
        is_whole = not self._go_apart(scored, rows, LogprobsOfFew(rows))
        parts: tuple[jax.Array, ...]
        if is_whole:
            parts = (self._compiled[Logprobs(rows)](waiting.logits, output),)
        else:
            numbers = np.zeros(_rounded(len(scored), few), np.int32)
            numbers[: len(scored)] = scored
            program = self._compiled[LogprobsOfFew(rows)]
            parts = tuple(program(waiting.logits, output, part) for part in numbers.reshape(-1, few))
        for part in parts:
            part.copy_to_host_async()
        return SampledLogprobs(scored, parts, is_whole)

    def _go_apart(self, chosen: np.ndarray, rows: int, program: ProgramKey) -> bool:
        """Whether these of so many rows are better done by the program of a few than with all the others."""
        return program in self._compiled and 2 * _rounded(len(chosen), few_rows(rows)) <= rows

    def collect(self, launched: Launched) -> StepTokens:
        """Wait for a step's tokens; for its end where it has none, or a long prompt's steps would all be dispatched
        before the first is done, and whoever comes then would wait for them.
        """
        plan, extra, vocab = launched.plan, launched.prompt_reads, self.shape.vocab_size
        count = len(plan.chunks)
        prompt_reads, not_finite = extra.read_back(plan, vocab) if extra is not None else ((), ())
        if launched.output is None:
            jax.block_until_ready(launched.end)
            return StepTokens([0] * count, None, prompt_reads, not_finite)
        tokens = np.asarray(launched.output)[:count].tolist()
        if NOT_FINITE in tokens:
            not_finite += tuple(row for row, token in enumerate(tokens) if token == NOT_FINITE)
        if launched.logprobs is None:
            return StepTokens(tokens, None, prompt_reads, not_finite)
        chosen = extra.chosen if extra is not None else None
        return StepTokens(tokens, launched.logprobs.read_back(plan, chosen, vocab), prompt_reads, not_finite)

    def mixed_sizes(self, rows: int) -> tuple[int, ...]:
        """The tokens, ascending, to which mixed steps of so many rows are padded by the programs there are."""
        buckets = (step.bucket for step in self._steps)
        return tuple(bucket.tokens for bucket in buckets if bucket.rows >= rows and not bucket.is_decode)

    def _choose_programs(
        self, plan: StepPlan, rows: Rows, needs: Needs | None, wanted: Wanted
    ) -> tuple[Step, SamplerChoice | None]:
        """The smallest step there is that holds the plan and has a sampler for it, and the cheapest such
        sampler. While programs are compiled behind, a step may be there before all its samplers.
        """
        tokens, count = plan.num_tokens, len(plan.chunks)
        for step in self._steps:
            bucket = step.bucket
            if bucket.rows < count or bucket.tokens < tokens or (bucket.is_decode and not plan.is_decode):
                continue
            if wanted is not NOTHING and not wanted.is_served_by(bucket, self._compiled):
                continue
            if needs is None:
                return step, None
            choice = self._choose_sampler(bucket.rows, rows, needs)
            if choice is not None:
                return step, choice
        raise ValueError(f"no program holds a step of {tokens} tokens and {count} rows")

    def _note_lack(self, plan: StepPlan, needs: Needs | None, wanted: Wanted, used: Bucket) -> None:
        """Tell the table which programs the step would have run in, had all of them been there."""
        best = next(
            bucket
            for bucket in self._buckets
            if bucket.rows >= len(plan.chunks)
            and bucket.tokens >= plan.num_tokens
            and (not bucket.is_decode or (plan.is_decode and not wanted.reads_prompts))
        )
        if best == used:
            return
        keys: list[ProgramKey] = [Step(best), *wanted.readers(best)]
        if needs is not None:
            if self._cheapest(best.rows, needs.variant) is None:
                keys.append(Sample(best.rows, sampling.COVERING[needs.variant][0]))
            if needs.logprobs:
                keys.append(Logprobs(best.rows))
        cost = used.tokens + used.rows - best.tokens - best.rows
        self.table.note_lack([key for key in keys if key not in self._compiled], cost)

    def _choose_sampler(self, count: int, rows: Rows, needs: Needs) -> SamplerChoice | None:
        """The cheapest that there is for a step padded to `count` rows; None where there is none."""
        scored = self._slots.with_logprobs(rows) if needs.logprobs else _NONE
        if needs.logprobs and Logprobs(count) not in self._compiled:
            return None
        if needs.variant.filters or needs.variant.edits:
            apart, left = self._slots.split_costly(rows)
            if self._go_apart(apart, count, SampleFew(count)):
                variant = self._cheapest(count, left)
                if variant is not None:
                    return SamplerChoice(variant, apart, scored)
        variant = self._cheapest(count, needs.variant)
        return None if variant is None else SamplerChoice(variant, _NONE, scored)

    def _cheapest(self, count: int, needed: Variant) -> Variant | None:
        return next((v for v in sampling.COVERING[needed] if (count, v) in self._samplers), None)

    def _install_pages(self, updates: np.ndarray) -> None:
        for start in range(0, len(updates), PAGE_UPDATE_ROWS):
            part = np.full((PAGE_UPDATE_ROWS, 3), self.shape.num_groups * self.shape.max_num_seqs, np.int32)
            chosen = updates[start : start + PAGE_UPDATE_ROWS]
            part[: len(chosen)] = chosen
            *kv, table = self._state
            self._state = (*kv, self._compiled[InstallPages()](table, part))

    def _copy_states(self, copies: tuple[tuple[int, int], ...]) -> None:
        leaves, places = list(self._state), self._programs.state_places
        states = tuple(leaves[place] for place in places)
        for start in range(0, len(copies), COPIED_STATES):
            pairs = np.full((COPIED_STATES, 2), self.shape.num_states, np.int32)
            part = copies[start : start + COPIED_STATES]
            pairs[: len(part)] = part
            states = self._compiled[CopyStates()](states, pairs)
        for place, state in zip(places, states, strict=True):
            leaves[place] = state
        self._state = tuple(leaves)

    def _enter_slot(self, slot: int, sequence: Sequence) -> None:
        """Bring a slot's sampling state up to date for the sequence that enters it."""
        self._slots.enter(slot, sequence)
        vocab = self.shape.vocab_size
        if sequence.request.sampling.edits_logits:
            outputs = len(sequence.token_ids) - sequence.num_prompt
            history, bias = history_rows(sequence, vocab), bias_row(sequence, outputs, vocab)
            install = self._compiled[InstallSampling()]
            self._sampling = install(self._sampling, np.int32(slot), *history, bias)
            self._biased.add(slot)
        elif slot in self._biased:
            self._biased.discard(slot)
            self._install_bias(slot, np.zeros(vocab, np.float32))

    def _install_bias(self, slot: int, bias: np.ndarray) -> None:
        self._sampling = self._compiled[InstallBias()](self._sampling, np.int32(slot), bias)

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


def _rounded(count: int, unit: int) -> int:
    """Up to a whole number of units."""
    return -(-count // unit) * unit
