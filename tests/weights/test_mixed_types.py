"""Query, key and value in several types side by side are joined without losing a bit."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.worlds import greedy, make_model, reference, reference_greedy, run, start_engine, tokens_of

PROMPT = [3, 17, 40, 9]


@pytest.mark.parametrize("kinds", [(torch.float16, torch.bfloat16), (torch.bfloat16, torch.float32)])
def test_projections_in_several_types_load_as_they_are(
    tmp_path: Path, executables: str, kinds: tuple[torch.dtype, torch.dtype]
) -> None:
    folder = make_model(tmp_path, "LlamaForCausalLM", dtype=torch.bfloat16)
    tensors = load_file(folder / "model.safetensors")
    for name in tensors:
        for part, kind in zip(("q_proj", "k_proj"), kinds, strict=True):
            if part in name:
                tensors[name] = tensors[name].to(kind)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    expected = reference_greedy(reference(folder), PROMPT, 8)
    core = start_engine(folder, executables)
    assert tokens_of(run(core, {"a": PROMPT}, greedy(8))["a"]) == expected
