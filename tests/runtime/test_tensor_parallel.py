"""Tensor parallelism on fake CPU devices: same tokens, a share of the bytes each, and no collective too many."""

import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import msgspec
import pytest

from jserve.config import EngineConfig
from jserve.engine.core import EngineCore
from jserve.errors import ConfigError
from jserve.protocol import SamplingParams
from jserve.runtime.start import Started, start_runner
from jserve.weights.load import parameters
from tests.worlds import add_few, greedy, make_model, reference, reference_greedy, run, steps_of, tokens_of

LAYERS = 2
HEADS = {"num_attention_heads": 8, "num_key_value_heads": 2, "num_hidden_layers": LAYERS}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, odd vocabulary": ("LlamaForCausalLM", {**HEADS, "vocab_size": 131}),
    "qwen2, tied, odd vocabulary": ("Qwen2ForCausalLM", {**HEADS, "vocab_size": 129, "tie_word_embeddings": True}),
}
CASES = [(name, parts) for name, counts in zip(MODELS, ((2, 4, 8), (4,)), strict=True) for parts in counts]
"""Two KV heads: one for each device at 2; kept twice at 4 and four times at 8."""

PROMPTS = {"long": list(range(3, 44)), "short": [5], "middle": [9, 8, 7, 6, 5, 4, 3, 9, 8, 7]}
DRAWN = SamplingParams(
    temperature=0.8, top_p=0.9, seed=7, max_tokens=16, ignore_eos=True, repetition_penalty=1.2, logprobs=3
)
MASKED = msgspec.structs.replace(
    DRAWN, bad_words=tuple((first, second) for first in range(131) for second in (first, (first + 1) % 131))
)
"""No token after itself or the one before it: every row has a mask of its own for every token."""


def case_name(case: tuple[str, int]) -> str:
    return f"{case[0]}, {case[1]} devices"


@dataclass(frozen=True)
class World:
    """A model on some devices."""

    name: str
    folder: Path
    parts: int
    started: Started
    core: EngineCore


def start(folder: Path, executables: str, parts: int) -> Started:
    sizes = {"max_num_seqs": 8, "max_num_batched_tokens": 16, "page_size": 4, "kv_cache_memory_bytes": 1 << 20}
    config = EngineConfig(
        model=str(folder),
        dtype="float32",
        tensor_parallel_size=parts,
        compile_cache_dir=executables,
        **sizes,  # type: ignore[arg-type]
    )
    return start_runner(config, lambda *_: None)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("models")
    return {
        name: make_model(home / str(number), architecture, **fields)
        for number, (name, (architecture, fields)) in enumerate(MODELS.items())
    }


@pytest.fixture(scope="module", params=CASES, ids=case_name)
def world(request: pytest.FixtureRequest, folders: dict[str, Path], executables: str) -> World:
    name, parts = request.param
    started = start(folders[name], executables, parts)
    add_few(started.runner)
    return World(name, folders[name], parts, started, EngineCore(started))


@pytest.fixture(scope="module")
def drawn_alone(folders: dict[str, Path], executables: str) -> dict[str, list[int]]:
    """What one device draws with the first model."""
    return draw_all(EngineCore(start(folders[CASES[0][0]], executables, 1)))


def draw_all(core: EngineCore) -> dict[str, list[int]]:
    """By prompt and kind of parameters."""
    kinds = {"drawn": DRAWN, "masked": MASKED}
    runs = {kind: run(core, PROMPTS, params) for kind, params in kinds.items()}
    return {f"{name} {kind}": tokens_of(deltas) for kind, actual in runs.items() for name, deltas in actual.items()}


def test_greedy_tokens_are_those_of_one_device(world: World) -> None:
    """Which are those of transformers: see tests/models."""
    model = reference(world.folder)
    deltas = run(world.core, PROMPTS, greedy(32))
    for name, prompt in PROMPTS.items():
        assert tokens_of(deltas[name]) == reference_greedy(model, prompt, 32), name


@pytest.mark.parametrize("world", CASES[:3], ids=case_name, indirect=True)
def test_drawn_penalised_and_masked_tokens_are_those_of_one_device(
    world: World, drawn_alone: dict[str, list[int]]
) -> None:
    """One model is enough: the sampler sees logits only."""
    assert draw_all(world.core) == drawn_alone
    masked = [tokens for name, tokens in drawn_alone.items() if name.endswith("masked")]
    assert not any((after - before) % 131 in (0, 1) for tokens in masked for before, after in pairwise(tokens))


def test_each_device_holds_its_share_of_the_weights_and_no_more(world: World) -> None:
    """All matrices and their biases of split outputs are shared out; only norms are whole everywhere."""
    runner, plan = world.started.runner, world.started.plan
    devices: Counter[jax.Device] = Counter()
    for parameter, leaf in zip(parameters(runner._programs.blueprint.abstract_model()), runner.weights, strict=True):
        is_norm = "norm" in parameter.module[-1]
        for shard in leaf.addressable_shards:
            assert shard.data.nbytes * (1 if is_norm else world.parts) == leaf.nbytes, parameter.module
            devices[shard.device] += shard.data.nbytes
    assert len(devices) == world.parts
    assert set(devices.values()) == {plan.weights}


def test_each_device_holds_its_share_of_the_kv_pages(world: World) -> None:
    state, plan, config = world.started.runner._state, world.started.plan, world.started.config
    devices: Counter[jax.Device] = Counter()
    for leaf in state[:-1]:  # the page table is whole everywhere
        for shard in leaf.addressable_shards:
            assert shard.data.shape[1] == max(1, config.num_kv_heads // world.parts)
            devices[shard.device] += shard.data.nbytes
    assert len(devices) == world.parts
    assert set(devices.values()) == {plan.num_pages * plan.page_bytes}


def collectives(program: jax.stages.Compiled) -> Counter[str]:
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|collective-broadcast"
    return Counter(re.findall(rf" ({kinds})(?:-start)?\(", program.as_text() or ""))


def test_step_has_two_all_reduces_per_layer_and_two_exchanges_around_them(world: World) -> None:
    """After the attention's output and after the MLP's, whose inputs are split: 2 per layer.

    Before them one all-reduce: the token table is split by rows, and each device adds the rows it has. After
    them one exchange of logits, whose columns are split: to the devices that sample the rows (all-to-all), or
    where the rows cannot be shared out evenly, to all of them (all-gather).
    """
    for bucket, program in steps_of(world.started.runner.table):
        last = "all-gather" if bucket.rows % world.parts else "all-to-all"
        assert collectives(program) == {"all-reduce": 2 * LAYERS + 1, last: 1}, bucket


@pytest.mark.parametrize(
    ("fields", "parts", "message"),
    [
        ({}, 3, "8 heads"),
        ({"num_attention_heads": 6, "num_key_value_heads": 2, "hidden_size": 48}, 3, "2 KV heads"),
        ({"num_attention_heads": 12, "num_key_value_heads": 3, "hidden_size": 48}, 2, "3 KV heads"),
        ({"intermediate_size": 50}, 4, "intermediate size of 50"),
        ({}, 16, "--tensor-parallel-size is 16 but 8"),
    ],
)
def test_impossible_size_is_refused_with_the_numbers(
    tmp_path: Path, executables: str, fields: dict[str, Any], parts: int, message: str
) -> None:
    folder = make_model(tmp_path, "LlamaForCausalLM", **{**HEADS, "num_hidden_layers": 1, **fields})
    with pytest.raises(ConfigError, match=message):
        start(folder, executables, parts)
