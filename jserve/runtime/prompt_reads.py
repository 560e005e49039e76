"""Launches what a plan reads of its step beyond the next token, and reads it back; see `prompt_read_step.py`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from jserve.batch import Weights
from jserve.protocol import MAX_LOGPROBS, TokenLogprobs
from jserve.runtime.pack import SlotSampling
from jserve.runtime.program_keys import ChosenLogprobs, Pool, ProgramKey, Score
from jserve.runtime.shapes import Bucket, EngineShape
from jserve.schedule.plan import PromptRead, StepPlan

Table = Mapping[ProgramKey, jax.stages.Compiled]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What some row of a plan wants."""

    scores: bool = False
    sums: bool = False
    chosen: bool = False

    @classmethod
    def of(cls, plan: StepPlan, chosen: bool) -> "Wanted":
        if not plan.prompt_reads:
            return CHOSEN if chosen else NOTHING
        pooling = [bool(chunk.sequence.request.pooling) for chunk in plan.chunks if chunk.prompt_reads is not None]
        return cls(not all(pooling), any(pooling), chosen)

    def is_served_by(self, bucket: Bucket, programs: Table) -> bool:
        """Whether a step of this bucket returns what is needed, and the programs that read it are there."""
        if bucket.is_decode and self.reads_prompts:
            return False
        return all(key in programs for key in self.readers(bucket))

    @property
    def reads_prompts(self) -> bool:
        """Whether hidden states are needed, which mixed steps alone return."""
        return self.scores or self.sums

    def readers(self, bucket: Bucket) -> tuple[ProgramKey, ...]:
        """The programs that read what is needed from a step of this bucket."""
        every = (
            (self.scores, Score(bucket.tokens)),
            (self.sums, Pool(bucket.tokens)),
            (self.chosen, ChosenLogprobs(bucket.rows)),
        )
        return tuple(key for is_needed, key in every if is_needed)


NOTHING, CHOSEN = Wanted(), Wanted(chosen=True)


@dataclass(frozen=True, slots=True)
class PromptReads:
    """What is being read from the device."""

    scores: jax.Array | None = None
    """i32[T, SCORE_COLUMNS]; of all scored positions of the step, one after the other."""
    sums: jax.Array | None = None
    """f32[R, E]; row s is that of the plan's chunk s."""
    chosen: jax.Array | None = None
    """f32[S, MAX_CHOSEN]"""

    def read_back(self, plan: StepPlan, vocab: int) -> tuple[tuple[PromptRead, ...], tuple[int, ...]]:
        """One for each chunk that reads, and the indices of those chunks whose numbers are not finite."""
        scores = None if self.scores is None else np.asarray(self.scores)
        sums = None if self.sums is None else np.asarray(self.sums, "<f4")
        reads, not_finite, place = [], [], 0
        for row, chunk in enumerate(plan.chunks):
            if chunk.prompt_reads is None:
                continue
            if chunk.sequence.request.pooling:
                assert sums is not None
                is_finite = bool(np.isfinite(sums[row]).all())
                reads.append(PromptRead(chunk, [], sums[row].tobytes()))
            else:
                assert scores is not None
                end = place + chunk.prompt_reads[1] - chunk.prompt_reads[0]
                scored, count = scores[place:end], chunk.sequence.request.sampling.prompt_logprobs or 0
                is_finite = bool(np.isfinite(scored[:, :1].view(np.float32)).all())
                reads.append(PromptRead(chunk, read_logprobs(scored, [count] * (end - place), vocab)))
                place = end
            if not is_finite:
                not_finite.append(row)
        return tuple(reads), tuple(not_finite)


