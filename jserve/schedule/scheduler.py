"""Decides what each step computes, and turns the tokens that come home into deltas.

Owns the sequences, their order, their slots and their pages. Knows no prefill and no decode, only tokens
still to compute and a budget per step; knows nothing of arrays or of the device. It relies on three things:
steps run in the order they were scheduled, each layer writes a step's KV before it attends, and every plan
that `schedule` returns is dispatched. Then a page may be shared as soon as the step that fills it is planned,
and reused as soon as the plans that read it are.

A sequence's pages for all tokens known at admission are taken at admission: a prompt that started is never
stuck half way, and only generation asks for further pages, one at a time. `Cache` tells how layers with a window
differ, which keep only what they see.
"""

import time
from collections.abc import Callable, Iterable

from jserve.constrain.row import RowConstraint
from jserve.protocol import EngineStats, Request, TokenDelta, TokenLogprobs
from jserve.schedule.cache import Cache
from jserve.schedule.deltas import error_delta, prompt_delta, token_delta
from jserve.schedule.groups import Windows, longest_sequence
from jserve.schedule.limits import LengthLimits
from jserve.schedule.padding import filled
from jserve.schedule.plan import PageRun, ScheduledChunk, StepPlan, StepTokens
from jserve.schedule.running import RunningSequences
from jserve.schedule.sequence import Sequence, Status
from jserve.schedule.waiting import WaitingQueue


