"""Drafts what a sequence may say next, by looking up its end in what it has said (prompt lookup).

A draft costs rows of a step and changes no answer: a drafted token counts only where the step before it chose that very
token. So everything here is about speed. Owns how many tokens are drafted for a sequence, and what came of it.
"""

from dataclasses import dataclass, field
from typing import Any

from jserve.config.speculation import SpeculativeConfig
from jserve.schedule.plan import ScheduledChunk, StepPlan
from jserve.schedule.sequence import Sequence, Status

_MOST_PAUSE = 256
"""Tokens that a sequence of which drafts are rejected again and again goes without one."""


@dataclass(slots=True)
class Drafted:
    """What is known of a sequence for which tokens may be drafted."""

    size: int
    """Tokens of the next draft."""
    num_indexed: int = 0
    places: dict[tuple[int, ...], int] = field(default_factory=dict)
    """By some tokens in a row, the place after they came last, before the sequence's end."""
    num_in_flight: int = 0
    """Drafted tokens of the step that is in flight; the sequence waits for it."""
    num_accepted: int = 0
    pause: int = 0
    """How long the next pause is, in tokens; 0 where the last draft was of use."""
    resumes_at: int = 0
    """Length before which nothing is drafted."""


class Drafter:
    """Drafts tokens for the sequences whose draws depend on logits and positions alone."""

    def __init__(self, config: SpeculativeConfig) -> None:
        self._least, self._most = config.lookup
        self._size = config.num_speculative_tokens
        self._num_drafts = 0
        self._num_draft_tokens = 0
        self._accepted_per_position = [0] * self._size

    def stats(self) -> dict[str, Any]:
        """Counters since the start, by their names in `EngineStats`."""
        return {
            "num_drafts": self._num_drafts,
            "num_draft_tokens": self._num_draft_tokens,
            "num_accepted_tokens": sum(self._accepted_per_position),
            "accepted_per_position": list(self._accepted_per_position),
        }

    def watch(self, sequence: Sequence) -> None:
        """Draft for this sequence, if that is possible: where penalties, biases or masks change the logits, the rows
        of a draft would each need a state of their own.
        """
        request = sequence.request
        if not request.sampling.edits_logits and request.sampling.penalty_window is None and not request.pooling:
            sequence.drafted = Drafted(self._size)

    def propose(self, sequence: Sequence, most: int) -> list[int]:
        """Up to `most` tokens that may follow those that are known; none where nothing matches."""
        drafted, tokens = sequence.drafted, sequence.token_ids
        if drafted is None or len(tokens) < drafted.resumes_at:
            return []
        count, places = len(tokens), drafted.places
        for place in range(max(drafted.num_indexed, self._least), count):
            for size in range(self._least, min(self._most, place) + 1):
                places[tuple(tokens[place - size : place])] = place
        drafted.num_indexed = count
        for size in range(min(self._most, count - 1), self._least - 1, -1):
            earlier = places.get(tuple(tokens[count - size :]))
            if earlier is not None:
                return tokens[earlier : earlier + min(drafted.size, most)].tolist()
        return []

    def waits(self, sequence: Sequence, most: int) -> bool:
        """Whether the next step of a sequence waits until all of its tokens are known: a draft of it is in flight, or
        one of up to `most` tokens can be made then.
        """
        drafted = sequence.drafted
        if drafted is None or not sequence.num_pending:
            return False
        return drafted.num_in_flight > 0 or (most > 0 and bool(self.propose(sequence, 1)))

    def schedule(self, chunks: list[ScheduledChunk], with_updates: list[int], most: int, page_size: int) -> None:
        """Add rows for up to `most` tokens that are drafted for each sequence all of whose tokens were known. They stay
        in the page of the sequence's next token, and end before its last.
        """
        if not most:
            return
        for row in tuple(with_updates):
            sequence, start = chunks[row].sequence, chunks[row].start
            drafted, length = sequence.drafted, len(sequence.token_ids)
            if drafted is None or sequence.num_pending != 1:
                continue
            room = min(most, page_size - 1 - start % page_size, sequence.max_total - length - 1)
            tokens = self.propose(sequence, room) if room > 0 else []
            if not tokens:
                continue
            drafted.num_in_flight, drafted.num_accepted = len(tokens), 0
            self._num_drafts += 1
            self._num_draft_tokens += len(tokens)
            for token in tokens:
                start += 1
                index = start + 1 - sequence.num_prompt
                with_updates.append(len(chunks))
                chunk = ScheduledChunk(sequence, sequence.slot, start, 1, True, index, False, (), draft_token=token)
                chunks.append(chunk)

    def accepts(self, chunk: ScheduledChunk, token: int) -> bool:
        """Whether a drafted token is the one that was chosen in its place, so that `token`, which was chosen after it,
        counts too. A sequence that was preempted meanwhile has lost what was computed of its draft.
        """
        sequence, start, drafted = chunk.sequence, chunk.start, chunk.sequence.drafted
        known = sequence.token_ids
        if drafted is None or sequence.status is not Status.RUNNING:
            return False
        if len(known) != start + 1 or known[start] != chunk.draft_token:
            return False
        if token < 0:  # not finite: it is computed again without a draft, and fails there
            return False
        self._accepted_per_position[drafted.num_accepted] += 1
        drafted.num_accepted += 1
        sequence.num_computed += 1
        sequence.num_pending += 1
        return True

    def settle(self, plan: StepPlan) -> None:
        """A step was read back: fit the next drafts of its sequences to what came of these."""
        for chunk in plan.chunks:
            drafted = chunk.sequence.drafted
            if chunk.draft_token < 0 or drafted is None or not drafted.num_in_flight:
                continue
            if drafted.num_accepted:
                wanted = 2 * drafted.num_accepted
                drafted.size = min(self._size, max(drafted.size, wanted) if wanted > drafted.num_in_flight else wanted)
                drafted.pause = 0
            else:
                drafted.size = max(1, drafted.size // 2)
                drafted.pause = min(_MOST_PAUSE, 2 * drafted.pause + 1)
                drafted.resumes_at = len(chunk.sequence.token_ids) + drafted.pause
            drafted.num_in_flight = 0
