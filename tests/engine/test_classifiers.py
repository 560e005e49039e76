"""Classifiers and cross-encoders against transformers in float32, through the engine."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from jserve.config import EngineConfig
from jserve.engine.core import EngineCore
from jserve.engine.encoder_core import EncoderCore
from jserve.protocol import Request, SamplingParams
from tests.worlds import make_model, start_shared

LENGTH = 48
PAIRS = {"short": ([5], 0), "pair": (list(range(3, 20)), 9), "long": ([3 + index % 50 for index in range(LENGTH)], 30)}
"""Token ids, and where the second text begins."""
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertForSequenceClassification", {}),
    "roberta, a cross-encoder": (
        "XLMRobertaForSequenceClassification",
        {"pad_token_id": 1, "num_labels": 1, "max_position_embeddings": LENGTH + 2},
    ),
    "modernbert": (
        "ModernBertForSequenceClassification",
        {"local_attention": 10, "num_labels": 3, "num_hidden_layers": 2},
    ),
    "modernbert, of the mean": (
        "ModernBertForSequenceClassification",
        {"num_labels": 1, "classifier_pooling": "mean", "classifier_bias": True, "classifier_activation": "silu"},
    ),
    "nomic-bert": ("NomicBertForSequenceClassification", {}),
    "gte, a cross-encoder": ("GteForSequenceClassification", {"num_labels": 1}),
    "jina": ("JinaEmbeddingsV3ForSequenceClassification", {"type_vocab_size": 1}),
    "qwen 3, a cross-encoder": ("Qwen3ForSequenceClassification", {"num_labels": 1, "head_dim": 16}),
    "llama": ("LlamaForSequenceClassification", {"num_labels": 5}),
}


SLOW = ("modernbert", "gte, a cross-encoder", "jina", "nomic-bert", "llama")
"""Whose parts the others have, too."""


@pytest.mark.parametrize("case", [pytest.param(case, marks=pytest.mark.slow if case in SLOW else ()) for case in CASES])
def test_logits_equal_transformers(case: str, tmp_path: Path, executables: str) -> None:
    architecture, fields = CASES[case]
    make_model(tmp_path, architecture, **{"max_position_embeddings": LENGTH, "num_hidden_layers": 1, **fields})
    model = getattr(transformers, architecture).from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager"
    )
    sizes: dict[str, Any] = {"dtype": "float32", "max_num_seqs": 4, "max_num_batched_tokens": 16}
    is_causal = architecture.startswith(("Qwen", "Llama"))
    sizes |= {"kv_cache_memory_bytes": 1 << 20, "page_size": 4} if is_causal else {}
    config = EngineConfig(model=str(tmp_path), compile_cache_dir=executables, **sizes)
    started = start_shared(config, early=True)
    assert started.classifier is not None
    assert (started.classifier.is_cross_encoder, started.generates) == (fields.get("num_labels") == 1, False)
    core = EngineCore(started) if is_causal else EncoderCore(started)
    refused = core.add(Request("a", [5], SamplingParams()))
    assert refused is not None
    assert "does not generate" in (refused.error or "")
    has_types = case in ("bert", "nomic-bert")  # as tokenizers say: those of the others know one type alone
    for name, (tokens, second) in PAIRS.items():
        request = Request(
            name,
            tokens,
            SamplingParams(max_tokens=0),
            pooling=started.classifier.pooling,
            second_text=second if has_types else 0,
            normalizes=False,
        )
        assert core.add(request) is None
    actual: dict[str, np.ndarray] = {}
    while not core.is_idle:
        actual |= {delta.request_id: np.frombuffer(delta.embedding, "<f4") for delta in core.step()}
    for name, (tokens, second) in PAIRS.items():
        types = torch.tensor([[int(second > 0 and place >= second) for place in range(len(tokens))]])
        with torch.no_grad():
            logits = model.eval()(torch.tensor([tokens]), **({"token_type_ids": types} if has_types else {})).logits
        np.testing.assert_allclose(actual[name], logits[0].numpy(), atol=1e-5, rtol=1e-5)
