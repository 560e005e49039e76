"""Decides what each step computes, and turns the tokens that are read back into deltas.

Owns the sequences, their order, their slots and their pages. It knows no prefill and no decode, only tokens
still to compute and a budget per step; it knows nothing of arrays or of the device. It relies on three things:
steps run in the order they were scheduled, each layer writes a step's KV before it attends, and every plan
that `schedule` returns is dispatched. So a page may be shared as soon as the step that fills it is planned,
and reused as soon as the plans that read it are.

The pages for all tokens known at admission are taken at admission: no prompt is stuck half way, and only answers
need further pages, one at a time. Layers with a window differ, see `Cache`. Sequences that need one token get it
first; `PromptStep` deals the rest of a step out to prompts, by `Share`.
"""

from collections.abc import Callable, Iterable
from itertools import islice

from jserve.constrain.row import RowConstraint
from jserve.protocol import EngineStats, Request, TokenDelta, TokenLogprobs
from jserve.schedule.cache import Cache
from jserve.schedule.deltas import error_delta, prompt_delta, refusal, token_delta
from jserve.schedule.drafts import Drafter
from jserve.schedule.groups import Windows, longest_sequence
from jserve.schedule.limits import LengthLimits
from jserve.schedule.padding import Padding
from jserve.schedule.plan import PageRun, ScheduledChunk, StepPlan, StepTokens
from jserve.schedule.prompts import PromptStep
from jserve.schedule.running import RunningSequences
from jserve.schedule.sequence import Sequence, Status
from jserve.schedule.share import Shares
from jserve.schedule.snapshots import Snapshots


