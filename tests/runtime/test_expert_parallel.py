"""Mixtures of experts on fake CPU devices: same tokens however experts are split, shares of the bytes, and no
collective too many.
"""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import pytest

from jserve.config import EngineConfig
from jserve.engine.core import EngineCore
from jserve.errors import ConfigError
from jserve.runtime.start import Started, start_runner
from jserve.weights.load import parameters
from tests.worlds import greedy, make_model, reference, reference_greedy, run, steps_of, tokens_of

LAYERS, EXPERTS, HIDDEN, INNER = 2, 8, 32, 24
SIZES = {
    "num_attention_heads": 8,
    "num_hidden_layers": LAYERS,
    "num_local_experts": EXPERTS,
    "intermediate_size": INNER,
    "num_experts_per_tok": 2,
}
SPLITS = [(1, 1), (2, 1), (2, 2), (4, 2)]
"""(--tensor-parallel-size, --expert-parallel-size)"""

PROMPTS = {"long": list(range(3, 44)), "short": [5], "middle": [9, 8, 7, 6, 5, 4, 3, 9, 8, 7]}


def start(folder: Path, executables: str, parts: int, expert_parts: int) -> Started:
    sizes = {"max_num_seqs": 4, "max_num_batched_tokens": 16, "page_size": 4, "kv_cache_memory_bytes": 1 << 20}
    config = EngineConfig(
        model=str(folder),
        dtype="float32",
        tensor_parallel_size=parts,
        expert_parallel_size=expert_parts,
        compile_cache_dir=executables,
        **sizes,  # type: ignore[arg-type]
    )
    return start_runner(config, lambda *_: None)


@dataclass(frozen=True)
class World:
    """A model on some devices."""

    folder: Path
    parts: int
    expert_parts: int
    started: Started
    core: EngineCore


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("mixtral"), "MixtralForCausalLM", **SIZES)


@pytest.fixture(scope="module", params=SPLITS, ids=lambda split: f"{split[0]} devices, experts in {split[1]}")
def world(request: pytest.FixtureRequest, folder: Path, executables: str) -> World:
    started = start(folder, executables, *request.param)
    return World(folder, *request.param, started, EngineCore(started))


def test_greedy_tokens_are_those_of_transformers_and_no_row_depends_on_the_others(world: World) -> None:
    model = reference(world.folder)
    together = run(world.core, PROMPTS, greedy(32))
    for name, prompt in PROMPTS.items():
        assert tokens_of(together[name]) == reference_greedy(model, prompt, 32), name
        assert tokens_of(run(world.core, {name: prompt}, greedy(32))[name]) == tokens_of(together[name]), name


def test_each_device_holds_its_share_of_the_experts(world: World) -> None:
    runner, plan = world.started.runner, world.started.plan
    devices: Counter[jax.Device] = Counter()
    inner = INNER * world.expert_parts // world.parts
    shapes = {
        "gate_up": (EXPERTS // world.expert_parts, HIDDEN, 2, inner),
        "down": (EXPERTS // world.expert_parts, inner, HIDDEN),
    }
    actual: Counter[tuple[int, ...]] = Counter()
    for parameter, leaf in zip(parameters(runner._programs.blueprint.abstract_model()), runner.weights, strict=True):
        for shard in leaf.addressable_shards:
            devices[shard.device] += shard.data.nbytes
            if parameter.module[-1] == "experts":
                actual[shard.data.shape] += 1
    assert actual == dict.fromkeys(shapes.values(), LAYERS * world.parts)
    assert set(devices.values()) == {plan.weights}


def test_step_has_two_all_reduces_per_layer(world: World) -> None:
    """One after the attention, one after the mixture; and those around the layers: see test_tensor_parallel."""
    if world.parts == 1:
        pytest.skip("nothing crosses on one device")
    for bucket, program in steps_of(world.started.runner.table):
        kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|collective-broadcast"
        actual = Counter(re.findall(rf" ({kinds})(?:-start)?\(", program.as_text() or ""))
        last = "all-gather" if bucket.rows % world.parts else "all-to-all"
        assert actual == {"all-reduce": 2 * LAYERS + 1, last: 1}, bucket


@pytest.mark.parametrize(
    ("fields", "split", "message"),
    [
        ({}, (2, 3), "must divide --tensor-parallel-size, which is 2"),
        ({"num_local_experts": 6}, (4, 4), "does not divide this model's 6 experts"),
        ({"intermediate_size": 25}, (4, 2), "splits each expert 2 ways, which must divide its inner size of 25"),
    ],
)
def test_impossible_split_is_refused_with_the_numbers(
    tmp_path: Path, executables: str, fields: dict[str, Any], split: tuple[int, int], message: str
) -> None:
    folder = make_model(tmp_path, "MixtralForCausalLM", **{**SIZES, "num_hidden_layers": 1, **fields})
    with pytest.raises(ConfigError, match=message):
        start(folder, executables, *split)


def test_experts_of_a_dense_model_are_refused(tmp_path: Path, executables: str) -> None:
    folder = make_model(tmp_path, "LlamaForCausalLM", num_hidden_layers=1)
    with pytest.raises(ConfigError, match="this model has no experts"):
        start(folder, executables, 2, 2)
