"""A `StepPlan` as flat integer arrays, so that one copy each takes the batch and its sampling to the device.

Sampling parameters are written down once, when a sequence enters its slot; a step gathers them by slot.
"""

import hashlib
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Self

import numpy as np

from jserve.batch import SamplingInput
from jserve.constrain.bits import as_mask, bits_of, fixed_tokens, without
from jserve.protocol import MAX_CHOSEN
from jserve.runtime.sampling import INTEGER_FIELDS, MAX_COUNT, Variant
from jserve.runtime.shapes import Bucket, EngineShape
from jserve.runtime.step import StepLayout
from jserve.schedule.plan import StepPlan
from jserve.schedule.sequence import Sequence

FIELDS = {field.name: row for row, field in enumerate(fields(SamplingInput))}
_SLOTS, _OUTPUT_INDEX, _LEAVING = FIELDS["slots"], FIELDS["output_index"], FIELDS["leaving"]
_FLOAT_FIELDS = tuple(FIELDS)[INTEGER_FIELDS:]
_slot_of, _start_of = attrgetter("slot"), attrgetter("start")


@dataclass(frozen=True, slots=True)
class Needs:
    """What the rows of a plan that sample ask for."""

    variant: Variant
    logprobs: bool
    chosen: bool
    """The logprobs of tokens that they chose."""
    masks: bool
    """Some row has a constraint."""


_NEEDS = tuple(
    Needs(Variant(*(bool(bits >> place & 1) for place in range(3))), *(bool(bits >> place & 1) for place in (3, 4, 5)))
    for bits in range(64)
)
"""By the flags of `SlotSampling`."""
LEAST_TOP_P = 1e-9
"""In place of a top-p of 0, which keeps the best token alone as this does."""
_COSTLY, _LOGPROBS = 0b110, 0b1000
"""Bits of the flags: filters and edits; logprobs."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Which slots a plan's rows are in, and which of them do not sample."""

    slots: np.ndarray
    """i32[len(chunks)]"""
    unsampled: list[int]

    @classmethod
    def of(cls, plan: StepPlan) -> Self:
        chunks = plan.chunks
        slots = np.fromiter(map(_slot_of, chunks), np.int32, len(chunks))
        return cls(slots, [row for row in range(plan.num_decodes, len(chunks)) if not chunks[row].samples])


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """The inputs of a step."""

    vector: np.ndarray
    """i32 of `StepLayout`."""
    slots: np.ndarray
    """i32[S]; a part of `vector`."""
    context_len: np.ndarray
    """i32[S]; likewise."""
    late_updates: np.ndarray
    """i32[..., 3]; page updates that did not fit."""


def pack_batch(plan: StepPlan, rows: Rows, bucket: Bucket, shape: EngineShape) -> PackedBatch:
    """The plan as a step of this bucket reads it."""
    layout = StepLayout(bucket, shape.page_updates(bucket))
    chunks = plan.chunks
    count, num_decodes = len(chunks), plan.num_decodes
    packed = np.zeros(layout.size, np.int32)
    token_ids, slots, query_start, context_len, updates = layout.parts(packed)
    _fill_tokens(token_ids, plan)
    slots[:count] = rows.slots
    slots[count:] = shape.max_num_seqs
    query_start[1 : num_decodes + 1] = np.arange(1, num_decodes + 1)
    context_len[:count] = np.fromiter(map(_start_of, chunks), np.int32, count)
    context_len[:num_decodes] += 1
    end = num_decodes
    for row in range(num_decodes, count):
        length = chunks[row].length
        end += length
        query_start[row + 1] = end
        context_len[row] += length
    query_start[count + 1 :] = end
    updates = updates.reshape(-1, 3)
    updates[:, 0] = shape.num_groups * shape.max_num_seqs
    pending = page_updates(plan, shape.max_num_seqs)
    fitting = min(len(pending), len(updates))
    updates[:fitting] = pending[:fitting]
    return PackedBatch(packed, slots, context_len, pending[fitting:])