class Scheduler:
    """Continuous batching over a fixed pool of pages. Driven from one thread.

    One step ahead (or more): `schedule` may be called again before `update` of the plan before. `num_pages`
    pages of `page_size` tokens serve cache groups of these `windows`; at most `max_num_seqs` sequences run, in slots
    0 to max_num_seqs - 1; a step computes at most `max_num_batched_tokens` tokens. `step_sizes` and `step_overhead`
    are those of `Padding`. `num_snapshots` copies of states are kept; None where layers keep no states.
    A `drafter` needs layers without states, which cannot be rolled back.
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
        num_snapshots: int | None = None,
        drafter: Drafter | None = None,
    ) -> None:
        if max_num_seqs < 1 or max_num_batched_tokens < 1:
            raise ValueError(
                f"max_num_seqs is {max_num_seqs} and max_num_batched_tokens {max_num_batched_tokens}; "
                "both must be at least 1"
            )
        self._snapshots = None if num_snapshots is None else Snapshots(num_snapshots, max_num_seqs, page_size)
        self._cache = Cache(
            num_pages,
            page_size,
            windows,
            max_num_batched_tokens,
            shares=enable_prefix_caching,
            snapshots=self._snapshots,
        )
        self._pool = self._cache.pool
        self._max_num_batched_tokens = max_num_batched_tokens
        # Beside running answers prompts get half a step, so that none of them waits as long as a lone chunk takes.
        # Twice the sequences at the least: however many decode, some prompt gets on.
        self._mixed_budget = min(max_num_batched_tokens, max(max_num_batched_tokens // 2, 2 * max_num_seqs))
        self._limits = LengthLimits(max_model_len, longest_sequence(num_pages, windows, page_size, max_model_len))
        self._eos_token_ids = eos_token_ids
        self._padding = Padding(step_sizes, step_overhead)
        self._sequences: dict[str, Sequence] = {}
        self._shares = Shares(2 * max_num_batched_tokens)
        # No more than a step has tokens for, with one to spare for a prompt.
        self._running = RunningSequences(self._cache, max_num_seqs, self._mixed_budget)
        self._max_num_seqs = max_num_seqs
        self._drafter = drafter
        self._num_arrived = 0
        self._num_preemptions = 0
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
        return refusal(request.request_id, error) if error is not None else None

    def add(self, request: Request, constraint: RowConstraint | None = None) -> TokenDelta | None:
        """Queue a request. Returns None, or the final "error" delta of one that could never run."""
        refused = self.refuse(request)
        if refused is not None:
            return refused
        self._num_arrived += 1
        sequence = Sequence.of(
            request,
            arrival_number=self._num_arrived,
            share=self._shares.open(request.priority, request.tenant),
            max_total=self._limits.max_total(request),
            page_size=self._pool.page_size,
            eos_token_ids=self._eos_token_ids,
            constraint=constraint,
        )
        if self._drafter is not None:
            self._drafter.watch(sequence)
        self._sequences[request.request_id] = sequence
        self._wait(sequence)
        return None

    def abort(self, request_ids: Iterable[str]) -> None:
        """Forget these requests and free what they hold now; unknown ids are ignored. Sends no delta."""
        for request_id in request_ids:
            sequence = self._sequences.get(request_id)
            if sequence is not None:
                self._retire(sequence)

    def fail(self, sequence: Sequence, error: str, *, is_refusal: bool) -> TokenDelta:
        """End a sequence that cannot go on, and free what it holds. Returns its last delta; see `TokenDelta`."""
        self._retire(sequence)
        count, name = sequence.num_preemptions, sequence.request.request_id
        return error_delta(name, error, is_refusal=is_refusal, num_preemptions=count)

    def schedule(self) -> StepPlan | None:
        """Plan the next step, or None if nothing can be computed before an `update` (or at all)."""
        chunks: list[ScheduledChunk] = []
        with_updates: list[int] = []
        self._cache.free_out_of_window()
        if not self._shares.is_one:
            self._make_way()
        others: list[Sequence] = []
        while self._schedule_decodes(chunks, with_updates, others):
            pass
        if self._drafter is not None and chunks:
            self._drafter.schedule(chunks, with_updates, self._count_free_rows(), self._cache.page_size)
        num_tokens = num_decodes = len(chunks)
        num_tokens += self._schedule_prompts(chunks, others)
        while not chunks and self._is_stuck:
            self._preempt(self._running.by_rank[-1])
            num_tokens = self._schedule_prompts(chunks, self._running.by_rank)
        if not chunks:
            return None
        self._step_tokens = num_tokens
        prompt_reads = any(chunk.prompt_reads is not None for chunk in chunks[num_decodes:])
        copies = self._snapshots.take_copies() if self._snapshots is not None else ((), ())
        return StepPlan(tuple(chunks), num_tokens, prompt_reads, num_decodes, tuple(with_updates), *copies)

    def update(self, plan: StepPlan, tokens: StepTokens) -> list[TokenDelta]:
        """Take the tokens read back of a plan: append, finish, free. Plans are read back in the order they went."""
        if len(tokens.token_ids) != len(plan.chunks):
            raise ValueError(f"{len(tokens.token_ids)} tokens were read back for {len(plan.chunks)} chunks")
        deltas: list[TokenDelta] = []
        finished = Status.FINISHED
        for reading in tokens.prompt_reads:
            reading.chunk.sequence.prompt_logprobs += reading.logprobs
            reading.chunk.sequence.hidden_sums += [reading.hidden_sum] * bool(reading.hidden_sum)
        logprobs = [None] * len(plan.chunks) if tokens.logprobs is None else tokens.logprobs
        for chunk, token, logprob in zip(plan.chunks, tokens.token_ids, logprobs, strict=True):
            sequence = chunk.sequence
            if chunk.draft_token >= 0 and self._drafter is not None and not self._drafter.accepts(chunk, token):
                continue
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
        if self._drafter is not None:
            self._drafter.settle(plan)
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
        """Gauges and counters; the arguments are those that only the engine knows."""
        return EngineStats(
            num_running=len(self._running),
            num_waiting=len(self._sequences) - len(self._running),
            num_pages_used=self._pool.num_used,
            num_pages=self._pool.num_pages,
            num_steps=num_steps,
            num_preemptions=self._num_preemptions,
            prefix_queries=self._running.prefix_queries,
            prefix_hits=self._running.prefix_hits,
            prompt_tokens_computed=self._prompt_tokens_computed,
            step_tokens=self._step_tokens,
            padded_tokens=padded_tokens,
            compiles_after_ready=compiles_after_ready,
            last_step_at=last_step_at,
            num_deferred=num_deferred,
            **({} if self._drafter is None else self._drafter.stats()),
        )

    def check(self) -> None:
        """Raise AssertionError naming the first broken invariant. For tests: cost grows with everything."""
        self._running.check()
        self._shares.check(list(self._sequences.values()))
        running = {id(sequence) for sequence in self._running.by_rank}
        for name, sequence in self._sequences.items():
            is_running = sequence.status is Status.RUNNING
            assert sequence.status is not Status.FINISHED, f"{name} is finished but still known"
            assert is_running == (id(sequence) in running), f"{name} is {sequence.status} but listed otherwise"
            assert is_running or not sequence.tables, f"{name} waits but holds pages"
            assert len(sequence.token_ids) + sequence.num_pending <= sequence.max_total, f"{name} is too long"

    def _schedule_decodes(self, chunks: list[ScheduledChunk], with_updates: list[int], others: list[Sequence]) -> bool:
        """One token for each running sequence that needs exactly one, most important first; `others` are the others.

        They fit the budget: no more sequences run than that. A preemption takes one behind the sequence at hand, which
        has no chunk yet, or that one itself. Then this returns True, and goes on where it was when called again.
        """
        cache, drafter = self._cache, self._drafter
        page_size = cache.page_size
        rows = self._count_free_rows() if drafter is not None and self._running.by_rank else 0
        for sequence in islice(self._running.by_rank, len(chunks) + len(others), None):
            start, num_pending = sequence.num_computed, sequence.num_pending
            end = len(sequence.token_ids) + num_pending
            if end - start != 1 or end >= sequence.max_total or (drafter is not None and drafter.waits(sequence, rows)):
                others.append(sequence)
                continue
            page_updates: tuple[PageRun, ...] = ()
            if start % page_size == 0:
                sequence.share.charge(sequence)
                cache.register_full_pages(sequence)
                if cache.snapshots is not None:
                    cache.snapshots.save(sequence)
                if sequence.num_pages * page_size == start or cache.has_windows:
                    if not self._make_room(sequence, len(chunks) + len(others)):
                        return True
                    page_updates = self._running.grow(sequence)
            if page_updates or not num_pending:
                with_updates.append(len(chunks))
            sequence.num_computed = end
            sequence.num_pending = num_pending + 1
            output_index = end - sequence.num_prompt
            if output_index <= 0:
                self._prompt_tokens_computed += 1
            chunks.append(ScheduledChunk(sequence, sequence.slot, start, 1, True, output_index, False, page_updates))
        return False

    def _count_free_rows(self) -> int:
        """Rows of a step for each running sequence that nobody needs; none while prompts wait or are computed, which
        would take longer.
        """
        running = self._running.by_rank
        if len(self._sequences) > len(running) or any(sequence.num_owed for sequence in running):
            return 0
        return (self._max_num_seqs - len(running)) // len(running)

    def _schedule_prompts(self, chunks: list[ScheduledChunk], others: list[Sequence]) -> int:
        """Give what the decodes leave of the budget to prompts. Returns the tokens planned."""
        shares = self._shares.in_order() if others or self._running.num_free > 0 else []
        if not shares:
            return 0
        room = (self._mixed_budget if chunks else self._max_num_batched_tokens) - len(chunks)
        step = PromptStep(self._cache, self._running, self._padding, chunks, room)
        step.deal(shares, others)
        self._prompt_tokens_computed += step.num_prompt_tokens
        return step.num_tokens

    @property
    def _is_stuck(self) -> bool:
        """Whether several prompts lack pages, each those that the others hold, and nothing in flight will end."""
        running = self._running.by_rank
        return len(running) > 1 and all(sequence.num_owed for sequence in running)

    def _make_way(self) -> None:
        """Preempt sequences of a tenant that holds more, where the tenant whose turn it is lacks a slot or pages."""
        share = next((share for share in self._shares.in_order() if share.waiting.num_live), None)
        head = share.waiting.first() if share is not None else None
        if head is None or head.num_pending:
            return
        while (sequence := self._running.in_the_way(head)) is not None:
            self._preempt(sequence)

    def _make_room(self, sequence: Sequence, place: int) -> bool:
        """Preempt the least important until the pages that a decode lacks are available. False if that was `sequence`
        itself, which is at this place in the order of ranks.
        """
        count = self._cache.count_lacking(sequence)
        while self._pool.num_available < count:
            victim = self._running.least_important(place)
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Put a sequence back into the queue. Its tokens stay, and its KV is computed again."""
        self._running.leave(sequence)
        sequence.status = Status.WAITING
        sequence.num_computed = 0
        sequence.num_preemptions += 1
        self._num_preemptions += 1
        self._wait(sequence)

    def _wait(self, sequence: Sequence) -> None:
        num_tokens = sequence.num_uncomputed - self._running.count_cached(sequence)
        sequence.share.owe(sequence, num_tokens)
        sequence.share.waiting.push(sequence, num_tokens)

    def _retire(self, sequence: Sequence) -> None:
        if sequence.status is Status.RUNNING:
            self._running.leave(sequence)
            sequence.status = Status.FINISHED
        else:
            sequence.status = Status.FINISHED
            sequence.share.owe(sequence, 0)
            sequence.share.waiting.forget_one()
        self._shares.close(sequence)
        del self._sequences[sequence.request.request_id]

    def _delta_with_updates(self, chunk: ScheduledChunk, token: int, logprob: TokenLogprobs | None) -> TokenDelta:
        """Delta of a first or last token, or of one with log probabilities; retires a finished sequence."""
        sequence = chunk.sequence
        reason = sequence.finish_reason(chunk.output_index)
        if reason is not None:
            self._retire(sequence)
        return token_delta(chunk, token, reason, logprob)
