"""What the engine reads of a prompt beyond the next token, against transformers in float32: logprobs of the
prompt's tokens, embeddings, and logprobs of chosen tokens; whatever shares the batch.
"""

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jserve.config import EngineConfig
from jserve.engine.core import EngineCore
from jserve.protocol import Pooling, Request, SamplingParams, TokenDelta, TokenLogprobs
from jserve.runtime.program_keys import ChosenLogprobs, Pool, Score, Step
from jserve.runtime.shapes import Bucket
from jserve.runtime.start import start_runner
from tests.worlds import greedy, make_model, reference, reference_greedy, reference_logits, run, tokens_of

TOLERANCE = 1e-3
LONG = list(range(3, 44))
"""Three steps' worth of a step's 16 tokens."""
PROMPTS = {"long": LONG, "one": [5], "two": [5, 9], "middle": [9, 8, 7, 6, 5, 4, 3, 9, 8, 7], "alike": [*LONG[:30], 7]}
MAX_MODEL_LEN = 64
VOCAB = 131
PAGE = 4
NUM_PAGES = 24
PAGE_BYTES = 2 * 2 * 2 * PAGE * 8 * 4
"""Keys and values, 2 layers, 2 KV heads, of 8 floats each."""


class World:
    """A tiny model on some devices, with a new scheduler for every test, and the same model in transformers."""

    def __init__(self, folder: Path, executables: str, parts: int, budget: int) -> None:
        self.model = reference(folder)
        config = EngineConfig(
            model=str(folder),
            dtype="float32",
            max_num_seqs=4,
            max_num_batched_tokens=budget,
            max_model_len=MAX_MODEL_LEN,
            page_size=PAGE,
            kv_cache_memory_bytes=NUM_PAGES * PAGE_BYTES,
            tensor_parallel_size=parts,
            compile_cache_dir=executables,
        )
        self.started = start_runner(config, lambda *_: None)

    def core(self) -> EngineCore:
        return EngineCore(self.started)

    def logprobs(self, tokens: list[int]) -> np.ndarray:
        """f64[len(tokens), V]"""
        logits = reference_logits(self.model, tokens).astype(np.float64)
        actual: np.ndarray = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return actual

    def embedding(self, tokens: list[int], pooling: str) -> np.ndarray:
        """f64[E], of length 1."""
        with torch.no_grad():
            hidden = self.model.model(torch.tensor([tokens])).last_hidden_state[0].numpy().astype(np.float64)
        whole = hidden[-1] if pooling == "last" else hidden.mean(0)
        actual: np.ndarray = whole / np.linalg.norm(whole)
        return actual

    def check_scores(self, prompt: list[int], actual: list[TokenLogprobs] | None, count: int) -> None:
        assert actual is not None
        assert len(actual) == len(prompt) - 1
        for position, (entry, row) in enumerate(zip(actual, self.logprobs(prompt)[:-1], strict=True)):
            token = prompt[position + 1]
            np.testing.assert_allclose(entry.logprob, row[token], atol=TOLERANCE)
            assert (row > row[token] + TOLERANCE).sum() < entry.rank <= (row > row[token] - TOLERANCE).sum()
            np.testing.assert_allclose(entry.top_logprobs, np.sort(row)[::-1][:count], atol=TOLERANCE)
            np.testing.assert_allclose(entry.top_logprobs, row[entry.top_ids], atol=TOLERANCE)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory, executables: str) -> Callable[[int], World]:
    """By the number of devices; steps have 8 tokens, so that reading a prompt takes many."""
    folder = make_model(tmp_path_factory.mktemp("model"), "LlamaForCausalLM", vocab_size=VOCAB)
    return cache(lambda parts: World(folder, executables, parts, 8))


@pytest.fixture(params=[1, 4], ids=lambda parts: f"{parts} devices")
def world(request: pytest.FixtureRequest, worlds: Callable[[int], World]) -> World:
    return worlds(request.param)


@pytest.fixture
def one_device(worlds: Callable[[int], World]) -> World:
    return worlds(1)


def run_all(
    core: EngineCore, requests: list[Request], between: Callable[[int], None] | None = None
) -> dict[str, list[TokenDelta]]:
    for request in requests:
        assert core.add(request) is None
    deltas = run(core, {}, greedy(1), between)
    core.scheduler.check()
    stats = core.stats()
    assert (stats.num_pages_used, stats.num_running, stats.num_waiting) == (0, 0, 0)
    return deltas


def embed(name: str, prompt: list[int], pooling: Pooling) -> Request:
    return Request(name, prompt, SamplingParams(max_tokens=1), pooling=pooling)


