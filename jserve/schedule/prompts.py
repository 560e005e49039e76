"""Deals a step's tokens out to prompts: by share, and within a share to the oldest prompt and to shorter ones.

The share that has had least gets at least half of what is left, and all that it lacks of the next one; then the next
share likewise. Within a share half goes to prompts that are shorter than the oldest, shortest first, and the rest in
order of arrival. So a short prompt is done soon, whoever is ahead of it, and the oldest is never slowed down to less
than half, however many shorter ones come: nobody waits for ever.
"""

from collections.abc import Iterable

from jserve.schedule.cache import Cache
from jserve.schedule.padding import Padding
from jserve.schedule.plan import ScheduledChunk
from jserve.schedule.running import RunningSequences
from jserve.schedule.sequence import Sequence, Status
from jserve.schedule.share import Share


class PromptStep:
    """The prompts of one step, written behind the decodes in `chunks`, of at most `room` tokens together."""

    def __init__(
        self, cache: Cache, running: RunningSequences, padding: Padding, chunks: list[ScheduledChunk], room: int
    ) -> None:
        self._cache = cache
        self._running = running
        self._padding = padding
        self._chunks = chunks
        self._num_decodes = len(chunks)
        self._room = room
        self._admits = True
        # The newest chunk is not written yet: as the last one it may get less than there is room for.
        self._held: Sequence | None = None
        self._held_length = 0
        self._held_is_first = False
        self.num_tokens = 0
        """Tokens planned."""
        self.num_prompt_tokens = 0
        """Those that are not of an answer, computed again after a preemption."""

    def deal(self, shares: list[Share], running: Iterable[Sequence]) -> None:
        """Plan prompts of `shares`, in this order. `running` are sequences that run and have no chunk, by rank."""
        prompts: dict[Share, list[Sequence]] = {share: [] for share in shares}
        for sequence in running:
            if sequence.num_owed:
                prompts[sequence.share].append(sequence)
        demand = sum(share.backlog for share in shares)
        for place, share in enumerate(shares):
            if not self._room:
                break
            demand -= share.backlog
            behind = shares[place + 1] if place + 1 < len(shares) else None
            self._serve(share, prompts[share], self._quota(share, behind, demand))
        if self._held is not None:
            excess = self._padding.excess(self._num_decodes + self.num_tokens, len(self._chunks) + 1, self._num_decodes)
            if excess < self._held_length:
                self._held_length -= excess
                self.num_tokens -= excess
            self._write()

    def _quota(self, share: Share, behind: Share | None, demand: int) -> int:
        """How much of the room a share may take where those behind it want `demand` tokens."""
        room = self._room
        if behind is None or behind.priority != share.priority:
            return room
        return min(room, max(room - room // 2, behind.served - share.served, room - demand))

    def _serve(self, share: Share, prompts: list[Sequence], quota: int) -> None:
        """Plan at most `quota` tokens of a share, whose `prompts` run."""
        passing = quota // 2
        while passing and (shorter := self._shorter(share, prompts)) is not None:
            planned = self._grant(shorter, passing, prompts)
            passing -= planned
            quota -= planned
        while quota and self._room and (oldest := self._oldest(share, prompts)) is not None:
            quota -= self._grant(oldest, quota, prompts)

    def _oldest(self, share: Share, prompts: list[Sequence]) -> Sequence | None:
        """The prompt without a chunk that arrived first."""
        first = share.waiting.first() if self._may_admit(1) else None
        if first is not None and first.num_pending:
            first = None  # preempted with a token in flight
        if not prompts:
            return first
        return prompts[0] if first is None or prompts[0].rank < first.rank else first

    def _shorter(self, share: Share, prompts: list[Sequence]) -> Sequence | None:
        """The shortest prompt, where it may pass the oldest. Nobody passes one that lacks pages, or takes its slot."""
        oldest = self._oldest(share, prompts)
        if oldest is None or oldest is share.starved:
            return None
        shortest = min(prompts, key=lambda prompt: (prompt.num_owed, prompt.rank), default=oldest)
        waiting = share.waiting.shortest() if self._may_admit(1 + (oldest.status is Status.WAITING)) else None
        if waiting is not None and waiting.num_owed < shortest.num_owed and not waiting.num_pending:
            shortest = waiting
        return shortest if shortest.num_owed < oldest.num_owed and self._room else None

    def _may_admit(self, count: int) -> bool:
        return self._admits and self._running.num_free >= count

    def _grant(self, sequence: Sequence, most: int, prompts: list[Sequence]) -> int:
        """Plan at most so many tokens of a prompt, admitted before if it waits. Returns how many there are."""
        is_first = sequence.status is Status.WAITING
        if self._held is not None:  # first, because this one may share its pages
            self._write()
        if not is_first:
            prompts.remove(sequence)
        elif not self._running.admit(sequence):
            self._admits = False  # else those behind it would take the pages that it lacks
            return 0
        wanted = min(sequence.num_uncomputed, most, self._room)
        if self._cache.snapshots is not None:
            wanted = self._cache.snapshots.cut(sequence, wanted)
        length = self._fitting(sequence, wanted)
        self._room -= length
        if length < wanted:  # two that both lack pages would wait for each other
            self._room = 0
            sequence.share.starved, sequence.share.starved_of = sequence, 0
        elif sequence is sequence.share.starved:
            sequence.share.starved = None
        if length:
            self._held, self._held_length, self._held_is_first = sequence, length, is_first
            self.num_tokens += length
        return length

    def _fitting(self, sequence: Sequence, length: int) -> int:
        """How many of a prompt's next `length` tokens have pages."""
        if not self._cache.has_windows:
            return length
        return self._cache.count_fitting(sequence, length, self._running.num_spare)

    def _write(self) -> None:
        """Write the chunk that is held down, and count its tokens."""
        sequence, is_first = self._held, self._held_is_first
        assert sequence is not None
        self._held = None
        cache, start = self._cache, sequence.num_computed
        if cache.snapshots is not None and start in sequence.saves:
            cache.snapshots.save(sequence)
        end = start + self._held_length
        samples = end == start + sequence.num_uncomputed and not sequence.request.ends_with_prompt
        sequence.num_computed = end
        sequence.num_pending += samples
        num_left, num_prompt = sequence.num_uncomputed, sequence.num_prompt
        # A last token of which nothing is sampled is left to prompts; one that gives the next token is a decode.
        sequence.share.owe(sequence, num_left if num_left > (not sequence.request.ends_with_prompt) else 0)
        sequence.share.charge(sequence)
        self.num_prompt_tokens += max(0, min(end, num_prompt) - start)
        page_updates = cache.allocate_chunk(sequence, end) if cache.has_windows else ()
        cache.register_full_pages(sequence)
        self._chunks.append(
            ScheduledChunk(
                sequence=sequence,
                slot=sequence.slot,
                start=start,
                length=self._held_length,
                samples=samples,
                output_index=end - num_prompt,
                is_first=is_first,
                page_updates=cache.runs(sequence) if is_first else page_updates,
                prompt_reads=sequence.take_prompt_reads(start, end),
            )
        )
