"""The real model against transformers in float32: the same greedy tokens for prompts of every length."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from jserve import LLM, SamplingParams

LENGTHS = (1, 2, 3, 7, 16, 17, 31, 32, 33, 63, 64, 65, 100, 257, 400, 512, 513, 800, 1100, 1500)
COUNT = 24
NEAR_TIE = 1e-4
"""Where the reference's own two best logits are closer, either token is right."""

TEXT = (Path(__file__).parent.parent.parent / "LICENSE").read_text()


@pytest.fixture(scope="module")
def llm(real_gguf: Path, executables: str) -> LLM:
    return LLM(str(real_gguf), dtype="float32", compile_cache_dir=executables, max_model_len=2048)


@pytest.fixture(scope="module")
def reference(real_gguf: Path) -> Any:
    folder, name = str(real_gguf.parent), real_gguf.name
    return AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@pytest.mark.slow
def test_greedy_tokens_equal_transformers_at_every_length(llm: LLM, reference: Any) -> None:
    text = llm.tokenizer.encode(TEXT, add_special_tokens=False)
    prompts = [text[start : start + length] for start, length in enumerate(LENGTHS)]
    assert [len(prompt) for prompt in prompts] == list(LENGTHS)
    greedy = SamplingParams(temperature=0.0, max_tokens=COUNT, ignore_eos=True)
    outputs = llm.generate(prompts, greedy, use_tqdm=False)
    for prompt, output in zip(prompts, outputs, strict=True):
        tokens = output.outputs[0].token_ids
        assert len(tokens) == COUNT
        with torch.no_grad():
            logits = reference(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1].numpy()
        for place, (token, row) in enumerate(zip(tokens, logits, strict=True)):
            second, best = np.sort(row)[-2:]
            assert token == int(row.argmax()) or best - second < NEAR_TIE, (len(prompt), place, best - second)
    assert llm.core.compiles.count == 0


@pytest.mark.slow
def test_logprobs_equal_transformers(llm: LLM, reference: Any) -> None:
    prompt = llm.tokenizer.encode("The capital of France is Paris. The capital of Germany is", add_special_tokens=False)
    sampled = llm.generate([prompt], SamplingParams(temperature=1.0, seed=5, max_tokens=30, logprobs=5), use_tqdm=False)
    output = sampled[0].outputs[0]
    with torch.no_grad():
        logits = reference(torch.tensor([prompt + output.token_ids])).logits[0, len(prompt) - 1 : -1]
    expected = torch.log_softmax(logits.double(), -1).numpy()
    assert output.logprobs is not None
    for token, row, actual in zip(output.token_ids, expected, output.logprobs, strict=True):
        np.testing.assert_allclose(actual.logprob, row[token], atol=1e-3)
        np.testing.assert_allclose(actual.top_logprobs, np.sort(row)[::-1][:5], atol=1e-3)
