"""Ollama's API as its official Python client uses it. The fake engine repeats the prompt."""

import asyncio
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import ollama
import pytest
from tokenizers import Tokenizer

from jserve.api.model.files import ModelFiles
from tests.api.live_server import MAX_MODEL_LEN, STOP, LiveServer, StartServer

MESSAGES = [{"role": "user", "content": "hello"}]
ECHO = "user\nhello"
"""What the engine makes of MESSAGES: the prompt as it stands in the template, up to the end of the turn."""


@pytest.fixture(scope="module")
def client(server: LiveServer) -> ollama.Client:
    return ollama.Client(server.url)


def test_list_names_the_served_models_with_their_tags(client: ollama.Client) -> None:
    models = client.list().models
    assert [model.model for model in models] == ["tiny:latest", "other:latest"]
    [first, _] = models
    assert first.details is not None
    assert (first.details.format, first.details.parameter_size) == ("safetensors", "16")
    assert first.details.quantization_level == "F32"
    assert first.size
    assert first.digest
    assert len(first.digest) == 64
    assert first.modified_at is not None
    assert first.modified_at < datetime.now(UTC)


def test_show_describes_the_model(client: ollama.Client) -> None:
    shown = client.show("tiny")
    assert shown.capabilities == ["completion"]
    assert shown.template is not None
    assert "<|im_start|>" in shown.template
    assert shown.modelinfo == {
        "general.architecture": "llama",
        "general.parameter_count": 16,
        "llama.context_length": MAX_MODEL_LEN,
    }
    assert shown.parameters is not None
    parameters = dict(line.split() for line in shown.parameters.splitlines())
    # The model's generation_config names a temperature and top_p; top_k is Ollama's.
    assert parameters["temperature"] == "0.0"
    assert parameters["top_p"] == "0.9"
    assert parameters["top_k"] == "40"
    assert parameters["num_ctx"] == str(MAX_MODEL_LEN)


def test_ps_shows_a_model_that_never_expires(client: ollama.Client) -> None:
    [model] = client.ps().models
    assert model.model == model.name == "tiny:latest"
    assert model.expires_at is not None
    assert model.expires_at.year > 2200
    assert model.context_length == MAX_MODEL_LEN
    assert model.size_vram == model.size


@pytest.mark.parametrize("name", ["tiny", "tiny:latest", "other", "other:latest"])
def test_chat_under_every_name_answers_under_that_name(client: ollama.Client, name: str) -> None:
    response = client.chat(name, MESSAGES)
    assert response.message.content == ECHO
    assert response.message.role == "assistant"
    assert response.model == name
    assert response.done is True
    assert response.done_reason == "stop"


def test_counts_and_durations_are_of_the_request(start_server: StartServer, tokenizer: Tokenizer) -> None:
    client = ollama.Client(start_server("--step-ms", "5").url)
    before = datetime.now(UTC)
    response = client.chat("tiny", MESSAGES)
    elapsed = (datetime.now(UTC) - before).total_seconds() * 1e9
    prompt = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert response.prompt_eval_count == len(tokenizer.encode(prompt).ids)
    assert response.eval_count == len(tokenizer.encode("<|im_start|>user\nhello<|im_end|>").ids)
    total = response.total_duration or 0
    parts = [response.load_duration, response.prompt_eval_duration, response.eval_duration]
    assert all(part is not None and part > 0 for part in parts)
    assert sum(part or 0 for part in parts) <= total <= elapsed


