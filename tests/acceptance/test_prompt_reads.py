"""The real model against transformers in float32: the logprobs of prompts, embeddings, and relevance."""

import functools
import math
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch
from transformers import AutoModelForCausalLM

from jserve import LLM, SamplingParams
from tests.acceptance.conftest import StartServer
from tests.patience import PATIENCE_S

TOLERANCE = 1e-3
TEXT = (Path(__file__).parent.parent.parent / "LICENSE").read_text()
MODEL = "SmolLM2-135M-Instruct.Q4_1"


@pytest.fixture(scope="module")
def reference(real_gguf: Path) -> Any:
    folder, name = str(real_gguf.parent), real_gguf.name
    return AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@pytest.mark.slow
def test_offline_scores_and_embeddings_equal_transformers_over_several_chunks(
    real_gguf: Path, executables: str, reference: Any
) -> None:
    llm = LLM(str(real_gguf), dtype="float32", compile_cache_dir=executables, max_model_len=2048)
    whole = llm.tokenizer.encode(TEXT, add_special_tokens=False)
    prompts = [whole[:1100], whole[7:8], whole[100:140]]
    outputs = llm.generate(prompts, SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=5), use_tqdm=False)
    embedded = {pooling: llm.embed(prompts, pooling=pooling, use_tqdm=False) for pooling in ("last", "mean")}
    for index, prompt in enumerate(prompts):
        with torch.no_grad():
            hidden = reference.model(torch.tensor([prompt])).last_hidden_state
            logprobs = torch.log_softmax(reference.lm_head(hidden)[0].double(), dim=-1).numpy()
        actual = outputs[index].prompt_logprobs
        assert actual is not None
        own = logprobs[np.arange(len(prompt) - 1), prompt[1:]]
        np.testing.assert_allclose([entry.logprob for entry in actual], own, atol=TOLERANCE)
        best = np.sort(logprobs[:-1], axis=-1)[:, ::-1][:, :5].reshape(-1, 5)
        np.testing.assert_allclose(np.array([e.top_logprobs for e in actual]).reshape(-1, 5), best, atol=TOLERANCE)
        states = hidden[0].double().numpy()
        for pooling, state in (("last", states[-1]), ("mean", states.mean(0))):
            vector = embedded[pooling][index]
            np.testing.assert_allclose(vector, state / np.linalg.norm(state), atol=TOLERANCE)


@pytest.mark.slow
def test_embeddings_and_relevance_over_http(start_server: StartServer) -> None:
    server = start_server("--dtype", "float32")
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    texts = ["The cat sat on the mat.", "A cat is sitting on a rug.", "Interest rates rose by two percent."]
    vectors = np.array([entry.embedding for entry in client.embeddings.create(model=MODEL, input=texts).data])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    mean = client.embeddings.create(model=MODEL, input=texts, extra_body={"pooling": "mean"})
    one, other, apart = (np.array(entry.embedding) for entry in mean.data)
    assert one @ other > one @ apart
    query, documents = "What is the capital of France?", ["Paris is the capital of France.", "Bananas are yellow."]
    post = functools.partial(httpx.post, timeout=PATIENCE_S)
    scored = post(f"{server.url}/v1/score", json={"queries": query, "documents": documents}).json()
    scores = [entry["score"] for entry in scored["data"]]
    ranked = post(f"{server.url}/rerank", json={"query": query, "documents": documents}).json()
    assert [entry["relevance_score"] for entry in ranked["results"]] == pytest.approx(sorted(scores)[::-1], rel=1e-3)
    tokenize = f"{server.url}/tokenize"
    ids = [post(tokenize, json={"prompt": word}).json()["tokens"][0] for word in ("yes", "no")]
    for document, score in zip(documents, scores, strict=True):
        system = (
            "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
            'Note that the answer can only be "yes" or "no".'
        )
        instruct = "Given a web search query, retrieve relevant passages that answer the query"
        answer = client.chat.completions.create(
            model=MODEL,
            messages=[
                {"role": "system", "content": system},
                {"role": "user", "content": f"<Instruct>: {instruct}\n<Query>: {query}\n<Document>: {document}"},
            ],
            max_tokens=1,
            logprobs=True,
            extra_body={"logprob_token_ids": ids},
        )
        logprobs = answer.choices[0].logprobs
        assert logprobs is not None
        assert logprobs.content is not None
        yes, no = (top.logprob for top in logprobs.content[0].top_logprobs)
        assert score == pytest.approx(1 / (1 + math.exp(no - yes)), rel=1e-3)
