"""A device of two integer "layers" for each cache group behind the real scheduler, and the loop that drives both.

KV slots hold what the tables made them hold: layer 0 the token, layer 1 a hash of what the group's window leaves of
layer 0 up to here, as read through the page table; the next token is a hash of the layers 1, as far as they are seen,
and layer 1 is what is read of a prompt. All groups keep their layers in the same arrays. Where sequences have a state,
it is a hash of the state before and the token, and the next token is a hash of it too. So a wrong table, a page that
was freed, shared or evicted too early, a stale last token, another's state or a wrong output index gives other tokens
than `tokens_alone`, which has neither pages nor slots.
"""

from collections import Counter, deque
from collections.abc import Callable
from itertools import chain

import numpy as np

from jserve.protocol import Pooling, Request, SamplingParams, TokenDelta, TokenLogprobs
from jserve.schedule.groups import Windows, pages_held
from jserve.schedule.plan import PromptRead, ScheduledChunk, StepPlan, StepTokens
from jserve.schedule.scheduler import Scheduler

EOS = 0
MAX_STEPS = 3000


def first_layer(group: int, position: int, token: int) -> int:
    return hash((position, token + 10_000 * group))


def second_layer(first: list[int]) -> int:
    return hash(tuple(first))


def next_token(second: list[list[int]], output_index: int) -> int:
    """End of sequence about once in 12 tokens; otherwise one of 4 to 1003 (prompts use 1 to 3)."""
    mixed = hash((output_index, *chain(*second)))
    return EOS if mixed % 12 == 0 else 4 + mixed % 1000


def first_seen(position: int, window: int | None) -> int:
    return 0 if window is None else max(0, position - window + 1)


def layers_alone(tokens: list[int], windows: Windows) -> list[list[int]]:
    """The second layer of each group, at all positions."""
    layers = []
    for group, window in enumerate(windows):
        first = [first_layer(group, position, token) for position, token in enumerate(tokens)]
        layers.append([second_layer(first[first_seen(p, window) : p + 1]) for p in range(len(tokens))])
    return layers


def next_state(state: int, position: int, token: int) -> int:
    return hash((state, position, token))


def state_alone(tokens: list[int]) -> int:
    """After all of these tokens."""
    state = 0
    for position, token in enumerate(tokens):
        state = next_state(state, position, token)
    return state


def tokens_alone(request: Request, *, max_total: int, windows: Windows = (None,), has_state: bool = False) -> list[int]:
    """What the request generates when it is the only one on a device without pages."""
    tokens, num_prompt, sampling = list(request.token_ids), len(request.token_ids), request.sampling
    stops = {*sampling.stop_token_ids, *([] if sampling.ignore_eos else [EOS])}
    while len(tokens) < max_total:
        second = layers_alone(tokens, windows)
        last = len(tokens) - 1
        seen = [layer[first_seen(last, window) :] for layer, window in zip(second, windows, strict=True)]
        if has_state:
            seen.append([state_alone(tokens)])
        output_index = len(tokens) - num_prompt
        tokens.append(next_token(seen, output_index))
        if tokens[-1] in stops and output_index >= sampling.min_tokens:
            break
    return tokens[num_prompt:]


def as_float(held: int) -> float:
    """What a layer holds, as a number that a float32 keeps, and sums of it too."""
    return float(held % 1000)


def reads_alone(request: Request, windows: Windows = (None,)) -> list[float]:
    """What is read of the request's prompt, position by position, on a device without pages."""
    second = [as_float(sum(column)) for column in zip(*layers_alone(list(request.token_ids), windows), strict=True)]
    return {"last": second[-1:], "mean": second, "": second[:-1]}[request.pooling]