class Scheduler:
    """Continuous batching over a fixed pool of pages. Driven from one thread.

    One step ahead (or more): `schedule` may be called again before `update` of the plan before. `num_pages`
    pages of `page_size` tokens for cache groups of these `windows`; at most `max_num_seqs` sequences run, in slots
    0 to max_num_seqs - 1; a step computes at most `max_num_batched_tokens` tokens. `step_sizes` tells the tokens,
    ascending, to which steps of so many rows are padded, and `step_overhead` how many tokens cost as much as a further
    step, see `filled`.
    """

    def __init__(
        self,
        *,
        num_pages: int,
        page_size: int,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_model_len: int,
        eos_token_ids: frozenset[int],
        enable_prefix_caching: bool,
        windows: Windows = (None,),
        step_sizes: Callable[[int], tuple[int, ...]] = lambda rows: (),
        step_overhead: int = 0,
    ) -> None:
        if max_num_seqs < 1 or max_num_batched_tokens < 1:
            raise ValueError(
                f"max_num_seqs is {max_num_seqs} and max_num_batched_tokens {max_num_batched_tokens}; "
                "both must be at least 1"
            )
        self._cache = Cache(num_pages, page_size, windows, max_num_batched_tokens, shares=enable_prefix_caching)
        self._pool = self._cache.pool
        self._max_num_batched_tokens = max_num_batched_tokens
        # Beside running answers prompts get half a step, so that none of them waits as long as a lone chunk takes.
        # Twice the sequences at the least: however many decode, some prompt gets on.
        self._mixed_budget = min(max_num_batched_tokens, max(max_num_batched_tokens // 2, 2 * max_num_seqs))
        self._limits = LengthLimits(max_model_len, longest_sequence(num_pages, windows, page_size, max_model_len))
        self._eos_token_ids = eos_token_ids
        self._step_sizes = step_sizes
        self._step_overhead = step_overhead
        self._sequences: dict[str, Sequence] = {}
        self._waiting = WaitingQueue()
        self._running = RunningSequences(self._cache, max_num_seqs)
        self._num_arrived = 0
        # The head that was last refused admission, and the spare pages it asked for: until there are as
        # many, its prefix is not looked up again, so waiting costs the same however long a prompt is.
        self._blocked: Sequence | None = None
        self._blocked_on = 0
        self._num_preemptions = 0
        self._prefix_queries = 0
        self._prefix_hits = 0
        self._prompt_tokens_computed = 0
        self._step_tokens = 0

    @property
    def has_unfinished(self) -> bool:
        return bool(self._sequences)

    @property
    def is_idle(self) -> bool:
        """Nothing waits or runs. Tokens that `update` will drop may still be in flight."""
        return not self._sequences

    def refuse(self, request: Request) -> TokenDelta | None:
        """The final "error" delta of a request that could never run, else None."""
        error = self._limits.refusal(request)
        if request.request_id in self._sequences:
            error = f"request id {request.request_id!r} is in use; send another one"
        return error_delta(request.request_id, error) if error is not None else None

    def add(self, request: Request, constraint: RowConstraint | None = None) -> TokenDelta | None:
        """Queue a request. Returns None, or the final "error" delta of one that could never run."""
        refused = self.refuse(request)
        if refused is not None:
            return refused
        self._num_arrived += 1
        sequence = Sequence.of(
            request,
            arrival_number=self._num_arrived,
            max_total=self._limits.max_total(request),
            page_size=self._pool.page_size,
            eos_token_ids=self._eos_token_ids,
            constraint=constraint,
        )
        self._sequences[request.request_id] = sequence
        self._waiting.push(sequence)
        return None

    def abort(self, request_ids: Iterable[str]) -> None:
        """Forget these requests and free what they hold now; unknown ids are ignored. Sends no delta."""
        for request_id in request_ids:
            sequence = self._sequences.get(request_id)
            if sequence is not None:
                self._retire(sequence)

    def fail(self, sequence: Sequence, error: str) -> TokenDelta:
        """End a sequence that cannot go on, and free what it holds. Returns its last delta."""
        self._retire(sequence)
        return error_delta(sequence.request.request_id, error, sequence.num_preemptions)

    def schedule(self) -> StepPlan | None:
        """Plan the next step, or None if nothing can be computed before an `update` (or at all)."""
        chunks: list[ScheduledChunk] = []
        with_updates: list[int] = []
        self._cache.free_out_of_window()
        others = self._schedule_decodes(chunks, with_updates)
        num_tokens = num_decodes = len(chunks)
        num_tokens += self._schedule_prompts(chunks, others)
        if not chunks:
            return None
        self._step_tokens = num_tokens
        prompt_reads = any(chunk.prompt_reads is not None for chunk in chunks[num_decodes:])
        return StepPlan(tuple(chunks), num_tokens, prompt_reads, num_decodes, tuple(with_updates))

    def update(self, plan: StepPlan, tokens: StepTokens) -> list[TokenDelta]:
        """Take the tokens of a plan home: append, finish, free. Plans come home in the order they went."""
        if len(tokens.token_ids) != len(plan.chunks):
            raise ValueError(f"{len(tokens.token_ids)} tokens came home for {len(plan.chunks)} chunks")
        deltas: list[TokenDelta] = []
        finished = Status.FINISHED
        for reading in tokens.prompt_reads:
            reading.chunk.sequence.prompt_logprobs += reading.logprobs
            reading.chunk.sequence.hidden_sums += [reading.hidden_sum] * bool(reading.hidden_sum)
        logprobs = [None] * len(plan.chunks) if tokens.logprobs is None else tokens.logprobs
        for chunk, token, logprob in zip(plan.chunks, tokens.token_ids, logprobs, strict=True):
            sequence = chunk.sequence
            if not chunk.samples or sequence.status is finished:
                if sequence.request.ends_with_prompt and chunk.output_index == 0 and sequence.status is not finished:
                    self._retire(sequence)
                    deltas.append(prompt_delta(sequence))
                continue
            token_ids = sequence.token_ids
            token_ids.append(token)
            sequence.num_pending -= 1
            if (
                token in sequence.stop_ids
                or len(token_ids) == sequence.max_total
                or chunk.output_index == 0
                or logprob is not None
            ):
                deltas.append(self._delta_with_updates(chunk, token, logprob))
            else:
                deltas.append(TokenDelta(sequence.request.request_id, [token]))
        return deltas

    def stats(
        self,
        *,
        num_steps: int = 0,
        padded_tokens: int = 0,
        compiles_after_ready: int = 0,
        last_step_at: float = 0.0,
        num_deferred: int = 0,
    ) -> EngineStats:
        """Gauges and counters; the arguments are what only the engine knows."""
        return EngineStats(
            num_running=len(self._running),
            num_waiting=len(self._sequences) - len(self._running),
            num_pages_used=self._pool.num_used,
            num_pages=self._pool.num_pages,
            num_steps=num_steps,
            num_preemptions=self._num_preemptions,
            prefix_queries=self._prefix_queries,
            prefix_hits=self._prefix_hits,
            prompt_tokens_computed=self._prompt_tokens_computed,
            step_tokens=self._step_tokens,
            padded_tokens=padded_tokens,
            compiles_after_ready=compiles_after_ready,
            last_step_at=last_step_at,
            num_deferred=num_deferred,
        )

    def check(self) -> None:
        """Raise AssertionError naming the first broken invariant. For tests: cost grows with everything."""
        self._running.check()
        running = {id(sequence) for sequence in self._running.by_rank}
        for name, sequence in self._sequences.items():
            is_running = sequence.status is Status.RUNNING
            assert sequence.status is not Status.FINISHED, f"{name} is finished but still known"
            assert is_running == (id(sequence) in running), f"{name} is {sequence.status} but listed otherwise"
            assert is_running or not sequence.tables, f"{name} waits but holds pages"
            assert len(sequence.token_ids) + sequence.num_pending <= sequence.max_total, f"{name} is too long"

    def _schedule_decodes(self, chunks: list[ScheduledChunk], with_updates: list[int]) -> list[Sequence]:
        """One token for each running sequence that needs exactly one, most important first. Returns the others.

        They fit the budget: a sequence is only admitted in a step that has a token for all running ones and
        one more. A preemption takes the list's last sequence, at the worst the one at hand: never one that
        already has a chunk.
        """
        cache = self._cache
        page_size = cache.page_size
        others: list[Sequence] = []
        for sequence in self._running.by_rank:
            start, num_pending = sequence.num_computed, sequence.num_pending
            end = len(sequence.token_ids) + num_pending
            if end - start != 1 or end >= sequence.max_total:
                others.append(sequence)
                continue
            page_updates: tuple[PageRun, ...] = ()
            if start % page_size == 0:
                cache.register_full_pages(sequence)
                if sequence.num_pages * page_size == start or cache.has_windows:
                    if not self._make_room(sequence):
                        break
                    page_updates = self._running.grow(sequence)
            if page_updates or not num_pending:
                with_updates.append(len(chunks))
            sequence.num_computed = end
            sequence.num_pending = num_pending + 1
            output_index = end - sequence.num_prompt
            if output_index <= 0:
                self._prompt_tokens_computed += 1
            chunks.append(ScheduledChunk(sequence, sequence.slot, start, 1, True, output_index, False, page_updates))
        return others

    def _schedule_prompts(self, chunks: list[ScheduledChunk], running: list[Sequence]) -> int:
        """Give what the decodes leave of the budget to prompts: running ones, then from the queue, strictly in its
        order, while all lasts. Returns the tokens planned.
        """
        num_decodes = len(chunks)
        room = (self._mixed_budget if chunks else self._max_num_batched_tokens) - num_decodes
        num_planned = 0
        held: Sequence | None = None  # the last one has no chunk yet: it may get less than there is room for
        length, is_first = 0, False
        for sequence in running:
            if not room:
                break
            # A last token of which nothing is sampled is left to this, not to the decodes.
            if sequence.num_uncomputed > (not sequence.request.ends_with_prompt):
                if held is not None:
                    chunks.append(self._prompt_chunk(held, length, is_first=False))
                wanted = min(sequence.num_uncomputed, room)
                length = self._fitting(sequence, wanted)
                held = sequence if length else None
                num_planned += length
                room = room - length if length == wanted else 0
        while room and self._running.free_slots:
            waiting = self._waiting.first()
            if waiting is None or waiting.num_pending:
                break
            if held is not None:  # first, because the next may share its pages
                chunks.append(self._prompt_chunk(held, length, is_first=is_first))
                held = None
            if not self._admit(waiting):
                break
            wanted = min(waiting.num_uncomputed, room)
            held, length, is_first = waiting, self._fitting(waiting, wanted), True
            num_planned += length
            room = room - length if length == wanted else 0
        if held is not None:
            excess = self._excess(num_decodes + num_planned, len(chunks) + 1, num_decodes)
            if excess < length:
                length, num_planned = length - excess, num_planned - excess
            chunks.append(self._prompt_chunk(held, length, is_first=is_first))
        return num_planned

    def _fitting(self, sequence: Sequence, length: int) -> int:
        """How many of a prompt's next `length` tokens have pages. Where those are not all, no other prompt is planned
        after it: two that both lack pages would wait for each other.
        """
        return (
            self._cache.count_fitting(sequence, length, self._running.num_spare) if self._cache.has_windows else length
        )

    def _excess(self, num_tokens: int, num_rows: int, num_decodes: int) -> int:
        """How many of a step's tokens would cost more in padding than in the next step."""
        sizes = self._step_sizes(num_rows)
        return num_tokens - filled(num_tokens, num_decodes, sizes, self._step_overhead)

    def _prompt_chunk(self, sequence: Sequence, length: int, *, is_first: bool) -> ScheduledChunk:
        cache, start = self._cache, sequence.num_computed
        end = start + length
        samples = length == sequence.num_uncomputed and not sequence.request.ends_with_prompt
        sequence.num_computed = end
        sequence.num_pending += samples
        num_prompt = sequence.num_prompt
        self._prompt_tokens_computed += max(0, min(end, num_prompt) - start)
        page_updates = cache.allocate_chunk(sequence, end) if cache.has_windows else ()
        cache.register_full_pages(sequence)
        return ScheduledChunk(
            sequence=sequence,
            slot=sequence.slot,
            start=start,
            length=length,
            samples=samples,
            output_index=end - num_prompt,
            is_first=is_first,
            page_updates=cache.runs(sequence) if is_first else page_updates,
            prompt_reads=sequence.take_prompt_reads(start, end),
        )

    def _admit(self, sequence: Sequence) -> bool:
        """Give the queue's head a slot and its pages, unless running sequences would soon miss them."""
        cache, num_spare = self._cache, self._running.num_spare
        if sequence is self._blocked and num_spare < self._blocked_on:
            return False
        num_known = len(sequence.token_ids)
        # The last token is always computed anew: its logits give the next one.
        limit = (num_known - 1) // cache.page_size if cache.shares else 0
        if sequence.next_read < sequence.end_read:
            limit = min(limit, sequence.next_read // cache.page_size)  # what is to be read must be computed
        found = cache.find(sequence.chain, limit)
        num_pages = self._pool.pages_for(num_known)
        needed = cache.count_missing(found, num_pages, grows=num_pages < sequence.max_pages)
        if num_spare < needed:
            self._blocked, self._blocked_on = sequence, needed
            return False
        self._blocked = None
        self._waiting.pop()
        self._running.enter(sequence, found, num_pages)
        if not sequence.scheduled_at:
            self._record_first_admission(sequence)
        return True

    def _record_first_admission(self, sequence: Sequence) -> None:
        sequence.scheduled_at = time.time()
        sequence.num_cached = sequence.num_computed
        if self._cache.shares and (sequence.next_read or not sequence.end_read):
            self._prefix_queries += sequence.num_prompt
            self._prefix_hits += sequence.num_cached

    def _make_room(self, sequence: Sequence) -> bool:
        """Preempt the least important until the pages that a decode lacks are available. False if that was `sequence`
        itself.
        """
        count = self._cache.count_lacking(sequence)
        while self._pool.num_available < count:
            victim = self._running.by_rank[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Back to the queue: its tokens stay, those in flight still come home, its KV is computed again."""
        self._running.leave(sequence)
        sequence.status = Status.WAITING
        sequence.num_computed = 0
        sequence.num_preemptions += 1
        self._num_preemptions += 1
        self._waiting.push(sequence)

    def _retire(self, sequence: Sequence) -> None:
        if sequence.status is Status.RUNNING:
            self._running.leave(sequence)
            sequence.status = Status.FINISHED
        else:
            sequence.status = Status.FINISHED
            self._waiting.forget_one()
        del self._sequences[sequence.request.request_id]

    def _delta_with_updates(self, chunk: ScheduledChunk, token: int, logprob: TokenLogprobs | None) -> TokenDelta:
        """Delta of a first or last token, or of one with log probabilities; retires a finished sequence."""
        sequence = chunk.sequence
        reason = sequence.finish_reason(chunk.output_index)
        if reason is not None:
            self._retire(sequence)
        return token_delta(chunk, token, reason, logprob)