def vector(delta: TokenDelta) -> np.ndarray:
    return np.frombuffer(delta.embedding, "<f4")


def test_scores_and_embeddings_of_a_mixed_batch_equal_transformers(world: World) -> None:
    core = world.core()
    requests = [Request(f"score {name}", prompt, greedy(3, prompt_logprobs=5)) for name, prompt in PROMPTS.items()]
    for pooling in ("last", "mean"):
        requests += [embed(f"{pooling} {name}", prompt, pooling) for name, prompt in PROMPTS.items()]
    requests += [Request(f"plain {name}", prompt, greedy(8)) for name, prompt in PROMPTS.items()]
    random.Random(0).shuffle(requests)
    deltas = run_all(core, requests)
    for name, prompt in PROMPTS.items():
        tokens = reference_greedy(world.model, prompt, 8)
        assert tokens_of(deltas[f"plain {name}"]) == tokens
        scored = deltas[f"score {name}"]
        assert tokens_of(scored) == tokens[:3]
        world.check_scores(prompt, scored[0].prompt_logprobs, 5)
        assert all(delta.prompt_logprobs is None for delta in [*scored[1:], *deltas[f"plain {name}"]])
        for pooling in ("last", "mean"):
            (only,) = deltas[f"{pooling} {name}"]
            assert (only.finish_reason, only.token_ids, only.prompt_logprobs) == ("stop", [], None)
            np.testing.assert_allclose(vector(only), world.embedding(prompt, pooling), atol=1e-5)


def test_chosen_tokens_are_reported_in_their_order_at_every_position(world: World) -> None:
    chosen = tuple(range(VOCAB - 1, VOCAB - 129, -1))
    requests = [
        Request("all", PROMPTS["middle"], greedy(4, logprob_token_ids=chosen)),
        Request("two", PROMPTS["middle"], greedy(6, logprob_token_ids=(7, 3), logprobs=2)),
        Request("none", PROMPTS["long"], greedy(6, logprobs=1)),
    ]
    deltas = run_all(world.core(), requests)
    for name, ids, count in (("all", chosen, 0), ("two", (7, 3), 2), ("none", (), 1)):
        tokens = tokens_of(deltas[name])
        prompt = next(request.token_ids for request in requests if request.request_id == name)
        rows = world.logprobs(prompt + tokens)[len(prompt) - 1 :]
        for delta, row in zip(deltas[name], rows[:-1], strict=True):
            assert delta.logprobs is not None
            (entry,) = delta.logprobs
            np.testing.assert_allclose(entry.chosen_logprobs, row[list(ids)], atol=TOLERANCE)
            np.testing.assert_allclose(entry.logprob, row[delta.token_ids[0]], atol=TOLERANCE)
            assert len(entry.top_ids) == count


@pytest.mark.parametrize("length", [1, 15, 16, 17, MAX_MODEL_LEN])
def test_prompt_alone_is_computed_and_scored_without_an_answer(one_device: World, length: int) -> None:
    """Up to the whole context: nothing has to follow."""
    prompt = [3 + index % 50 for index in range(length)]
    core = one_device.core()
    only_scores = SamplingParams(max_tokens=0, prompt_logprobs=3)
    (only,) = run_all(core, [Request("a", prompt, only_scores)])["a"]
    assert (only.finish_reason, only.token_ids, only.logprobs) == ("length", [], None)
    assert only.scheduled_at > 0
    one_device.check_scores(prompt, only.prompt_logprobs, 3)
    (again,) = run_all(core, [Request("b", prompt, SamplingParams(max_tokens=0))])["b"]
    assert (again.finish_reason, again.prompt_logprobs) == ("length", None)
    (embedded,) = run_all(core, [embed("c", prompt, "mean")])["c"]
    np.testing.assert_allclose(vector(embedded), one_device.embedding(prompt, "mean"), atol=1e-5)
    assert core.stats().compiles_after_ready == 0


def test_prompt_above_the_context_is_refused(one_device: World) -> None:
    for request in (
        Request("a", [5] * (MAX_MODEL_LEN + 1), SamplingParams(max_tokens=0)),
        Request("b", [5] * MAX_MODEL_LEN, SamplingParams(max_tokens=1)),
    ):
        refused = one_device.core().add(request)
        assert refused is not None
        assert "max_model_len is 64" in (refused.error or "")


