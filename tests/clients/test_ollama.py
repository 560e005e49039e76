"""The official `ollama` package against the real model."""

import asyncio
import json

import ollama
import pytest

from tests.acceptance.conftest import LiveServer

pytestmark = pytest.mark.slow

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
GREEDY = {"temperature": 0, "num_predict": 40}


@pytest.fixture(scope="module")
def client(live: LiveServer) -> ollama.Client:
    return ollama.Client(live.url)


@pytest.fixture(scope="module")
def name(client: ollama.Client) -> str:
    [model] = client.list().models
    assert model.model
    return model.model


def test_the_model_is_described_from_its_file(client: ollama.Client, name: str) -> None:
    shown = client.show(name)
    assert shown.details is not None
    assert shown.details.format == "gguf"
    assert shown.details.parameter_size == "134.52M"
    assert shown.details.quantization_level == "Q4_1"
    assert shown.modelinfo is not None
    assert shown.modelinfo["general.architecture"] == "llama"
    assert shown.modelinfo["llama.embedding_length"] == 576
    [running] = client.ps().models
    assert running.name == name
    assert running.size == client.list().models[0].size


def test_chat_streamed_and_whole_agree(client: ollama.Client, name: str) -> None:
    whole = client.chat(name, QUESTION, options=GREEDY)
    assert whole.message.content == "The capital of France is Paris."
    assert whole.done_reason == "stop"
    chunks = list(client.chat(name, QUESTION, options=GREEDY, stream=True))
    assert "".join(chunk.message.content or "" for chunk in chunks) == whole.message.content
    assert chunks[-1].eval_count == whole.eval_count
    assert (chunks[-1].prompt_eval_duration or 0) > 0


def test_generate_goes_on_from_a_context(client: ollama.Client, name: str) -> None:
    first = client.generate(name, QUESTION[0]["content"], options=GREEDY)
    assert "Paris" in (first.response or "")
    second = client.generate(name, "Repeat the name of that city.", context=first.context, options=GREEDY)
    assert "Paris" in (second.response or "")


def test_raw_prompt_is_continued(client: ollama.Client, name: str) -> None:
    options = GREEDY | {"stop": ["."]}
    response = client.generate(name, "The capital of France is", raw=True, options=options)
    assert "Paris" in (response.response or "")
    assert "." not in (response.response or "")


def test_a_seed_makes_the_answer_repeatable(client: ollama.Client, name: str) -> None:
    def draw(seed: int) -> str | None:
        options = {"seed": seed, "temperature": 1.5, "num_predict": 24}
        return client.chat(name, QUESTION, options=options).message.content

    assert draw(1) == draw(1)
    assert len({draw(seed) for seed in range(4)}) > 1


def test_async_streams_share_the_engine(live: LiveServer, name: str) -> None:
    async def one(client: ollama.AsyncClient) -> str:
        stream = await client.chat(name, QUESTION, stream=True, options=GREEDY)
        return "".join([chunk.message.content or "" async for chunk in stream])

    async def all_of_them() -> list[str]:
        client = ollama.AsyncClient(live.url)
        return await asyncio.gather(*(one(client) for _ in range(4)))

    assert asyncio.run(all_of_them()) == ["The capital of France is Paris."] * 4


def test_format_with_a_schema_gives_an_object_of_it(client: ollama.Client, name: str) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "population": {"type": "integer"}},
        "required": ["city", "population"],
    }
    options = {"temperature": 1.0, "seed": 3, "num_predict": 200}
    answer = json.loads(client.chat(name, QUESTION, format=schema, options=options).message.content or "")
    assert isinstance(answer["city"], str)
    assert isinstance(answer["population"], int)
