"""The `config.json` of published checkpoints, in the spelling they have, against what is known of the models."""

import math
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jserve.config import ModelConfig
from jserve.config.deepseek import GroupRouting
from jserve.errors import CheckpointError
from jserve.layers.build import Build, mesh_over
from jserve.layers.rope import inverse_frequencies
from jserve.models.blueprint import Blueprint
from jserve.models.registry import resolve
from jserve.runtime.memory import page_bytes
from jserve.weights.load import parameters
from tests.models.published import PUBLISHED


def config_of(name: str) -> ModelConfig:
    return resolve(PUBLISHED[name].fields, source=name)[1]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_model_has_as_many_parameters_as_the_checkpoint(name: str) -> None:
    family, config = resolve(PUBLISHED[name].fields, source=name)
    mesh = mesh_over(jax.devices()[:1])
    build = Build(jnp.dtype("bfloat16"), jnp.dtype("bfloat16"), mesh)
    model = Blueprint(family, config, build).abstract_model()
    named = {p.absolute(tensor): shape for p in parameters(model) for tensor, shape in p.source.names().items()}
    assert sum(map(math.prod, named.values())) == PUBLISHED[name].parameters


def test_gemma_3_has_five_local_layers_to_a_global_one_each_with_its_own_rope() -> None:
    config = config_of("gemma-3-4b")
    assert config.layer_windows == ((1024,) * 5 + (None,)) * 5 + (1024,) * 4
    assert [(rope.theta, rope.kind) for rope in config.ropes] == [(1e4, "default"), (1e6, "linear")]
    assert config.layer_ropes[5] == config.rope == config.ropes[1]
    assert config.attention_scale == 1 / 16
    assert config.eos_token_ids == (1, 106)


def test_llama_4_attends_in_chunks_but_in_every_fourth_layer_which_has_no_rope() -> None:
    config = config_of("llama-4-scout")
    assert config.layer_windows == (8192, 8192, 8192, None) * 12
    assert config.windows_are_chunks
    assert [rope is None for rope in config.layer_ropes] == [False, False, False, True] * 12
    assert config.rope.interleaved
    frequencies, _ = inverse_frequencies(config.rope, 128, 8192)
    plain = 500000.0 ** (-np.arange(0, 128, 2) / 128)
    is_long = 2 * np.pi / plain > 8192  # more than the context that the scaling begins with
    np.testing.assert_allclose(frequencies, np.where(is_long, plain / 16, plain), rtol=1e-5)
    assert config.mixture is not None
    assert config.mixture.dense_layers == frozenset()
    assert (config.rotated_norm, config.attention_temperature) == (True, (8192.0, 0.1))


def test_deepseek_caches_one_latent_a_token_on_every_device() -> None:
    family, config = resolve(PUBLISHED["deepseek-v3"].fields, source="config.json")
    mesh = SimpleNamespace(size=8)
    cache = family.cache(Build(jnp.dtype("bfloat16"), jnp.dtype("bfloat16"), mesh), config)  # type: ignore[arg-type]
    assert page_bytes(cache, tensor_parallel=8, page_size=64) == 61 * 64 * 576 * 2
    assert config.attention_scale == pytest.approx(192**-0.5 * (0.1 * math.log(40) + 1) ** 2)
    assert config.mixture is not None
    assert config.mixture.dense_layers == {0, 1, 2}
    assert config.mixture.routing == GroupRouting("sigmoid", 8, 4, group_best=2, corrected=True, scale=2.5)


def test_deepseek_may_have_experts_on_every_second_layer() -> None:
    raw = {**PUBLISHED["deepseek-v2-lite"].fields, "moe_layer_freq": 2, "first_k_dense_replace": 3}
    mixture = resolve(raw, source="config.json")[1].mixture
    assert mixture is not None
    assert mixture.dense_layers == {0, 1, 2, *range(3, 27, 2)}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kv_lora_rank": None}, "kv_lora_rank is None but must be a positive integer"),
        ({"kv_lora_rank": "512"}, "kv_lora_rank is '512' but must be a positive integer"),
        ({"n_routed_experts": None}, "n_routed_experts is None but must be a positive integer"),
        ({"topk_method": "noisy"}, "topk_method is 'noisy'; supported are greedy, group_limited_greedy"),
        ({"topk_method": ["greedy"]}, "topk_method is .* supported are greedy, group_limited_greedy"),
        ({"scoring_func": "sigmoid"}, "scoring_func is 'sigmoid'; supported are softmax"),
        ({"norm_topk_prob": True}, "norm_topk_prob is True; supported are False"),
        ({"topk_method": "group_limited_greedy", "n_group": 7}, "n_group is 7 but must be a divisor of"),
        (
            {"topk_method": "group_limited_greedy", "n_group": 16},
            "topk_group is 1 but must be at most n_group, 16, and",
        ),
        ({"rope_scaling": {"type": "yarn", "factor": "40", "mscale_all_dim": 1.0}}, "factor is '40' but must be a"),
    ],
)
def test_impossible_deepseeks_are_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        resolve({**PUBLISHED["deepseek-v2-lite"].fields, **fields}, source="config.json")


def test_phi_rotates_a_part_of_each_head_by_longrope() -> None:
    config = config_of("phi-4-mini")
    assert (config.rope.kind, config.rope.partial, config.rope.get("factor")) == ("longrope", 0.75, 32.0)
    assert config_of("phi-3-mini-128k").rope.kind == "longrope"


def test_smollm_3_has_no_rope_on_every_fourth_layer() -> None:
    config = config_of("smollm3-3b")
    assert [layer for layer, rope in enumerate(config.layer_ropes) if rope is None] == list(range(3, 36, 4))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"layer_types": ["sliding_attention"] * 3},
            "layer_types has 3 entries but must be a list of one for each of 34",
        ),
        (
            {"layer_types": ["linear_attention"] * 34},
            "layer_types has 'linear_attention'; supported are full_attention",
        ),
        ({"layer_types": ["chunked_attention"] * 34}, "attention_chunk_size is None but must be a positive integer"),
        (
            {"layer_types": ["chunked_attention", "sliding_attention"] * 17},
            "layer_types has both sliding_attention and chunked_attention",
        ),
        ({"sliding_window_pattern": "six"}, "sliding_window_pattern is 'six' but must be a positive integer"),
        ({"no_rope_layers": 4}, "no_rope_layers is 4 but must be a list"),
        ({"rope_parameters": [1]}, r"rope_parameters is \[1\] but must be an object"),
        ({"query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0 but must be a positive number"),
    ],
)
def test_impossible_layers_are_refused_by_name(fields: dict[str, Any], message: str) -> None:
    raw = PUBLISHED["gemma-3-4b"].fields
    with pytest.raises(CheckpointError, match=message):
        resolve({**raw, "text_config": {**raw["text_config"], **fields}}, source="config.json")