class SimulatedDevice:
    """Sees plans only: its tables are made of `page_updates`, its unknown tokens come from `last_token`."""

    def __init__(
        self, *, num_pages: int, page_size: int, max_num_seqs: int, windows: Windows, num_snapshots: int | None
    ) -> None:
        self.states = None if num_snapshots is None else [-1] * (max_num_seqs + num_snapshots)
        self.page_size, self.windows = page_size, windows
        self.layers = [[-1] * (num_pages * page_size) for _ in range(2)]
        self.tables: list[list[dict[int, int]]] = [[{} for _ in windows] for _ in range(max_num_seqs)]
        self.last_token = [-1] * max_num_seqs

    def run(self, plan: StepPlan) -> StepTokens:
        """One step, at once: steps run in the order of dispatch, so when they are awaited changes nothing."""
        inputs = []
        for copies in (plan.saves, plan.restores):
            self._copy_states(copies)
        for chunk in plan.chunks:
            if chunk.is_first:
                self.tables[chunk.slot] = [{} for _ in self.windows]
                self.last_token[chunk.slot] = -1
            for run in chunk.page_updates:
                table = self.tables[chunk.slot][run.group]
                assert run.pages
                assert not table or run.first == max(table) + 1, "page updates leave a hole in the table"
                table.update(enumerate(run.pages, run.first))
            known = chunk.sequence.token_ids
            for position in range(chunk.start, chunk.start + chunk.length):
                token = known[position] if position < len(known) else self.last_token[chunk.slot]
                inputs.append((chunk.slot, position, token))
        for group in range(len(self.windows)):
            for slot, position, token in inputs:
                self.layers[0][self._place(slot, group, position)] = first_layer(group, position, token)
            for slot, position, _ in inputs:
                seen = self._read(0, slot, group, position)
                self.layers[1][self._place(slot, group, position)] = second_layer(seen)
        if self.states is not None:
            for slot, position, token in inputs:
                self.states[slot] = next_state(self.states[slot] if position else 0, position, token)
        sampled = []
        for chunk in plan.chunks:
            token = -7
            if chunk.samples:
                last = chunk.start + chunk.length - 1
                second = [self._read(1, chunk.slot, group, last) for group in range(len(self.windows))]
                if self.states is not None:
                    second.append([self.states[chunk.slot]])
                token = self.last_token[chunk.slot] = next_token(second, chunk.output_index)
            sampled.append(token)
        assert plan.prompt_reads == any(chunk.prompt_reads is not None for chunk in plan.chunks)
        return StepTokens(
            sampled, prompt_reads=tuple(map(self._prompt_read, (c for c in plan.chunks if c.prompt_reads is not None)))
        )

    def _copy_states(self, copies: tuple[tuple[int, int], ...]) -> None:
        """All at once, as on a device."""
        assert len({target for _, target in copies}) == len(copies), "two copies have the same target"
        if copies:
            assert self.states is not None
            for target, state in [(target, self.states[source]) for source, target in copies]:
                self.states[target] = state

    def _prompt_read(self, chunk: ScheduledChunk) -> PromptRead:
        """As a score or a vector of each position, what the last layers hold there."""
        assert chunk.prompt_reads is not None
        assert chunk.start <= chunk.prompt_reads[0] < chunk.prompt_reads[1] <= chunk.start + chunk.length
        held = [
            sum(self.layers[1][self._place(chunk.slot, group, position)] for group in range(len(self.windows)))
            for position in range(*chunk.prompt_reads)
        ]
        if chunk.sequence.request.pooling:
            return PromptRead(chunk, [], np.array([sum(map(as_float, held)), 1.0], "<f4").tobytes())
        return PromptRead(chunk, [TokenLogprobs(as_float(value), 1, [], []) for value in held])

    def _place(self, slot: int, group: int, position: int) -> int:
        return self.tables[slot][group][position // self.page_size] * self.page_size + position % self.page_size

    def _read(self, layer: int, slot: int, group: int, last: int) -> list[int]:
        """What the token at position `last` sees of a layer."""
        first = first_seen(last, self.windows[group])
        return [self.layers[layer][self._place(slot, group, position)] for position in range(first, last + 1)]


def check_plan(plan: StepPlan, *, budget: int, max_num_seqs: int) -> None:
    """What holds for every plan, whatever the world."""
    assert plan.num_tokens == sum(chunk.length for chunk in plan.chunks) <= budget
    assert all(chunk.length > 0 for chunk in plan.chunks)
    slots = [chunk.slot for chunk in plan.chunks]
    assert len(set(slots)) == len(slots)
    assert all(0 <= slot < max_num_seqs for slot in slots)
    decodes = [chunk.length == 1 and chunk.samples and not chunk.is_first for chunk in plan.chunks]
    assert decodes == sorted(decodes, reverse=True), "a prompt's chunk stands before a decode"
    assert all(decodes[: plan.num_decodes])
    assert not any(chunk.prompt_reads for chunk in plan.chunks[: plan.num_decodes])
    for row, chunk in enumerate(plan.chunks[: plan.num_decodes]):
        assert (row in plan.with_updates) == bool(chunk.page_updates or chunk.start < len(chunk.sequence.token_ids))
    for chunk in plan.chunks:
        if chunk.samples:
            assert chunk.output_index == chunk.start + chunk.length - chunk.sequence.num_prompt >= 0


class World:
    """Scheduler, device and loop. `depth` plans fly when the next one is made: 1 is the engine's."""

    def __init__(
        self,
        *,
        num_pages: int = 64,
        page_size: int = 2,
        max_num_seqs: int = 4,
        budget: int = 16,
        max_model_len: int = 64,
        caching: bool = True,
        depth: int = 1,
        windows: Windows = (None,),
        step_sizes: Callable[[int], tuple[int, ...]] = lambda rows: (),
        step_overhead: int = 0,
        num_snapshots: int | None = None,
    ) -> None:
        self.budget, self.max_num_seqs, self.depth = budget, max_num_seqs, depth
        self.scheduler = Scheduler(
            num_pages=num_pages,
            page_size=page_size,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=budget,
            max_model_len=max_model_len,
            eos_token_ids=frozenset({EOS}),
            enable_prefix_caching=caching,
            windows=windows,
            step_sizes=step_sizes,
            step_overhead=step_overhead,
            num_snapshots=num_snapshots,
        )
        self.windows, self.has_state = windows, num_snapshots is not None
        self.device = SimulatedDevice(
            num_pages=num_pages,
            page_size=page_size,
            max_num_seqs=max_num_seqs,
            windows=windows,
            num_snapshots=num_snapshots,
        )
        fitting = [size for size in range(max_model_len) if pages_held(size, windows, page_size) <= num_pages]
        self.longest = min(max_model_len, max(fitting) * page_size + 1)
        self.in_flight: deque[tuple[StepPlan, StepTokens]] = deque()
        self.requests: dict[str, Request] = {}
        self.aborted: set[str] = set()
        self.deltas: dict[str, list[TokenDelta]] = {}
        self.num_parts: Counter[str] = Counter()

    def add(
        self,
        request_id: str,
        token_ids: list[int],
        *,
        priority: int = 0,
        salt: str = "",
        pooling: Pooling = "",
        tenant: int = 0,
        **sampling: object,
    ) -> TokenDelta | None:
        params = SamplingParams(**sampling)  # type: ignore[arg-type]
        request = Request(
            request_id, token_ids, params, cache_salt=salt, priority=priority, pooling=pooling, tenant=tenant
        )
        refused = self.scheduler.add(request)
        if refused is None:
            self.requests[request_id] = request
            self.deltas[request_id] = []
        return refused

    def abort(self, request_id: str) -> None:
        self.scheduler.abort([request_id])
        if not self.is_finished(request_id):
            self.aborted.add(request_id)

    def is_finished(self, request_id: str) -> bool:
        return any(delta.finish_reason for delta in self.deltas[request_id])

    def tokens(self, request_id: str) -> list[int]:
        return [token for delta in self.deltas[request_id] for token in delta.token_ids]

    def launch(self) -> StepPlan | None:
        """Plan and dispatch one step."""
        plan = self.scheduler.schedule()
        if plan is not None:
            check_plan(plan, budget=self.budget, max_num_seqs=self.max_num_seqs)
            tokens = self.device.run(plan)
            self.num_parts.update(reading.chunk.sequence.request.request_id for reading in tokens.prompt_reads)
            self.in_flight.append((plan, tokens))
        return plan

    def collect(self) -> list[TokenDelta]:
        """Read the oldest step in flight back."""
        plan, tokens = self.in_flight.popleft()
        deltas = self.scheduler.update(plan, tokens)
        for delta in deltas:
            earlier = self.deltas[delta.request_id]
            assert delta.request_id not in self.aborted, "a delta follows an abort"
            assert not any(before.finish_reason for before in earlier), "a delta follows the last one"
            assert (delta.scheduled_at > 0) == (not earlier), "scheduled_at comes with the first delta only"
            earlier.append(delta)
        return deltas

    def step(self) -> StepPlan | None:
        """One turn of the engine's loop."""
        plan = self.launch()
        assert plan or self.in_flight or self.scheduler.is_idle, "unfinished work, but nothing is planned"
        if self.in_flight and (plan is None or len(self.in_flight) > self.depth):
            self.collect()
        return plan

    def run(self) -> None:
        """Until nothing waits, runs or flies."""
        for _ in range(MAX_STEPS):
            if self.scheduler.is_idle and not self.in_flight:
                return
            self.step()
        raise AssertionError(f"still busy after {MAX_STEPS} steps")

    def check_outcome(self) -> None:
        """Everything is free again, and every request got the tokens that it gets alone."""
        self.scheduler.check()
        stats = self.scheduler.stats()
        assert (stats.num_pages_used, stats.num_running, stats.num_waiting) == (0, 0, 0)
        for request_id, request in self.requests.items():
            max_tokens = request.sampling.max_tokens
            longest = self.longest
            if max_tokens is not None:
                longest = min(longest, len(request.token_ids) + max_tokens)
            if request.ends_with_prompt:
                longest = len(request.token_ids)
            alone = tokens_alone(request, max_total=longest, windows=self.windows, has_state=self.has_state)
            if request_id in self.aborted:
                alone = alone[: len(self.tokens(request_id))]
            else:
                assert self.is_finished(request_id), f"{request_id} never finished"
            assert self.tokens(request_id) == alone, f"{request_id} got other tokens than alone"
            self.check_reads(request)

    def check_reads(self, request: Request) -> None:
        """Every position that the request is about was read once, and all come with its first delta."""
        deltas = self.deltas[request.request_id]
        assert all(delta.prompt_logprobs is None and not delta.embedding for delta in deltas[1:])
        if not deltas:
            return
        first, expected = deltas[0], reads_alone(request, self.windows)
        if request.pooling:
            total = np.array([sum(expected), self.num_parts[request.request_id]])
            embedding = np.frombuffer(first.embedding, "<f4")
            np.testing.assert_allclose(embedding, total / np.linalg.norm(total), rtol=1e-5)
        elif request.sampling.prompt_logprobs is not None:
            assert [entry.logprob for entry in first.prompt_logprobs or []] == expected
        else:
            assert first.prompt_logprobs is None
