"""Dense modules behind the pooling, saved by sentence-transformers itself: of models like EmbeddingGemma."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sentence_transformers.base.modules.dense import Dense

from jserve.config import EngineConfig
from jserve.engine.core import EngineCore
from jserve.engine.encoder_core import EncoderCore
from jserve.errors import CheckpointError
from jserve.protocol import Request, SamplingParams
from tests.checkpoint.embedder_maker import add_embedder_files
from tests.worlds import make_model, start_shared

TEXTS = {"one": [5], "long": [3 + index % 50 for index in range(30)], "middle": list(range(30, 47))}
MODULES = ("Transformer", "Pooling", "Dense", "Dense", "Normalize")


def save_dense(folder: Path, **fields: Any) -> list[Dense]:
    """Two modules, the second of which has a bias and an activation, where `fields` do not say otherwise."""
    torch.manual_seed(1)
    options: dict[str, Any] = {"bias": True, "activation_function": torch.nn.Tanh(), **fields}
    plain = {"bias": False, "activation_function": torch.nn.Identity()}
    modules = [Dense(32, 48, **plain), Dense(48, 24, **options)]
    for number, module in enumerate(modules, 2):
        module.save(str(folder / f"{number}_Dense"))
    return modules


def expected(folder: Path, modules: list[Dense], tokens: list[int], pooling: str) -> np.ndarray:
    """f32[24] of length 1."""
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        hidden = model(torch.tensor([tokens])).last_hidden_state
        features = {"sentence_embedding": hidden.mean(1) if pooling == "mean" else hidden[:, -1]}
        for module in modules:
            features = module(features)
    vector = features["sentence_embedding"][0].numpy()
    actual: np.ndarray = vector / np.linalg.norm(vector)
    return actual


def vectors(folder: Path, executables: str, core: Any, pooling: Any) -> dict[str, np.ndarray]:
    sizes: dict[str, Any] = {"dtype": "float32", "max_num_seqs": 4, "max_num_batched_tokens": 16, "max_model_len": 32}
    sizes |= {"kv_cache_memory_bytes": 1 << 20, "page_size": 4} if core is EngineCore else {}
    config = EngineConfig(model=str(folder), compile_cache_dir=executables, **sizes)
    running = core(start_shared(config, early=True))
    for name, tokens in TEXTS.items():
        assert running.add(Request(name, tokens, SamplingParams(max_tokens=0), pooling=pooling)) is None
    actual: dict[str, np.ndarray] = {}
    while not running.is_idle:
        actual |= {delta.request_id: np.frombuffer(delta.embedding, "<f4") for delta in running.step()}
    return actual


def test_vectors_of_a_model_like_embeddinggemma_equal_sentence_transformers(tmp_path: Path, executables: str) -> None:
    kinds = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 12}
    make_model(tmp_path, "Gemma3TextModel", use_bidirectional_attention=True, head_dim=16, **kinds)
    add_embedder_files(tmp_path, {"pooling_mode_mean_tokens": True}, modules=MODULES)
    modules = save_dense(tmp_path)
    actual = vectors(tmp_path, executables, EncoderCore, "mean")
    for name, tokens in TEXTS.items():
        np.testing.assert_allclose(actual[name], expected(tmp_path, modules, tokens, "mean"), atol=1e-5)


def test_last_token_of_a_causal_model_goes_through_them_too(tmp_path: Path, executables: str) -> None:
    make_model(tmp_path, "Qwen3Model", head_dim=16, num_hidden_layers=1)
    add_embedder_files(tmp_path, {"pooling_mode_lasttoken": True}, modules=MODULES)
    modules = save_dense(tmp_path)
    actual = vectors(tmp_path, executables, EngineCore, "last")
    for name, tokens in TEXTS.items():
        np.testing.assert_allclose(actual[name], expected(tmp_path, modules, tokens, "last"), atol=1e-5)


def test_sums_of_chunks_are_not_sent_through_a_bias(tmp_path: Path, executables: str) -> None:
    make_model(tmp_path, "Qwen3Model", head_dim=16, num_hidden_layers=1)
    add_embedder_files(tmp_path, {"pooling_mode_mean_tokens": True}, modules=MODULES)
    save_dense(tmp_path)
    with pytest.raises(CheckpointError, match="behind mean pooling is not supported of a decoder"):
        vectors(tmp_path, executables, EngineCore, "mean")
