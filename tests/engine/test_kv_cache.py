"""`--kv-cache-dtype`: answers are those of rounded keys and values, whoever else is in the batch."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.llama import modeling_llama

from jserve.batch import CacheArray
from jserve.commands.inspect import inspect
from jserve.config import EngineConfig
from jserve.engine.core import EngineCore
from jserve.errors import ConfigError
from jserve.protocol import TokenDelta
from jserve.runtime.start import Started, start_runner
from tests.quant.prefill import prefill_logits
from tests.worlds import greedy, make_model, reference, reference_greedy, reference_logits, run, tokens_of

KINDS = ("int8", "fp8")
LAYERS, KV_HEADS, HEAD_DIM, PAGE = 2, 2, 8, 4
COUNT = 12
PROMPTS = {f"r{length}": random.Random(length).choices(range(3, 128), k=length) for length in (1, 9, 24, 41)}
LONG = random.Random(1).choices(range(3, 128), k=60)
NEAR = {"int8": 0.02, "fp8": 0.15}
"""Root mean square of a logit's error, as a share of the logits' own spread. Codes of int8 are off by up to half a
step of 1/127 of a head's largest number, some 1% of its typical one; float8 has 3 bits after the leading one, 3%
on average. Two layers add theirs.
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models"), "LlamaForCausalLM")


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    actual: str = request.param
    return actual


def start(folder: Path, executables: str, kind: str) -> Started:
    config = EngineConfig(
        model=str(folder),
        dtype="float32",
        kv_cache_dtype=kind,
        max_num_seqs=4,
        max_num_batched_tokens=16,
        page_size=PAGE,
        kv_cache_memory_bytes=1 << 20,
        compile_cache_dir=executables,
    )
    return start_runner(config, lambda *_: None, early=True)


@pytest.fixture(scope="module")
def started(folder: Path, executables: str, kind: str) -> Started:
    return start(folder, executables, kind)


def rounded(states: torch.Tensor, kind: str) -> torch.Tensor:
    """[..., D] with one scale for each of the other axes, worked out here."""
    largest = states.abs().amax(-1, keepdim=True)
    if kind == "int8":
        scale = largest / 127
        return (states / scale).round() * scale
    scale = largest / 448
    return (states / scale).to(torch.float8_e4m3fn).float() * scale


@pytest.fixture(scope="module")
def whole(folder: Path) -> np.ndarray:
    """Logits without any rounding."""
    return reference_logits(reference(folder), LONG)


@pytest.fixture
def over_rounded(folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The model in transformers, float32, which rounds keys and values as it reads them."""
    attend = modeling_llama.eager_attention_forward

    def attend_rounded(module: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        return attend(module, query, rounded(key, kind), rounded(value, kind), *args, **kwargs)

    monkeypatch.setattr(modeling_llama, "eager_attention_forward", attend_rounded)
    return reference(folder)


def test_logits_are_those_of_transformers_over_rounded_keys_and_values_on_one_device_and_on_two(
    folder: Path, whole: np.ndarray, over_rounded: Any, kind: str
) -> None:
    rounds = reference_logits(over_rounded, LONG)
    for parts in (1, 2):
        actual = prefill_logits(folder, LONG, None, parts, kind)
        # Equal but for the order of float32 sums, and the few codes that it moves by one: see `NEAR` for the size.
        assert np.median(np.abs(actual - rounds)) < 1e-5 * rounds.std(), parts
        assert np.abs(actual - rounds).max() < NEAR[kind] * rounds.std(), parts
        error = np.sqrt(np.mean((actual - whole) ** 2)) / whole.std()
        assert NEAR[kind] / 20 < error < NEAR[kind], parts


def test_tokens_are_the_same_alone_together_and_after_a_prefix_hit(started: Started, over_rounded: Any) -> None:
    core = EngineCore(started)
    expected = {name: reference_greedy(over_rounded, prompt, COUNT) for name, prompt in PROMPTS.items()}
    together = run(core, PROMPTS, greedy(COUNT))
    assert {name: tokens_of(deltas) for name, deltas in together.items()} == expected
    for name, prompt in PROMPTS.items():
        assert tokens_of(run(core, {"alone": prompt}, greedy(COUNT))["alone"]) == expected[name]
    assert core.stats().prefix_hits >= sum((len(prompt) - 1) // PAGE * PAGE for prompt in PROMPTS.values())


def test_prefix_hit_gives_the_logprobs_of_a_computation(started: Started) -> None:
    core = EngineCore(started)
    first, again = (run(core, {"a": LONG}, greedy(4, logprobs=20))["a"] for _ in range(2))
    assert core.stats().prefix_hits >= len(LONG) - PAGE
    assert tokens_of(first) == tokens_of(again)
    # The end of the prompt is computed in another step the second time: float32 sums in another order.
    np.testing.assert_allclose(values_of(first), values_of(again), atol=1e-4)


def values_of(deltas: list[TokenDelta]) -> list[float]:
    return [value for delta in deltas for scores in delta.logprobs or () for value in scores.top_logprobs]


def test_memory_of_codes_and_scales_is_planned_and_no_more_is_held(started: Started, folder: Path, kind: str) -> None:
    plan, runner = started.plan, started.runner
    per_token = 2 * LAYERS * KV_HEADS * (HEAD_DIM + 4)
    assert plan.page_bytes == per_token * PAGE
    assert sum(array.nbytes for array in runner._state[:-1]) == plan.num_pages * plan.page_bytes
    for device in ("cpu", "h100"):
        requested = EngineConfig(model=str(folder), kv_cache_dtype=kind)
        assert inspect(requested, device).kv_bytes_per_token == per_token
    shared = EngineConfig(model=str(folder), kv_cache_dtype=kind, tensor_parallel_size=2)
    assert inspect(shared, "h100").kv_bytes_per_token == per_token


def test_model_that_keeps_something_else_refuses_it(
    folder: Path, executables: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def latent(*_: Any) -> tuple[CacheArray, ...]:
        return (CacheArray(1, 24, np.dtype("float32"), sharded=False),)

    monkeypatch.setattr("jserve.models.causal_lm.kv_arrays", latent)
    with pytest.raises(ConfigError, match="--kv-cache-dtype int8 is for models that keep keys and values"):
        start(folder, executables, "int8")