def test_stream_put_together_is_the_whole_answer(client: ollama.Client) -> None:
    chunks = list(client.chat("tiny", MESSAGES, stream=True))
    assert "".join(chunk.message.content or "" for chunk in chunks) == ECHO
    assert len(chunks) > 3
    assert [chunk.done for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    last = chunks[-1]
    assert last.message.content == ""
    assert last.done_reason == "stop"
    assert last.eval_count == client.chat("tiny", MESSAGES).eval_count
    assert all(chunk.message.role == "assistant" for chunk in chunks)


def test_generate_uses_the_template_and_returns_a_context_to_go_on_with(
    client: ollama.Client, server: LiveServer
) -> None:
    first = client.generate("tiny", "hello")
    assert first.response == ECHO
    assert first.context is not None
    assert first.context[-1] == STOP
    second = client.generate("tiny", "you", context=first.context, options={"num_predict": 40})
    assert second.context is not None
    assert list(second.context[: len(first.context)]) == list(first.context)
    # The first answer's turn, repeated from the start of the context.
    assert second.response == ECHO
    assert second.prompt_eval_count == len(first.context) + (client.generate("tiny", "you").prompt_eval_count or 0)


def test_generate_streams_the_same_text_and_context(client: ollama.Client) -> None:
    chunks = list(client.generate("tiny", "hello", system="be kind", stream=True))
    whole = client.generate("tiny", "hello", system="be kind")
    assert "".join(chunk.response or "" for chunk in chunks) == whole.response == "system\nbe kind"
    assert chunks[-1].context == whole.context


def test_raw_prompt_is_taken_as_it_is(client: ollama.Client) -> None:
    response = client.generate("tiny", "abc", raw=True, options={"num_predict": 7})
    assert response.response == "abcabca"
    assert response.prompt_eval_count == 3
    assert response.eval_count == 7
    assert response.done_reason == "length"
    assert response.context is None


def test_options_reach_the_sampling(client: ollama.Client) -> None:
    def raw(**options: object) -> str | None:
        return client.generate("tiny", "abcdefgh", raw=True, options=options).response

    assert raw(num_predict=8) == "abcdefgh"
    # The fake engine's draws are shifted by the seed.
    assert raw(num_predict=8, temperature=0.7, seed=3) == "defghabc"
    assert raw(stop=["x", "y", "z", "u", "v", "ef"]) == "abcd"


def test_chat_without_limit_goes_on_to_the_end_of_the_context(client: ollama.Client) -> None:
    for num_predict in (-1, -2):
        response = client.generate("tiny", "abc", raw=True, options={"num_predict": num_predict})
        assert response.eval_count == MAX_MODEL_LEN - 3
        assert response.done_reason == "length"


def test_logprobs_of_both_endpoints(client: ollama.Client) -> None:
    chat = client.chat("tiny", MESSAGES, logprobs=True, top_logprobs=2)
    assert chat.logprobs is not None
    assert len(chat.logprobs) == chat.eval_count
    assert chat.logprobs[1].token == "u"
    assert chat.logprobs[1].logprob == -3.0
    top = chat.logprobs[1].top_logprobs
    assert top is not None
    assert [entry.logprob for entry in top] == [-1.0, -2.0]
    raw = client.generate("tiny", "abc", raw=True, logprobs=True, options={"num_predict": 2})
    assert raw.logprobs is not None
    assert [entry.token for entry in raw.logprobs] == ["a", "b"]
    streamed = list(client.chat("tiny", MESSAGES, logprobs=True, stream=True))
    tokens = [entry.token for chunk in streamed for entry in chunk.logprobs or ()]
    assert tokens == [entry.token for entry in chat.logprobs]


def test_an_empty_request_loads_or_unloads(client: ollama.Client) -> None:
    assert client.generate("tiny").done_reason == "load"
    assert client.generate("tiny", keep_alive="5m").done_reason == "load"
    assert client.generate("tiny", keep_alive=0).done_reason == "unload"
    assert client.chat("tiny", [], keep_alive="0s").done_reason == "unload"
    [loaded] = list(client.chat("tiny", stream=True))
    assert (loaded.done, loaded.done_reason, loaded.message.content) == (True, "load", "")


def test_unknown_model_is_404_in_ollamas_words(client: ollama.Client) -> None:
    for call in (client.chat, client.generate, client.show):
        with pytest.raises(ollama.ResponseError) as raised:
            call("absent:7b")
        assert raised.value.status_code == 404
        assert raised.value.error == "model 'absent:7b' not found"


def test_requests_for_the_store_say_what_to_do_instead(client: ollama.Client) -> None:
    calls = {
        "--model PATH": lambda: client.pull("llama3.2"),
        "upload its files": lambda: client.push("me/tiny"),
        "--chat-template FILE": lambda: client.create("mine", from_="tiny"),
        "--served-model-name": lambda: client.copy("tiny", "mine"),
        "remove the model's files": lambda: client.delete("tiny"),
    }
    for advice, call in calls.items():
        with pytest.raises(ollama.ResponseError, match=advice) as raised:
            call()
        assert raised.value.status_code == 501
    with pytest.raises(ollama.ResponseError, match="--model PATH"):
        list(client.pull("llama3.2", stream=True))


def test_prompt_over_the_context_is_refused_and_not_cut(client: ollama.Client) -> None:
    for num_ctx in (None, 10, 100_000):
        options = {"num_ctx": num_ctx} if num_ctx else {}
        with pytest.raises(ollama.ResponseError, match="maximum context length is 256 tokens") as raised:
            client.generate("tiny", "x" * 300, options=options)
        assert raised.value.status_code == 400
    assert client.chat("tiny", MESSAGES, options={"num_ctx": 10}).message.content == ECHO


SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "size": {"enum": ["small", "large"]}},
    "required": ["city", "size"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("raw", [False, True])
def test_format_with_a_schema_holds_the_answer_to_it(client: ollama.Client, raw: bool) -> None:
    for seed in range(5):
        options = {"seed": seed, "temperature": 1.5}
        made = json.loads(client.generate("tiny", "hello", raw=raw, format=SCHEMA, options=options).response or "")
        assert set(made) == {"city", "size"}
        assert made["size"] in ("small", "large")


def test_format_json_gives_an_object_streamed_or_whole(client: ollama.Client) -> None:
    options = {"seed": 5, "temperature": 1.0}
    whole = client.chat("tiny", MESSAGES, format="json", options=options)
    assert isinstance(json.loads(whole.message.content or ""), dict)
    chunks = client.chat("tiny", MESSAGES, format="json", options=options, stream=True)
    assert "".join(chunk.message.content or "" for chunk in chunks) == whole.message.content


def test_format_that_is_no_schema_is_refused(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="wibble") as raised:
        client.chat("tiny", MESSAGES, format={"type": "wibble"})
    assert raised.value.status_code == 400


def test_the_async_client_streams_many_at_once(server: LiveServer) -> None:
    async def one(client: ollama.AsyncClient, content: str) -> str:
        stream = await client.chat("tiny", [{"role": "user", "content": content}], stream=True)
        return "".join([chunk.message.content or "" async for chunk in stream])

    async def all_of_them() -> list[str]:
        client = ollama.AsyncClient(server.url)
        assert [model.model for model in (await client.list()).models] == ["tiny:latest", "other:latest"]
        return await asyncio.gather(*(one(client, f"number {i}") for i in range(8)))

    assert asyncio.run(all_of_them()) == [f"user\nnumber {i}" for i in range(8)]


def test_the_servers_key_guards_these_routes(start_server: StartServer) -> None:
    server = start_server(api_keys=("secret",))
    with pytest.raises(ollama.ResponseError, match="API key") as raised:
        ollama.Client(server.url).chat("tiny", MESSAGES)
    assert raised.value.status_code == 401
    allowed = ollama.Client(server.url, headers={"Authorization": "Bearer secret"})
    assert allowed.chat("tiny", MESSAGES).message.content == ECHO


def test_digest_is_of_the_files_and_not_of_their_place(model_dir: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model_dir, tmp_path / "copy")
    before = ModelFiles.read(str(model_dir))
    assert ModelFiles.read(str(copy)).digest == before.digest
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert ModelFiles.read(str(copy)).digest != before.digest