def _fill_tokens(token_ids: np.ndarray, plan: StepPlan) -> None:
    """All tokens of the step in order; -1 where the host does not know the token yet."""
    chunks, num_decodes = plan.chunks, plan.num_decodes
    token_ids[:num_decodes] = -1
    for row in plan.with_updates:
        known = chunks[row].sequence.token_ids
        if chunks[row].start < len(known):
            token_ids[row] = known[chunks[row].start]
        elif chunks[row].draft_token >= 0:
            token_ids[row] = chunks[row].draft_token
    place = num_decodes
    for chunk in chunks[num_decodes:]:
        part = chunk.sequence.token_ids[chunk.start : chunk.start + chunk.length]
        end = place + chunk.length
        token_ids[place : place + len(part)] = part
        token_ids[place + len(part) : end] = -1
        place = end


def page_updates(plan: StepPlan, num_slots: int) -> np.ndarray:
    """i32[..., 3]: (row of the page tables, index in the row, page) of every page that the plan's rows gained."""
    rows: list[int] = []
    places: list[int] = []
    pages: list[int] = []
    for chunk in [*(plan.chunks[row] for row in plan.with_updates), *plan.chunks[plan.num_decodes :]]:
        for run in chunk.page_updates:
            count = len(run.pages)
            rows += [run.group * num_slots + chunk.slot] * count
            places += range(run.first, run.first + count)
            pages += run.pages
    return np.array([rows, places, pages], np.int32).T


@dataclass(frozen=True, slots=True)
class PenaltyWindow:
    """The newest `size` tokens of a sequence. The device counted them when there were `num_entered`."""

    size: int
    sequence: Sequence
    num_entered: int

    def leaving(self, num_tokens: int, none: int) -> int:
        """The token that leaves the window when it is of the newest of `num_tokens`, or `none`.

        The host knows it: all tokens but the newest are here when a step is packed.
        """
        place = num_tokens - 1 - self.size
        return self.sequence.token_ids[place] if num_tokens > self.num_entered and place >= 0 else none


