"""A server of `ollama:NAME`: its system prompt, examples, parameters and template hold for every request."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest

from jserve.api.settings import ServerSettings
from jserve.errors import ConfigError
from jserve.text.load import load_tokenizer
from tests.api.live_server import LiveServer, StartServer
from tests.checkpoint.gguf.maker import CONFIG, tiny_state, write_gguf
from tests.checkpoint.ollama_maker import add_model
from tests.text.tokenizers.tokenizer_maker import CHATML, SPECIAL, save_byte_level_gguf, train_byte_level

GO_TEMPLATE = "{{ if .System }}SYS {{ .System }}\n{{ end }}{{ range .Messages }}{{ .Role }}: {{ .Content }}\n{{ end }}"
PARAMETERS = {"temperature": 0, "stop": ["STOP", "END"], "num_predict": 5, "num_ctx": 64, "top_k": 7}

Pull = Callable[..., None]


@pytest.fixture
def pull(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pull:
    """Puts a model into a store of Ollama's; its GGUF file has a tokenizer, and a chat template if it is asked for."""
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))

    def into_store(chat_template: str | None = CHATML, *, bos: bool = False, **layers: Any) -> None:
        tokens = save_byte_level_gguf(tmp_path / "t.gguf", train_byte_level("gpt-2"), "gpt-2")
        fields = gguf.GGUFReader(tokens).fields
        metadata = {name: fields[name].contents() for name in fields if name.startswith("tokenizer.ggml")}
        metadata |= {"tokenizer.chat_template": chat_template} if chat_template else {}
        metadata["tokenizer.ggml.add_bos_token"] = bos
        add_model(tmp_path, write_gguf(tmp_path / "m.gguf", tiny_state(), CONFIG, metadata=metadata), **layers)

    return into_store


@pytest.fixture
def serve(start_server: StartServer) -> Callable[..., LiveServer]:
    def start(**settings: Any) -> LiveServer:
        return start_server("--vocab-size", "600", model="ollama:tiny", served_model_names=(), **settings)

    return start


def prompt_of(server: LiveServer, *messages: dict[str, str]) -> str:
    tokens = server.http.post("/tokenize", json={"messages": list(messages)}).json()["tokens"]
    return str(server.http.post("/detokenize", json={"tokens": tokens}).json()["prompt"])


HI = {"role": "user", "content": "hi"}


def test_system_prompt_and_examples_come_before_a_conversation(pull: Pull, serve: Callable[..., LiveServer]) -> None:
    pull(system="Be brief.", messages=[{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "4"}])
    server = serve()
    examples = "<|im_start|>user\n2+2<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n"
    question = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert prompt_of(server, HI) == "<|im_start|>system\nBe brief.<|im_end|>\n" + examples + question
    own = {"role": "system", "content": "Rhyme."}
    assert prompt_of(server, own, HI) == examples + "<|im_start|>system\nRhyme.<|im_end|>\n" + question
    # The fake engine repeats the prompt: what a chat was given is what it answers.
    body = {"model": "tiny", "stream": False, "options": {"temperature": 0}}
    answer = server.http.post("/api/chat", json=body | {"messages": [HI]}).json()
    assert answer["message"]["content"].startswith("system\nBe brief.")
    answer = server.http.post("/api/generate", json=body | {"prompt": "hi"}).json()
    assert answer["response"].startswith("system\nBe brief.")
    assert server.http.get("/api/tags").json()["models"][0]["name"] == "tiny:latest"


def test_parameters_are_the_defaults_and_requests_win(pull: Pull, serve: Callable[..., LiveServer]) -> None:
    pull(params=PARAMETERS)
    server = serve()
    assert server.complete("abcSTOPdef", max_tokens=50)["choices"][0]["text"] == "abc"
    assert server.complete("abcSTOPdef", max_tokens=50, stop=["d"])["choices"][0]["text"] == "abcSTOP"
    body = {"model": "tiny", "prompt": "a b c d e f g", "raw": True, "stream": False}
    answer = server.http.post("/api/generate", json=body).json()
    assert (answer["eval_count"], answer["done_reason"]) == (5, "length")
    answer = server.http.post("/api/generate", json=body | {"options": {"num_predict": 9}}).json()
    assert answer["eval_count"] == 9
    answer = server.http.post("/api/generate", json=body | {"options": {"num_predict": -1}}).json()
    assert answer["eval_count"] > 100
    assert server.chat("hi")["usage"]["completion_tokens"] == 5
    body = {"model": "tiny", "prompt": "xSTOPy", "raw": True, "stream": False, "options": {"stop": []}}
    assert server.http.post("/api/generate", json=body).json()["response"].startswith("xSTO")


def test_show_tells_the_manifest(pull: Pull, serve: Callable[..., LiveServer]) -> None:
    pull(system="Be brief.", license="MIT", params=PARAMETERS)
    shown = serve().http.post("/api/show", json={"model": "tiny:latest"}).json()
    assert (shown["system"], shown["license"]) == ("Be brief.", "MIT")
    assert 'stop                           "STOP"\nstop                           "END"' in shown["parameters"]
    assert "PARAMETER top_k 7" in shown["modelfile"]


def test_template_of_the_manifest_counts_where_the_file_has_none(pull: Pull, serve: Callable[..., LiveServer]) -> None:
    pull(chat_template=None, template=GO_TEMPLATE, system="Be brief.")
    assert prompt_of(serve(), HI) == "SYS Be brief.\nsystem: Be brief.\nuser: hi\n"


def test_template_of_the_manifest_can_be_asked_for(pull: Pull, serve: Callable[..., LiveServer]) -> None:
    pull(template=GO_TEMPLATE)
    assert prompt_of(serve(chat_template="ollama"), HI) == "user: hi\n"
    pull()
    from jserve.api.model.served_model import ServedModel
    from jserve.config import EngineConfig

    with pytest.raises(ConfigError, match="no manifest of Ollama with a template"):
        ServedModel.load(ServerSettings(model="ollama:tiny", chat_template="ollama"), EngineConfig(model="ollama:tiny"))


def test_bos_that_ollama_adds_to_a_prompt_is_written(pull: Pull) -> None:
    pull(chat_template=None, bos=True, template=GO_TEMPLATE)
    tokenizer = load_tokenizer("ollama:tiny")
    assert tokenizer.chat_template is not None
    assert tokenizer.chat_template.startswith('{{- "' + SPECIAL[1])


def test_template_that_cannot_be_translated_is_said(pull: Pull, caplog: pytest.LogCaptureFixture) -> None:
    pull(chat_template=None, template="{{ .Prompt | shout }}")
    with caplog.at_level(logging.WARNING):
        assert load_tokenizer("ollama:tiny").chat_template is None
    assert "cannot be translated from Go (the function 'shout' with 1 arguments is not supported)" in caplog.text


@pytest.mark.parametrize(
    ("model", "names"),
    [
        ("ollama:llama3.2", ("llama3.2", "llama3.2:latest", "ollama:llama3.2")),
        ("ollama:llama3.2:1b", ("llama3.2:1b", "ollama:llama3.2:1b")),
        ("ollama:x:latest", ("x:latest", "x", "ollama:x:latest")),
    ],
)
def test_served_names_are_those_of_ollama(model: str, names: tuple[str, ...]) -> None:
    assert ServerSettings(model=model).model_names == names
