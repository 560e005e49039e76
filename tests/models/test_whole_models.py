"""Models that also see, made whole by transformers: the text part alone gives the logits of the whole."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.models.newer_cases import GEMMA4, GROUPED, LATENT, MISTRAL4_YARN
from tests.models.test_parity import LOGIT_TOLERANCE, PROMPTS
from tests.quant.prefill import prefill_logits
from tests.worlds import make_whole_model, reference, reference_logits

TINY = {"hidden_size": 16, "intermediate_size": 16}
QWEN_EYES = {**TINY, "depth": 1, "num_heads": 2, "out_hidden_size": 32}
QWEN3_EYES = {**QWEN_EYES, "deepstack_visual_indexes": [0], "num_position_embeddings": 16}
MROPE = {"rope_type": "default", "rope_theta": 500.0, "mrope_section": [2, 1, 1]}
MOE = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
KIMI = {**LATENT, **GROUPED, "first_k_dense_replace": 1, "n_shared_experts": 1}
EYES = {**TINY, "num_hidden_layers": 1, "num_attention_heads": 2}
SMALL_GEMMA = {**GEMMA4, "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 8}

CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gemma 4": ("Gemma4ForConditionalGeneration", SMALL_GEMMA, {**EYES, "head_dim": 8, "num_key_value_heads": 2}),
    "kimi k2.5": (
        "Kimi_K25ForConditionalGeneration",
        {"model_type": "deepseek_v3", **KIMI},
        {**EYES, "pos_emb_height": 4, "pos_emb_width": 4},
    ),
    "mistral 4": (
        "Mistral3ForConditionalGeneration",
        {"model_type": "mistral4", **LATENT, **GROUPED, "rope_parameters": MISTRAL4_YARN},
        {"model_type": "pixtral", **EYES, "image_size": 16, "patch_size": 8},
    ),
    "qwen2.5 vl": ("Qwen2_5_VLForConditionalGeneration", {"rope_parameters": MROPE}, QWEN_EYES),
    "qwen3 vl": ("Qwen3VLForConditionalGeneration", {"rope_parameters": MROPE, "head_dim": 8}, QWEN3_EYES),
    "qwen3 vl moe": (
        "Qwen3VLMoeForConditionalGeneration",
        {"rope_parameters": MROPE, "head_dim": 8, **MOE, "mlp_only_layers": [1]},
        QWEN3_EYES,
    ),
}


def as_published(file: Path) -> None:
    """transformers writes the layers of Kimi's text part under the name that only those of its eyes have."""
    blocks = "language_model.model.blocks."
    state = {name.replace(blocks, "language_model.model.layers."): values for name, values in load_file(file).items()}
    save_file(state, file, {"format": "pt"})


@pytest.mark.parametrize("case", CASES)
def test_the_text_part_gives_the_logits_of_the_whole(case: str, tmp_path: Path) -> None:
    architecture, text, eyes = CASES[case]
    tied = {"tie_word_embeddings": False} if case == "kimi k2.5" else {}  # as published; the class says otherwise
    folder = make_whole_model(tmp_path, architecture, text, vision_config=eyes, **tied)
    expected = reference_logits(reference(folder), PROMPTS["long"])
    if case == "kimi k2.5":
        as_published(folder / "model.safetensors")
    np.testing.assert_allclose(prefill_logits(folder, PROMPTS["long"]), expected, atol=LOGIT_TOLERANCE)
