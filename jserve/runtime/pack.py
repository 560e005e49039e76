"""A `StepPlan` as flat integer arrays, so that one copy each takes the batch and its sampling to the device.

Sampling parameters are written down once, when a sequence enters its slot; a step gathers them by slot.
"""

import hashlib
from dataclasses import fields

import numpy as np

from jserve.batch import SamplingInput
from jserve.constrain.bits import as_mask, bits_of, fixed_tokens, without
from jserve.protocol import MAX_CHOSEN
from jserve.runtime.sampling import INTEGER_FIELDS, MAX_COUNT, Variant
from jserve.runtime.shapes import Bucket, EngineShape
from jserve.runtime.step import StepLayout
from jserve.schedule.plan import ScheduledChunk, StepPlan
from jserve.schedule.sequence import Sequence

FIELDS = {field.name: row for row, field in enumerate(fields(SamplingInput))}


def pack_batch(plan: StepPlan, bucket: Bucket, shape: EngineShape) -> tuple[np.ndarray, np.ndarray]:
    """The i32 vector of `StepLayout`, and the page updates that did not fit in it, i32[..., 3]."""
    layout = StepLayout(bucket, shape.page_updates(bucket))
    tokens, rows, chunks = bucket.tokens, bucket.rows, plan.chunks
    packed = np.zeros(layout.size, np.int32)
    token_ids, slots, query_start, context_len, updates = np.split(packed, np.cumsum([tokens, rows, rows + 1, rows]))
    count = len(chunks)
    token_ids[: plan.num_tokens] = _token_ids(chunks)
    slots.fill(shape.max_num_seqs)
    slots[:count] = [chunk.slot for chunk in chunks]
    lengths = [chunk.length for chunk in chunks]
    np.cumsum(lengths, out=query_start[1 : count + 1])
    query_start[count + 1 :] = query_start[count]
    context_len[:count] = [chunk.start + chunk.length for chunk in chunks]
    updates = updates.reshape(-1, 3)
    updates[:, 0] = shape.max_num_seqs
    pending = page_updates(plan)
    fitting = min(len(pending), len(updates))
    updates[:fitting] = pending[:fitting]
    return packed, pending[fitting:]


def _token_ids(chunks: tuple[ScheduledChunk, ...]) -> list[int]:
    """All tokens of the step in order; -1 where the host does not know the token yet."""
    tokens: list[int] = []
    for chunk in chunks:
        known = chunk.sequence.token_ids
        if chunk.length == 1:
            tokens.append(known[chunk.start] if chunk.start < len(known) else -1)
            continue
        part = known[chunk.start : chunk.start + chunk.length]
        tokens += part
        tokens += [-1] * (chunk.length - len(part))
    return tokens


def page_updates(plan: StepPlan) -> np.ndarray:
    """i32[..., 3]: (slot, index in the page table, page) of every page that the plan's rows gained."""
    entries = [
        (chunk.slot, index, page)
        for chunk in plan.chunks
        if chunk.page_updates
        for index, page in enumerate(chunk.page_updates, chunk.first_page)
    ]
    return np.array(entries, np.int32).reshape(-1, 3)


class SlotSampling:
    """The sampling parameters of every slot, on the host."""

    def __init__(self, shape: EngineShape) -> None:
        self.shape = shape
        self._values = np.zeros((len(FIELDS), shape.max_num_seqs), np.int32)
        self._floats = self._values.view(np.float32)
        self._draws = np.zeros(shape.max_num_seqs, bool)
        self._filters = np.zeros(shape.max_num_seqs, bool)
        self._edits = np.zeros(shape.max_num_seqs, bool)
        self._logprobs = np.zeros(shape.max_num_seqs, bool)
        self._chosen: dict[int, tuple[int, ...]] = {}  # by slot, the tokens whose logprobs are reported
        self._masks = np.zeros(shape.max_num_seqs, bool)

    def enter(self, slot: int, sequence: Sequence) -> None:
        """Write down the parameters of a sequence that enters a slot."""
        params = sequence.request.sampling
        vocab = self.shape.vocab_size
        whole = {
            "seed": _fold_seed(params.seed, sequence.request.request_id),
            "top_k": params.top_k if 0 < params.top_k < vocab else vocab,
        }
        for name, value in whole.items():
            self._values[FIELDS[name], slot] = value
        for name in list(FIELDS)[INTEGER_FIELDS:]:
            self._floats[FIELDS[name], slot] = getattr(params, name)
        if params.is_greedy:
            self._floats[FIELDS["temperature"], slot] = 0.0
        self._draws[slot] = not params.is_greedy
        self._filters[slot] = not params.is_greedy and (whole["top_k"] < vocab or params.top_p < 1.0)
        self._edits[slot] = params.edits_logits
        self._logprobs[slot] = params.logprobs is not None or bool(params.logprob_token_ids)
        self._chosen.pop(slot, None)
        if params.logprob_token_ids:
            self._chosen[slot] = params.logprob_token_ids[:MAX_CHOSEN]
        self._masks[slot] = params.needs_masks

    def needs(self, plan: StepPlan) -> Variant | None:
        """What the plan's rows that sample need; None where there are none."""
        slots = [chunk.slot for chunk in plan.chunks if chunk.samples]
        if not slots:
            return None
        return Variant(*(bool(kind[slots].any()) for kind in (self._draws, self._filters, self._edits, self._logprobs)))

    def wants_chosen(self, plan: StepPlan) -> bool:
        """Whether some row that samples chose tokens whose logprobs it wants."""
        return bool(self._chosen) and any(chunk.samples and chunk.slot in self._chosen for chunk in plan.chunks)

    def pack_chosen(self, plan: StepPlan, bucket: Bucket) -> np.ndarray:
        """i32[S, MAX_CHOSEN] of those tokens; 0 where there are fewer."""
        packed = np.zeros((bucket.rows, MAX_CHOSEN), np.int32)
        for row, chunk in enumerate(plan.chunks):
            tokens = self._chosen.get(chunk.slot, ())
            packed[row, : len(tokens)] = tokens
        return packed

    def need_masks(self, plan: StepPlan) -> bool:
        """Whether a row of the plan that samples has a constraint."""
        return bool(self._masks.any()) and any(chunk.samples and self._masks[chunk.slot] for chunk in plan.chunks)

    def pack(self, plan: StepPlan, bucket: Bucket) -> np.ndarray:
        """i32[10, S] of `SamplingInput`."""
        count = len(plan.chunks)
        slots = np.fromiter((chunk.slot for chunk in plan.chunks), np.int32, count)
        samples = np.fromiter((chunk.samples for chunk in plan.chunks), bool, count)
        packed = np.zeros((len(FIELDS), bucket.rows), np.int32)
        packed[FIELDS["slots"]] = self.shape.max_num_seqs
        packed[FIELDS["top_k"]] = self.shape.vocab_size
        packed[:, :count] = self._values[:, slots]
        packed[FIELDS["output_index"], :count] = [chunk.output_index for chunk in plan.chunks]
        packed[FIELDS["slots"], :count] = np.where(samples, slots, self.shape.max_num_seqs)
        return packed


def history_rows(sequence: Sequence, vocab: int) -> tuple[np.ndarray, np.ndarray]:
    """A slot's counts i16[V] of the output so far and prompt mask bool[V]; for a sequence that enters its slot,
    when no token of it is on the device.
    """
    tokens, prompt = sequence.token_ids, sequence.num_prompt
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
    """A 31-bit seed: a digest of the given one, or of the request's id where none is given."""
    text = f"seed {seed}" if seed is not None else f"request {request_id}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little") >> 1
