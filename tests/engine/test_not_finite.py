"""Weights that hold NaN or infinity: said by name while they are loaded, and an error for every request they reach."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jserve.config import EngineConfig
from jserve.engine.core import make_core
from jserve.protocol import Request, SamplingParams
from tests.worlds import SMALL, greedy, make_model, run, start_engine, start_shared, tokens_of

PROMPT = list(range(10, 22))
DOWN = "model.layers.1.mlp.down_proj.weight"


def break_tensor(folder: Path, name: str, value: float, row: int = 3) -> None:
    """One number of a row of a tensor becomes `value`."""
    file = folder / "model.safetensors"
    tensors = {key: np.array(tensor) for key, tensor in load_file(file).items()}
    tensors[name][row, 0] = value
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_every_kind_of_request_to_a_broken_model_ends_with_an_error_that_names_the_tensor(
    tmp_path: Path, executables: str, caplog: pytest.LogCaptureFixture, value: float
) -> None:
    folder = make_model(tmp_path, "LlamaForCausalLM")
    break_tensor(folder, DOWN, value)
    with caplog.at_level(logging.ERROR):
        core = start_engine(folder, executables)
    assert len(caplog.records) == 1
    assert DOWN in caplog.text
    kinds = {
        "greedy": greedy(4),
        "drawn": SamplingParams(max_tokens=4, seed=1),
        "filtered": SamplingParams(max_tokens=4, seed=1, top_k=5),
        "penalised": greedy(4, frequency_penalty=1.0),
        "masked": greedy(4, allowed_token_ids=(5, 6)),
        "scored": greedy(4, logprobs=3),
        "its prompt": SamplingParams(max_tokens=0, prompt_logprobs=2),
    }
    for name, params in kinds.items():
        (last,) = run(core, {name: PROMPT}, params)[name]
        assert (last.finish_reason, last.token_ids) == ("error", []), name
        assert "NaN or infinity" in (last.error or "")
        assert DOWN in (last.error or ""), name
    for pooling in ("last", "mean"):
        core.add(Request(pooling, PROMPT, SamplingParams(max_tokens=0), pooling=pooling))
        (last,) = run(core, {}, greedy(1))[pooling]
        assert (last.finish_reason, last.embedding) == ("error", b"")
    core.scheduler.check()
    assert core.stats().num_running == core.stats().num_pages_used == 0


def test_a_request_that_meets_no_broken_number_gets_its_tokens_beside_and_after_one_that_does(
    tmp_path: Path, executables: str
) -> None:
    """Also in pages that the other has left NaN in. With native attention: XLA's adds up several rows by a product."""
    folder = make_model(tmp_path, "LlamaForCausalLM", hidden_size=64)
    prompts = {"a": PROMPT, "b": PROMPT[:5], "c": [*PROMPT[3:], 30]}
    healthy = start_engine(folder, executables)
    if healthy.runner._programs.build.attention != "native":
        pytest.skip("needs Numba")
    expected = {name: tokens_of(deltas) for name, deltas in run(healthy, prompts, greedy(8)).items()}
    met = {token for name in prompts for token in (*prompts[name], *expected[name])}
    secret = min(set(range(3, SMALL["vocab_size"])) - met)
    break_tensor(folder, "model.embed_tokens.weight", np.nan, row=secret)
    core = start_engine(folder, executables, enable_prefix_caching=False)
    broken = {f"broken {number}": [secret, *PROMPT[: 3 + number]] for number in range(2)}
    for _ in range(3):
        deltas = run(core, {**broken, **prompts}, greedy(8))
        assert {name: tokens_of(deltas[name]) for name in prompts} == expected
        assert all("model.embed_tokens.weight" in (deltas[name][-1].error or "") for name in broken)


def test_an_encoder_with_broken_weights_answers_with_an_error(tmp_path: Path, executables: str) -> None:
    name = "encoder.layer.0.output.dense.weight"
    folder = make_model(tmp_path, "BertModel", max_position_embeddings=32)
    break_tensor(folder, name, np.nan)
    options: dict[str, Any] = {"dtype": "float32", "max_num_seqs": 4, "max_num_batched_tokens": 64}
    config = EngineConfig(model=str(folder), compile_cache_dir=executables, **options)
    core = make_core(start_shared(config, early=True))
    core.add(Request("a", [5, 6], SamplingParams(), pooling="mean"))
    deltas = [delta for _ in range(2) for delta in core.step()]
    assert [(delta.finish_reason, delta.embedding) for delta in deltas] == [("error", b"")]
    assert name in (deltas[0].error or "")
