"""One request on its way through the engine: its tokens, how far they are computed, and what it holds."""

from array import array
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Self

from msgspec import structs

from jserve.constrain.row import RowConstraint
from jserve.protocol import FinishReason, Request, TokenLogprobs
from jserve.schedule.groups import PageTable
from jserve.schedule.prefix import DigestChain

if TYPE_CHECKING:
    from jserve.schedule.drafts import Drafted
    from jserve.schedule.share import Share


class Status(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Sequence:
    """Mutable state of one request; only the scheduler changes it.

    len(token_ids) + num_pending - num_computed tokens are still to compute. That is 1 while generating, and
    more while a prompt, or a preempted sequence on its return, is being computed.
    """

    request: Request
    """Without its `token_ids`, which are below."""
    token_ids: "array[int]"
    """Prompt and generated tokens known on the host. Not a list: that takes nine times the memory, and the garbage
    collector would walk through every token of every prompt."""
    num_prompt: int
    max_total: int
    """Most tokens, prompt included, that it may reach."""
    max_pages: int
    """Most pages of tokens. The last token generated is never fed back and needs no place."""
    rank: tuple[int, int]
    """(priority, order of arrival): smaller is preempted last. Never changes."""
    share: "Share"
    """Its tenant's, which counts its tokens."""
    eos_ids: frozenset[int]
    """The model's end-of-sequence tokens, or none if the request ignores them."""
    stop_ids: frozenset[int]
    """All tokens that end it: `eos_ids` and the request's own."""
    chain: DigestChain
    next_read: int
    """First position that no dispatched step reads for the request; `end_read` where all are read."""
    end_read: int
    """End of the positions whose hidden states the request needs, beyond the next token. Prompt logprobs need all but
    the last; an embedding needs the last, the first or all."""
    constraint: RowConstraint | None = None
    """What may come next, where that depends on what has come."""
    status: Status = Status.WAITING
    num_computed: int = 0
    """Tokens whose KV is written by steps already dispatched."""
    num_charged: int = 0
    """Leading tokens that its share has counted, or that came from the prefix cache."""
    num_resumed: int = 0
    """Tokens that it had been computed to when it was last admitted; those that it lost are computed again."""
    num_owed: int = 0
    """Tokens in its share's backlog."""
    num_pending: int = 0
    """Sampled tokens that are still on the device."""
    tables: list[PageTable] = field(default_factory=list)
    """Its pages, of each cache group; empty when not running."""
    num_pages: int = 0
    """Pages of tokens that it has room for, or takes as its prompt is computed: the end of its tables."""
    slot: int = -1
    """Row of the device's state; -1 when not running."""
    saves: tuple[int, ...] = ()
    """Ends of pages, in tokens, at which its state is copied, where layers keep one; see `schedule.snapshots`."""
    tail: bytes | None = None
    """Digest of its newest copy that holds tokens of its answer."""
    num_named: int = 0
    """Leading pages already offered to the prefix index, or shared from it."""
    num_preemptions: int = 0
    num_cached: int = 0
    """Prompt tokens found in the prefix cache at first admission."""
    scheduled_at: float = 0.0
    """`time.time()` of the first admission."""
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    """Those that have been read back so far."""
    drafted: "Drafted | None" = None
    """Its drafts, where tokens are drafted for it."""
    hidden_sums: list[bytes] = field(default_factory=list)
    """Sums for an embedding that have been read back so far: one f32[E] for each chunk."""

    @property
    def num_uncomputed(self) -> int:
        return len(self.token_ids) + self.num_pending - self.num_computed

    @property
    def may_grow(self) -> bool:
        """Whether it may need room for more than `num_pages`."""
        return self.num_pages < self.max_pages

    @classmethod
    def of(
        cls,
        request: Request,
        *,
        arrival_number: int,
        share: "Share",
        max_total: int,
        page_size: int,
        eos_token_ids: frozenset[int],
        constraint: RowConstraint | None = None,
    ) -> Self:
        token_ids = array("i", request.token_ids)
        num_prompt = len(token_ids)
        first_read, end_read = read_range(request)
        sampling = request.sampling
        # The end of a grammar is an end of sequence that cannot be ignored: nothing else may come there.
        eos_ids = frozenset() if sampling.ignore_eos and not sampling.grammar else eos_token_ids
        return cls(
            request=structs.replace(request, token_ids=[]),
            token_ids=token_ids,
            num_prompt=num_prompt,
            max_total=max_total,
            max_pages=-(-max(max_total - 1, num_prompt) // page_size),
            rank=(request.priority, arrival_number),
            share=share,
            eos_ids=eos_ids,
            stop_ids=eos_ids.union(sampling.stop_token_ids),
            chain=DigestChain(token_ids, page_size, request.cache_salt),
            next_read=first_read,
            end_read=end_read,
            constraint=constraint,
        )

    def take_prompt_reads(self, start: int, end: int) -> tuple[int, int] | None:
        """The positions in [start, end) that a step shall read; no position is returned twice."""
        first, last = max(start, self.next_read), min(end, self.end_read)
        if first >= last:
            return None
        self.next_read = last
        return first, last

    def scores(self) -> list[TokenLogprobs] | None:
        """The prompt's logprobs that have been read back; None where the request wants none."""
        wants_scores = self.request.sampling.prompt_logprobs is not None and not self.request.pooling
        return self.prompt_logprobs if wants_scores else None

    def finish_reason(self, output_index: int) -> FinishReason | None:
        """Why the sequence ends with its newest token, the output of this index, or None.

        A stop token among the first `min_tokens` outputs, where the device masks it, does not end it; but the
        end of a grammar does, which comes there only where the grammar has nothing else.
        """
        sampling = self.request.sampling
        if self.token_ids[-1] in self.stop_ids and (output_index >= sampling.min_tokens or sampling.grammar):
            return "stop"
        return "length" if len(self.token_ids) == self.max_total else None


def read_range(request: Request) -> tuple[int, int]:
    """Positions [first, end) whose hidden states a request is about; empty for most."""
    num_prompt = len(request.token_ids)
    if request.pooling:
        return (num_prompt - 1 if request.pooling == "last" else 0), (1 if request.pooling == "cls" else num_prompt)
    return 0, 0 if request.sampling.prompt_logprobs is None else num_prompt - 1