def test_what_reads_every_position_does_not_read_the_prefix_cache_but_fills_it(one_device: World) -> None:
    core = one_device.core()
    scored = greedy(2, prompt_logprobs=1)
    first = run_all(core, [Request("first", LONG, scored)])["first"]
    for name, request in {
        "scores": Request("scores", LONG, scored),
        "mean": embed("mean", LONG, "mean"),
    }.items():
        deltas = run_all(core, [request])[name]
        assert deltas[0].num_cached_tokens == 0
    assert core.stats().prefix_queries == 0
    plain = run_all(core, [Request("plain", LONG, greedy(2)), embed("last", LONG, "last")])
    assert plain["plain"][0].num_cached_tokens == plain["last"][0].num_cached_tokens == 40
    assert tokens_of(plain["plain"]) == tokens_of(first)
    np.testing.assert_allclose(vector(plain["last"][0]), one_device.embedding(LONG, "last"), atol=1e-5)


def test_preempted_half_way_nothing_is_lost_or_read_twice(one_device: World) -> None:
    """Decodes of more important requests take the pages away while a prompt is being read."""
    preempted_reading = 0
    for seed in range(6):
        rng, core = random.Random(seed), one_device.core()
        waiting = [
            Request(f"score {number}", [rng.randrange(3, VOCAB) for _ in range(44)], greedy(2, prompt_logprobs=2))
            for number in range(3)
        ] + [embed(f"mean {number}", [rng.randrange(3, VOCAB) for _ in range(44)], "mean") for number in range(3)]
        rng.shuffle(waiting)
        requests = list(waiting)
        for number in range(2):
            params = greedy(38)
            core.add(Request(f"first {number}", [rng.randrange(3, VOCAB) for _ in range(9)], params, priority=-1))

        def come(step: int, core: EngineCore = core, rng: random.Random = rng, waiting: Any = waiting) -> None:
            nonlocal preempted_reading
            if waiting and rng.random() < 0.25:
                assert core.add(waiting.pop()) is None
            for sequence in core.scheduler._sequences.values():
                is_half_read = 0 < sequence.next_read < sequence.end_read
                preempted_reading += is_half_read and not sequence.tables

        deltas = run_all(core, [], come)
        while waiting:  # those that had not come when the others were done
            request = waiting.pop()
            deltas |= run_all(core, [request])
        for request in requests:
            first = deltas[request.request_id][0]
            if request.pooling:
                expected = one_device.embedding(request.token_ids, "mean")
                np.testing.assert_allclose(vector(first), expected, atol=1e-5)
            else:
                one_device.check_scores(request.token_ids, first.prompt_logprobs, 2)
    assert preempted_reading > 5


def test_aborted_half_way_it_leaves_nothing_and_its_neighbours_are_unharmed(one_device: World) -> None:
    core = one_device.core()
    requests = [Request("a", LONG, greedy(4, prompt_logprobs=1)), embed("b", LONG[::-1], "mean")]
    neighbour = Request("c", PROMPTS["middle"], greedy(12, prompt_logprobs=0))

    def abort(step: int) -> None:
        if step == 2:
            core.abort(["a", "b"])

    deltas = run_all(core, [*requests, neighbour], abort)
    assert not deltas.keys() & {"a", "b"}
    one_device.check_scores(PROMPTS["middle"], deltas["c"][0].prompt_logprobs, 0)
    assert tokens_of(deltas["c"]) == reference_greedy(one_device.model, PROMPTS["middle"], 12)


def test_nothing_is_compiled_for_them_and_smaller_steps_read_once_their_programs_are_there(
    tmp_path: Path, executables: str
) -> None:
    folder = make_model(tmp_path, "LlamaForCausalLM", vocab_size=VOCAB, num_hidden_layers=1)
    world = World(folder, executables, 1, 32)
    runner, core = world.started.runner, world.core()
    later = {program.key: program for program in runner.table.optional()}
    required = {program.key for program in runner.table.required()}
    assert {Score(16), Pool(16), ChosenLogprobs(4)} - required <= later.keys()
    small = Bucket(16, 4)
    requests = {
        "score": Request("score", PROMPTS["middle"], greedy(3, prompt_logprobs=4, logprob_token_ids=(5, 6))),
        "pool": embed("pool", PROMPTS["middle"], "mean"),
    }

    def steps_of(name: str) -> int:
        before = runner.bucket_steps[small]
        with core.compiles.watch():
            (first, *_) = run_all(core, [requests[name]])[name]
        if name == "score":
            world.check_scores(PROMPTS["middle"], first.prompt_logprobs, 4)
        else:
            np.testing.assert_allclose(vector(first), world.embedding(PROMPTS["middle"], "mean"), atol=1e-5)
        return runner.bucket_steps[small] - before

    runner.table.add(later[Step(small)])
    for name, key in (("score", Score(16)), ("pool", Pool(16))):
        assert steps_of(name) == 0
        runner.table.add(later[key])
        assert steps_of(name) == 1
    assert core.stats().compiles_after_ready == 0
