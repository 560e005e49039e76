"""Shapes of DeepSeek's family beside those that tests/models/test_parity.py serves: the logits of one prompt."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jserve.layers.build import Build, mesh_over
from jserve.models.blueprint import Blueprint
from jserve.models.registry import resolve
from jserve.weights.converted import name_of
from jserve.weights.load import parameters
from tests.models.published import PUBLISHED
from tests.models.test_parity import LATENT, LOGIT_TOLERANCE, MSCALE, PROMPTS
from tests.quant.prefill import prefill_logits
from tests.worlds import make_model, reference, reference_logits

ONE_GROUP = {"q_lora_rank": None, "n_group": 1, "topk_group": 1, "norm_topk_prob": False, "first_k_dense_replace": 0}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "3, one group, halves rotated, biases": (
        "DeepseekV3ForCausalLM",
        {**LATENT, **ONE_GROUP, "rope_interleave": False, "n_shared_experts": 2, "attention_bias": True},
    ),
    "2, one layer dense, mscale of both": (
        "DeepseekV2ForCausalLM",
        {**LATENT, "q_lora_rank": 20, "rope_parameters": {**MSCALE, "mscale": 0.707, "mscale_all_dim": 0.707}},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(case: str, tmp_path: Path) -> None:
    architecture, fields = CASES[case]
    folder = make_model(tmp_path, architecture, **fields)
    expected = reference_logits(reference(folder), PROMPTS["long"])
    np.testing.assert_allclose(prefill_logits(folder, PROMPTS["long"], parts=2), expected, atol=LOGIT_TOLERANCE)


def test_parameters_that_share_a_tensor_are_told_apart() -> None:
    """As `jserve convert` names them, and as the small-batch model finds them."""
    family, config = resolve({**PUBLISHED["deepseek-v2-lite"].fields, "num_hidden_layers": 2}, source="config.json")
    build = Build(jnp.dtype("float32"), jnp.dtype("float32"), mesh_over(jax.devices()[:1]))
    actual = parameters(Blueprint(family, config, build).abstract_model())
    assert (
        len({parameter.key for parameter in actual}) == len({name_of(parameter) for parameter in actual}) == len(actual)
    )
