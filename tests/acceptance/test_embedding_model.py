"""A real model for embeddings, all-MiniLM-L6-v2, as a user starts it, against transformers in float32."""

import base64
import functools
import struct
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch
import transformers

from tests.acceptance.conftest import READY_WITHIN_S, LiveServer, StartServer
from tests.patience import PATIENCE_S, wait_until

TOLERANCE = 1e-5
LIMIT = 256
TEXTS = [
    "A cat sits on the mat.",
    "A kitten lies on a rug.",
    "Interest rates rose by two percent.",
    "Ein Kätzchen ☕ 漢字 naïve",
    ".",
    " ",
    "\U0001f642\U0001f44d\U0001f3fd [SEP] [MASK]",
    "word " * (LIMIT - 2),
    "a b c d e f g h i j k l m n o p q r s t u v w x y z " * 3,
]


@pytest.fixture(scope="module")
def server(start_server: StartServer, real_encoder: Path) -> LiveServer:
    """With the program of the longest text, and those that come first behind it: of four short ones, for instance."""
    sizes = ("--max-num-seqs", "4", "--max-num-batched-tokens", "64")
    live = start_server("--model", str(real_encoder), *sizes)
    ready = functools.partial(httpx.get, f"{live.url}/ready", timeout=PATIENCE_S)
    wait_until(lambda: ready().json()["programs"]["ready"] >= 4, READY_WITHIN_S)
    return live


@pytest.fixture(scope="module")
def client(server: LiveServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")


@pytest.fixture(scope="module")
def expected(real_encoder: Path) -> np.ndarray:
    """f32[len(TEXTS), E] of length 1: the mean of the last hidden states."""
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(real_encoder)
    model = transformers.BertModel.from_pretrained(real_encoder, dtype=torch.float32, attn_implementation="eager")
    vectors = []
    for text in TEXTS:
        tokens = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            mean = model.eval()(**tokens).last_hidden_state[0].mean(0).numpy()
        vectors.append(mean / np.linalg.norm(mean))
    return np.array(vectors)


def embed(client: openai.OpenAI, texts: Any, **fields: Any) -> np.ndarray:
    answer = client.embeddings.create(model="all-MiniLM-L6-v2", input=texts, **fields)
    return np.array([entry.embedding for entry in answer.data])


def test_vectors_equal_transformers_alone_and_together(client: openai.OpenAI, expected: np.ndarray) -> None:
    """And say which of three sentences are about the same."""
    together = embed(client, TEXTS)
    np.testing.assert_allclose(together, expected, atol=TOLERANCE)
    for index, text in enumerate(TEXTS):
        np.testing.assert_allclose(embed(client, text)[0], together[index], atol=1e-6)
    cats, kittens, rates = together[:3]
    assert cats @ kittens > 0.5 > 0.3 > max(cats @ rates, kittens @ rates)


def test_encodings_and_dimensions_agree(client: openai.OpenAI, expected: np.ndarray) -> None:
    plain = embed(client, TEXTS[0], encoding_format="float")[0]
    answer = client.embeddings.create(model="all-MiniLM-L6-v2", input=TEXTS[0], encoding_format="base64")
    text: Any = answer.data[0].embedding
    assert struct.unpack("<384f", base64.b64decode(text)) == tuple(plain.astype(np.float32))
    short = embed(client, TEXTS[0], dimensions=64)[0]
    np.testing.assert_allclose(short, expected[0][:64] / np.linalg.norm(expected[0][:64]), atol=TOLERANCE)


def test_context_is_what_the_model_was_trained_for(client: openai.OpenAI, server: LiveServer) -> None:
    """Its table of positions would hold 512."""
    with pytest.raises(openai.BadRequestError, match=f"maximum context length is {LIMIT} tokens"):
        embed(client, "word " * (LIMIT - 1))
    body = {"model": "all-MiniLM-L6-v2", "input": "word " * 999}
    cut = httpx.post(f"{server.url}/api/embed", json=body, timeout=PATIENCE_S).json()
    assert cut["prompt_eval_count"] == LIMIT
    np.testing.assert_allclose(cut["embeddings"], embed(client, TEXTS[7]), atol=1e-6)


def test_many_texts_share_steps_and_nothing_is_compiled(client: openai.OpenAI, server: LiveServer) -> None:
    before = server.metric("jserve:steps_total")
    embed(client, ["a cat"] * 16)
    assert server.metric("jserve:steps_total") - before < 16
    assert server.metric("jserve:recompiles_after_ready_total") == 0
    assert server.metric("vllm:prefix_cache_queries_total") == 0


def test_no_text_is_generated(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="embeds; it does not generate text"):
        client.chat.completions.create(model="all-MiniLM-L6-v2", messages=[{"role": "user", "content": "hi"}])