class SlotSampling:
    """The sampling parameters of every slot, on the host. One slot more than there are serves padding rows."""

    def __init__(self, shape: EngineShape) -> None:
        self.shape = shape
        self._values = np.zeros((len(FIELDS), shape.max_num_seqs + 1), np.int32)
        self._values[_SLOTS] = np.arange(shape.max_num_seqs + 1)
        self._values[FIELDS["top_k"]] = self._values[_LEAVING] = shape.vocab_size
        self._floats = self._values.view(np.float32)
        self._flags = np.zeros(shape.max_num_seqs + 1, np.uint8)  # of each slot, an index of _NEEDS
        self._chosen: dict[int, tuple[int, ...]] = {}  # by slot, the tokens whose logprobs are reported
        self._windows: dict[int, PenaltyWindow] = {}  # by slot, of those sequences that have one

    def enter(self, slot: int, sequence: Sequence) -> None:
        """Write down the parameters of a sequence that enters a slot."""
        params = sequence.request.sampling
        vocab = self.shape.vocab_size
        top_k = params.top_k if 0 < params.top_k < vocab else vocab
        self._values[_OUTPUT_INDEX, slot] = -sequence.num_prompt  # to which a step adds the length so far
        self._values[FIELDS["seed"], slot] = _fold_seed(params.seed, sequence.request.request_id)
        self._values[FIELDS["top_k"], slot] = top_k
        self._floats[INTEGER_FIELDS:, slot] = [getattr(params, name) for name in _FLOAT_FIELDS]
        self._floats[FIELDS["top_p"], slot] = max(params.top_p, LEAST_TOP_P)
        if params.is_greedy:
            self._floats[FIELDS["temperature"], slot] = 0.0
        flags = (
            not params.is_greedy,
            not params.is_greedy and (top_k < vocab or params.top_p < 1.0),
            params.edits_logits,
            params.logprobs is not None or bool(params.logprob_token_ids),
            bool(params.logprob_token_ids),
            params.needs_masks,
        )
        self._flags[slot] = sum(flag << place for place, flag in enumerate(flags))
        self._windows.pop(slot, None)
        if params.penalty_window is not None:
            self._windows[slot] = PenaltyWindow(params.penalty_window, sequence, len(sequence.token_ids))
        self._chosen.pop(slot, None)
        if params.logprob_token_ids:
            self._chosen[slot] = params.logprob_token_ids[:MAX_CHOSEN]

    def needs(self, rows: Rows) -> Needs | None:
        """What the rows that sample need; None where there are none."""
        if len(rows.unsampled) == len(rows.slots):
            return None
        return _NEEDS[np.bitwise_or.reduce(self._flags_of(rows))]

    def split_costly(self, rows: Rows) -> tuple[np.ndarray, Variant]:
        """The rows that want filters or edits, and what the others need."""
        flags = self._flags_of(rows)
        is_costly = flags & _COSTLY != 0
        return np.flatnonzero(is_costly), _NEEDS[np.bitwise_or.reduce(flags[~is_costly], initial=0)].variant

    def with_logprobs(self, rows: Rows) -> np.ndarray:
        """The rows that want logprobs."""
        return np.flatnonzero(self._flags_of(rows) & _LOGPROBS)

    def _flags_of(self, rows: Rows) -> np.ndarray:
        flags = self._flags[rows.slots]
        if rows.unsampled:
            flags[rows.unsampled] = 0
        return flags

    def pack_chosen(self, plan: StepPlan, bucket: Bucket) -> np.ndarray:
        """i32[S, MAX_CHOSEN] of the tokens whose logprobs are reported; 0 where there are fewer."""
        packed = np.zeros((bucket.rows, MAX_CHOSEN), np.int32)
        for row, chunk in enumerate(plan.chunks):
            tokens = self._chosen.get(chunk.slot, ())
            packed[row, : len(tokens)] = tokens
        return packed

    def pack(self, rows: Rows, batch: PackedBatch) -> np.ndarray:
        """i32[11, S] of `SamplingInput`."""
        packed = self._values[:, batch.slots]
        packed[_OUTPUT_INDEX] += batch.context_len
        if self._windows:
            for row, slot in enumerate(rows.slots.tolist()):
                if (window := self._windows.get(slot)) is not None:
                    packed[_LEAVING, row] = window.leaving(int(batch.context_len[row]), self.shape.vocab_size)
        if rows.unsampled:
            packed[_SLOTS, rows.unsampled] = self.shape.max_num_seqs
        return packed

    def pack_few(self, packed: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
        """i32[12, F] of `make_few_sampler`: up to F = `count` rows of i32[11, S], with their numbers."""
        few = np.empty((len(FIELDS) + 1, count), np.int32)
        few[:-1] = self._values[:, -1:]
        few[-1] = packed.shape[1]
        few[:-1, : len(rows)] = packed[:, rows]
        few[-1, : len(rows)] = rows
        return few


def history_rows(sequence: Sequence, vocab: int) -> tuple[np.ndarray, np.ndarray]:
    """A slot's counts i16[V] of the output so far and prompt mask bool[V]; for a sequence that enters its slot,
    when no token of it is on the device. With a window, the counts are of the tokens in it, and the mask is empty.
    """
    tokens, prompt = sequence.token_ids, sequence.num_prompt
    if (window := sequence.request.sampling.penalty_window) is not None:
        tokens, prompt = tokens[-window:], 0
    counts = np.bincount(np.asarray(tokens[prompt:], np.int64), minlength=vocab)[:vocab]
    in_prompt = np.zeros(vocab, bool)
    in_prompt[np.asarray(tokens[:prompt], np.int64)] = True
    return np.minimum(counts, MAX_COUNT).astype(np.int16), in_prompt


def bias_row(sequence: Sequence, num_outputs: int, vocab: int) -> np.ndarray:
    """What is added to a slot's logits, f32[V]: minus infinity for tokens that must not come.

    Stop tokens must not until `min_tokens` have come. A sequence with a constraint has all of its bans in its
    masks.
    """
    params = sequence.request.sampling
    bias = np.zeros(vocab, np.float32)
    for token, value in (params.logit_bias or {}).items():
        bias[token] = value
    if sequence.constraint is None:
        allowed = fixed_tokens(params, vocab)
        if num_outputs < params.min_tokens:
            allowed = without(allowed, bits_of(sequence.stop_ids, vocab), vocab)
        bias[~as_mask(allowed, vocab)] = -np.inf
    return bias


def _fold_seed(seed: int | None, request_id: str) -> int:
    """A 31-bit seed: a digest of the request's own, or of its id where it has none."""
    text = f"seed {seed}" if seed is not None else f"request {request_id}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little") >> 1
