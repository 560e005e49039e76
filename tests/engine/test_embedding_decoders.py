"""Decoders made for embeddings, without an output projection, against transformers in float32."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from jserve.config import EngineConfig
from jserve.engine.core import EngineCore
from jserve.protocol import Request, SamplingParams
from jserve.runtime.start import start_runner
from tests.checkpoint.embedder_maker import add_embedder_files
from tests.worlds import make_model

LENGTH = 48
TEXTS = {"one": [5], "long": [3 + index % 50 for index in range(LENGTH)], "middle": list(range(30, 50))}
"""Steps have 16 tokens."""


def like_qwen3_embedding(folder: Path) -> Path:
    """Its configuration names a head that its weights do not have, and no prefix stands before their names."""
    make_model(folder, "Qwen3Model", head_dim=16, num_hidden_layers=1)
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["Qwen3ForCausalLM"], "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    prompts = {"prompts": {"query": "Query:", "document": ""}, "default_prompt_name": None}
    return add_embedder_files(folder, {"pooling_mode_lasttoken": True}, config_sentence_transformers=prompts)


def like_e5_mistral(folder: Path) -> Path:
    make_model(folder, "MistralModel", sliding_window=7, num_hidden_layers=1)
    length = {"max_seq_length": LENGTH, "do_lower_case": False}
    return add_embedder_files(folder, {"pooling_mode_lasttoken": True}, sentence_bert_config=length)


@pytest.mark.parametrize("make", [like_qwen3_embedding, pytest.param(like_e5_mistral, marks=pytest.mark.slow)])
def test_last_tokens_of_a_model_without_a_head_equal_transformers(make: Any, tmp_path: Path, executables: str) -> None:
    folder = make(tmp_path)
    config = EngineConfig(
        model=str(folder),
        dtype="float32",
        max_num_seqs=2,
        max_num_batched_tokens=16,
        page_size=4,
        kv_cache_memory_bytes=1 << 20,
        compile_cache_dir=executables,
    )
    started = start_runner(config, lambda *_: None, early=True)
    assert started.embedder is not None
    assert started.embedder.pooling == "last"
    assert started.shape.max_model_len == (LENGTH if make is like_e5_mistral else 256)
    core = EngineCore(started)
    refused = core.add(Request("a", [5], SamplingParams()))
    assert refused is not None
    assert "does not generate" in (refused.error or "")
    for name, tokens in TEXTS.items():
        assert core.add(Request(name, tokens, SamplingParams(max_tokens=0), pooling=started.embedder.pooling)) is None
    assert core.add(Request("cls", TEXTS["middle"], SamplingParams(max_tokens=0), pooling="cls")) is None
    actual: dict[str, np.ndarray] = {}
    while not core.is_idle:
        actual |= {delta.request_id: np.frombuffer(delta.embedding, "<f4") for delta in core.step()}
    architecture = "Qwen3Model" if make is like_qwen3_embedding else "MistralModel"
    model = getattr(transformers, architecture).from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    for name, tokens in {**TEXTS, "cls": TEXTS["middle"]}.items():
        with torch.no_grad():
            hidden = model.eval()(torch.tensor([tokens])).last_hidden_state[0].numpy()
        state = hidden[0 if name == "cls" else -1]
        np.testing.assert_allclose(actual[name], state / np.linalg.norm(state), atol=1e-5)
