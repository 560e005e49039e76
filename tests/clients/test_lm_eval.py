"""lm-eval's `local-completions` against the real model: its loglikelihoods are those of transformers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.acceptance.conftest import StartServer, start_server

pytest.importorskip("lm_eval", reason="needs the `clients` extra")

import lm_eval
from lm_eval.models.openai_completions import LocalCompletionsAPI
from lm_eval.tasks import TaskManager

__all__ = ["start_server"]

TOLERANCE = 2e-3
"""A sum over the tokens of a continuation is that exact; each is within 1e-3 or so in float32."""

QUESTIONS = [
    ("The capital of France is", [" Paris", " Tokyo", " a banana"], 0),
    ("Water freezes at zero degrees", [" Thursday", " Celsius", " of the king"], 1),
    ("The opposite of hot is", [" green", " seven", " cold"], 2),
    ("Two plus two equals", [" four", " a very long road", " hot"], 0),
    ("Dogs like to chase", [" algebra", " cats", " the year 1789"], 1),
    ("The sun rises in the", [" bottle", " spoon", " east"], 2),
]
TASK = """
task: choose_the_end
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
metric_list:
  - metric: acc
  - metric: acc_norm
"""


@pytest.fixture(scope="module")
def reference(real_gguf: Path) -> Any:
    folder, name = str(real_gguf.parent), real_gguf.name
    return AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@pytest.fixture(scope="module")
def tokenizer_folder(real_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    AutoTokenizer.from_pretrained(str(real_gguf.parent), gguf_file=real_gguf.name).save_pretrained(folder)
    return folder


def loglikelihoods(model: Any, tokenizer: Any, question: str, choices: list[str]) -> list[float]:
    """The logprob of every choice after the question, by transformers."""
    sums = []
    context = tokenizer.encode(question, add_special_tokens=False)
    for choice in choices:
        tokens = tokenizer.encode(question + choice, add_special_tokens=False)
        assert tokens[: len(context)] == context
        with torch.no_grad():
            logprobs = torch.log_softmax(model(torch.tensor([tokens])).logits[0].double(), dim=-1)
        places = range(len(context), len(tokens))
        sums.append(float(sum(logprobs[place - 1, tokens[place]] for place in places)))
    return sums


@pytest.mark.slow
def test_accuracy_and_loglikelihoods_equal_those_of_transformers(
    start_server: StartServer,
    reference: Any,
    tokenizer_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    data = tmp_path / "questions.jsonl"
    rows = [{"question": question, "choices": choices, "answer": answer} for question, choices, answer in QUESTIONS]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "choose_the_end.yaml").write_text(TASK.format(data=data))
    server = start_server("--dtype", "float32")
    model = LocalCompletionsAPI(
        base_url=f"{server.url}/v1/completions",
        model="SmolLM2-135M-Instruct.Q4_1",
        tokenizer=str(tokenizer_folder),
        tokenizer_backend="huggingface",
        num_concurrent=4,
        max_retries=1,
    )
    manager = TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False)
    actual = lm_eval.simple_evaluate(
        model=model, tasks=["choose_the_end"], task_manager=manager, log_samples=True, bootstrap_iters=0
    )
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    expected = [loglikelihoods(reference, tokenizer, question, choices) for question, choices, _ in QUESTIONS]
    samples = sorted(actual["samples"]["choose_the_end"], key=lambda sample: int(sample["doc_id"]))
    assert len(samples) == len(QUESTIONS)
    for sample, values in zip(samples, expected, strict=True):
        served = [float(logprob) for ((logprob, _),) in sample["resps"]]
        np.testing.assert_allclose(served, values, atol=TOLERANCE)
    right = [int(np.argmax(values)) == answer for values, (_, _, answer) in zip(expected, QUESTIONS, strict=True)]
    assert actual["results"]["choose_the_end"]["acc,none"] == pytest.approx(np.mean(right))
    assert sum(right) > len(right) / 2, "the model is no better than chance"
