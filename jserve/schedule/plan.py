"""What one step computes and what is read back from it, in host words. schedule/ and runtime/ share it."""

from dataclasses import dataclass

import msgspec

from jserve.protocol import TokenLogprobs
from jserve.schedule.sequence import Sequence


class PageRun(msgspec.Struct, frozen=True, gc=False, eq=False):
    """Neighbouring pages in a sequence's table of one cache group."""

    group: int
    first: int
    """Index in the table of `pages[0]`."""
    pages: tuple[int, ...]


# A msgspec struct, not a dataclass: a step of 256 decodes makes 256 of these, and a frozen dataclass took
# 0.68 us each to make where this took 0.05 us.
class ScheduledChunk(msgspec.Struct, frozen=True, gc=False, eq=False):
    """Positions [start, start + length) of one sequence, computed in one step.

    The token at a position >= len(sequence.token_ids) is not known on the host: it is the slot's last one,
    sampled on the device by an earlier step.
    """

    sequence: Sequence
    slot: int
    start: int
    length: int
    samples: bool
    """The chunk reaches the sequence's end, so the step samples its next token."""
    output_index: int
    """Index among the outputs of the token that follows the chunk; 0 is the first generated token. Below 0
    in a prompt's earlier chunks, which sample nothing."""
    is_first: bool
    """First chunk since (re)admission: the slot's page table and sampling state start anew."""
    page_updates: tuple[PageRun, ...]
    """Pages appended to the sequence's tables since its last chunk, including shared ones when `is_first`."""
    prompt_reads: tuple[int, int] | None = None
    """Positions [first, end) of the chunk whose hidden states the request is about, beyond the next token."""
    draft_token: int = -1
    """The token at `start` where it is a guess; the chunk counts only if the one before it chose that token."""


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step: the chunks of running decodes first, then of prompts. Each sequence has at most one chunk, and
    after it one for each token that is drafted for it, all in the slot of the sequence.
    """

    chunks: tuple[ScheduledChunk, ...]
    num_tokens: int
    prompt_reads: bool = False
    """Whether a chunk has `prompt_reads`."""
    num_decodes: int = 0
    """The first so many chunks are of length 1, sample, read nothing and are not the first of their sequences, so
    that whoever looks for something else may skip them. 0 says nothing about the others."""
    with_updates: tuple[int, ...] = ()
    """Indices of those of them that have `page_updates` or a token that the host knows."""
    saves: tuple[tuple[int, int], ...] = ()
    """(slot, snapshot) of states that are copied before the step, where layers keep any."""
    restores: tuple[tuple[int, int], ...] = ()
    """(snapshot, slot) likewise, after the saves."""

    @property
    def is_decode(self) -> bool:
        """Whether all chunks have length 1."""
        return self.num_tokens == len(self.chunks)


@dataclass(frozen=True, slots=True)
class PromptRead:
    """What was read back of a chunk's `prompt_reads`."""

    chunk: ScheduledChunk
    logprobs: list[TokenLogprobs]
    """One for each token that follows the positions; empty where the request is for an embedding."""
    hidden_sum: bytes = b""
    """f32[E], the sum of the positions' final hidden states."""


@dataclass(frozen=True, slots=True)
class StepTokens:
    """What was read back from the device for one plan, in the order of its chunks."""

    token_ids: list[int]
    """One per chunk; ignored where the chunk does not sample."""
    logprobs: list[TokenLogprobs | None] | None = None
    prompt_reads: tuple[PromptRead, ...] = ()
    """One for each chunk with `prompt_reads`, in their order."""
    not_finite: tuple[int, ...] = ()
    """Indices of the chunks for which the device computed NaN or infinity; nothing else that is said of them holds."""
