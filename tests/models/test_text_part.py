"""The text part of a model that also sees, in the spelling of its files, gives the logits of transformers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.models.hybrid_cases import DELTA, EXPERTS
from tests.models.test_parity import GEMMA, LLAMA4, LOGIT_TOLERANCE, MINISTRAL3, PROMPTS
from tests.quant.prefill import prefill_logits
from tests.worlds import make_model, reference, reference_logits

CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gemma 3": ("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration", {**GEMMA, "sliding_window_pattern": 2}),
    "llama 4": ("Llama4ForCausalLM", "Llama4ForConditionalGeneration", {**LLAMA4, "attention_chunk_size": 16}),
    "ministral 3": ("Ministral3ForCausalLM", "Mistral3ForConditionalGeneration", MINISTRAL3),
    "mistral 3": ("MistralForCausalLM", "Mistral3ForConditionalGeneration", {"head_dim": 16, "sliding_window": None}),
    "qwen3.5": ("Qwen3_5ForCausalLM", "Qwen3_5ForConditionalGeneration", DELTA),
    "qwen3.5 moe": ("Qwen3_5MoeForCausalLM", "Qwen3_5MoeForConditionalGeneration", {**DELTA, **EXPERTS}),
}


@pytest.mark.parametrize("prefix", ["language_model.", "model.language_model."])
@pytest.mark.parametrize("case", CASES)
def test_text_part_of_a_model_that_sees_gives_the_same_logits(case: str, prefix: str, tmp_path: Path) -> None:
    text, whole, fields = CASES[case]
    folder = make_model(tmp_path, text, **fields)
    expected = reference_logits(reference(folder), PROMPTS["long"])
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({"architectures": [whole], "model_type": "other", "text_config": config, "vision_config": {}})
    )
    state = {_renamed(name, prefix): values for name, values in load_file(folder / "model.safetensors").items()}
    save_file({**state, "vision_tower.patch.weight": np.zeros(3, np.float32)}, folder / "model.safetensors")
    np.testing.assert_allclose(prefill_logits(folder, PROMPTS["long"]), expected, atol=LOGIT_TOLERANCE)


def _renamed(name: str, prefix: str) -> str:
    """`language_model.model.layers` and `language_model.lm_head`, or as transformers 5 has them."""
    if prefix == "language_model.":
        return f"{prefix}{name}"
    return f"{prefix}{name.removeprefix('model.')}" if name.startswith("model.") else name