@dataclass(frozen=True, slots=True)
class SampledLogprobs:
    """The logprobs of the tokens that a step's rows sampled, while they are read from the device."""

    rows: np.ndarray
    """Numbers of the rows that want them."""
    parts: tuple[jax.Array, ...]
    """i32[F, SCORE_COLUMNS] each, of F of these rows after the other; or `is_whole`, one i32[S, SCORE_COLUMNS]."""
    is_whole: bool

    def read_back(self, plan: StepPlan, chosen: jax.Array | None, vocab: int) -> list[TokenLogprobs | None]:
        """For each chunk of the plan; `chosen` f32[S, MAX_CHOSEN]."""
        rows = self.rows.tolist()
        arrays = [np.asarray(part) for part in self.parts]
        output = arrays[0][self.rows] if self.is_whole else np.concatenate(arrays)[: len(rows)]
        params = [plan.chunks[row].sequence.request.sampling for row in rows]
        extra = None
        if chosen is not None:
            values = np.asarray(chosen)
            extra = [
                values[row, : len(each.logprob_token_ids)].tolist() for row, each in zip(rows, params, strict=True)
            ]
        read = read_logprobs(output, [each.logprobs or 0 for each in params], vocab, extra)
        by_chunk: list[TokenLogprobs | None] = [None] * len(plan.chunks)
        for row, entry in zip(rows, read, strict=True):
            by_chunk[row] = entry
        return by_chunk


def launch(
    wanted: Wanted,
    plan: StepPlan,
    bucket: Bucket,
    programs: Table,
    weights: Weights,
    slots: SlotSampling,
    step: tuple[jax.Array, jax.Array | None],
) -> PromptReads:
    """Start what is wanted of a step's (logits, hidden)."""
    logits, hidden = step
    scores = sums = chosen = None
    if wanted.scores:
        scores = programs[Score(bucket.tokens)](weights, hidden, pack_scores(plan, bucket))
    if wanted.sums:
        sums = programs[Pool(bucket.tokens)](weights, hidden, pack_sums(plan, slots.shape))
    if wanted.chosen:
        chosen = programs[ChosenLogprobs(bucket.rows)](logits, slots.pack_chosen(plan, bucket))
    for array in (scores, sums, chosen):
        if array is not None:
            array.copy_to_host_async()
    return PromptReads(scores, sums, chosen)


def pack_scores(plan: StepPlan, bucket: Bucket) -> np.ndarray:
    """i32[2, T] of `make_score`: where in the step each scored position is, and the token that follows it."""
    packed = np.zeros((2, bucket.tokens), np.int32)
    packed[1] = -1
    start = count = 0
    for chunk in plan.chunks:
        if chunk.prompt_reads is not None and not chunk.sequence.request.pooling:
            first, end = chunk.prompt_reads
            here = slice(count, count + end - first)
            packed[0, here] = np.arange(first, end) - chunk.start + start
            packed[1, here] = chunk.sequence.token_ids[first + 1 : end + 1]
            count = here.stop
        start += chunk.length
    return packed


def pack_sums(plan: StepPlan, shape: EngineShape) -> np.ndarray:
    """i32[2, R] of `make_pool`: the bounds of each chunk's positions in the step; none for most."""
    packed = np.zeros((2, shape.max_num_seqs), np.int32)
    start = 0
    for row, chunk in enumerate(plan.chunks):
        if chunk.prompt_reads is not None and chunk.sequence.request.pooling:
            packed[:, row] = np.array(chunk.prompt_reads) - chunk.start + start
        start += chunk.length
    return packed


def read_logprobs(
    output: np.ndarray, counts: Sequence[int], vocab: int, chosen: Sequence[list[float]] | None = None
) -> list[TokenLogprobs]:
    """The first so many of each row of `sampling.logprobs_of`, i32[rows, SCORE_COLUMNS]."""
    bits = np.ascontiguousarray(output)
    most = min(max(counts, default=0), MAX_LOGPROBS, vocab)  # beyond a small vocabulary the device returns padding
    values = bits.view(np.float32)
    own, rank = values[:, 0].tolist(), bits[:, 1].tolist()
    ids = bits[:, 2 : 2 + most].tolist()
    best = values[:, 2 + MAX_LOGPROBS : 2 + MAX_LOGPROBS + most].tolist()
    extra = [[]] * len(own) if chosen is None else chosen
    rows = zip(own, rank, ids, best, extra, counts, strict=True)
    return [TokenLogprobs(mine, place, i[:n], b[:n], x) for mine, place, i, b, x, n in rows]
