"""One request on its way through the engine: its tokens, how far they are computed, and what it holds."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Self

from jserve.protocol import FinishReason, Request
from jserve.schedule.prefix import DigestChain


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
    token_ids: list[int]
    """Prompt and generated tokens known on the host."""
    num_prompt: int
    max_total: int
    """Most tokens, prompt included, that it may reach."""
    max_pages: int
    """Most pages it may hold. The last token is never fed back, so max_total - 1 tokens need a place."""
    rank: tuple[int, int]
    """(priority, order of arrival): smaller is served first and preempted last. Never changes."""
    eos_ids: frozenset[int]
    """The model's end-of-sequence tokens, or none if the request ignores them."""
    stop_ids: frozenset[int]
    """All tokens that end it: `eos_ids` and the request's own."""
    chain: DigestChain
    status: Status = Status.WAITING
    num_computed: int = 0
    """Tokens whose KV is written by steps already dispatched."""
    num_pending: int = 0
    """Sampled tokens that are still on the device."""
    pages: list[int] = field(default_factory=list)
    slot: int = -1
    """Row of the device's state; -1 when not running."""
    num_named: int = 0
    """Leading pages already offered to the prefix index, or shared from it."""
    num_preemptions: int = 0
    num_cached: int = 0
    """Prompt tokens found in the prefix cache at first admission."""
    scheduled_at: float = 0.0
    """`time.time()` of the first admission."""

    @property
    def num_uncomputed(self) -> int:
        return len(self.token_ids) + self.num_pending - self.num_computed

    @property
    def may_grow(self) -> bool:
        """Whether it may need another page than those it holds."""
        return len(self.pages) < self.max_pages

    @classmethod
    def of(
        cls,
        request: Request,
        *,
        arrival_number: int,
        max_total: int,
        page_size: int,
        eos_token_ids: frozenset[int],
    ) -> Self:
        token_ids = list(request.token_ids)
        eos_ids = frozenset() if request.sampling.ignore_eos else eos_token_ids
        return cls(
            request=request,
            token_ids=token_ids,
            num_prompt=len(token_ids),
            max_total=max_total,
            max_pages=-(-(max_total - 1) // page_size),
            rank=(request.priority, arrival_number),
            eos_ids=eos_ids,
            stop_ids=eos_ids.union(request.sampling.stop_token_ids),
            chain=DigestChain(token_ids, page_size, request.cache_salt),
        )

    def finish_reason(self, output_index: int) -> FinishReason | None:
        """Why the sequence ends with its newest token, the output of this index, or None.

        A stop token among the first `min_tokens` outputs, where the device masks it, does not end it.
        """
        if self.token_ids[-1] in self.stop_ids and output_index >= self.request.sampling.min_tokens:
            return "stop"
        return "length" if len(self.token_ids) == self.max_total else None
