"""Chat templates behind the server: missing ones, ones that refuse, hostile ones, and those of requests."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.api.live_server import LiveServer, StartServer
from tests.api.stream_pace import undisturbed

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hi"}]
PACE_S = 0.15
TRUSTED = {"trust_request_chat_template": True}
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "{{ message.content }}{% endfor %}"
)
DOCUMENTS = "{% for d in documents %}[{{ d.title }}: {{ d.text }}]{% endfor %}{{ messages[0].content }}"


@pytest.fixture(scope="module")
def trusting(make_server: StartServer) -> Any:
    live = make_server("--step-ms", "5", **TRUSTED)
    yield live
    live.stop()


def _error(server: LiveServer, **fields: Any) -> dict[str, Any]:
    response = server.http.post(CHAT, json={"messages": MESSAGES, **fields})
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    assert error["type"] == "BadRequestError"
    return error


def _content(server: LiveServer, **fields: Any) -> str:
    response = server.http.post(CHAT, json={"messages": MESSAGES, **fields})
    assert response.status_code == 200, response.text
    content: str = response.json()["choices"][0]["message"]["content"]
    return content


def test_a_model_without_a_template_names_the_flag_and_completes(
    start_server: StartServer, model_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "bare"
    shutil.copytree(model_dir, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    bare = start_server(model=str(folder))
    message = _error(bare)["message"]
    assert "no chat template" in message
    assert "--chat-template" in message
    assert bare.complete("abc", max_tokens=3)["choices"][0]["text"] == "abc"


@pytest.mark.parametrize(
    ("roles", "quote"),
    [
        (["system", "user"], "System role not supported"),
        (["user", "user"], "Conversation roles must alternate user/assistant"),
    ],
)
def test_a_template_that_refuses_is_quoted(trusting: LiveServer, roles: list[str], quote: str) -> None:
    messages = [{"role": role, "content": "x"} for role in roles]
    error = _error(trusting, messages=messages, chat_template=NO_SYSTEM)
    assert error["message"] == f"the chat template refuses these messages: {quote}"
    assert error["param"] == "messages"


def test_a_template_of_a_request_needs_the_flag(server: LiveServer, trusting: LiveServer) -> None:
    fields = {"chat_template": "given: {{ messages[0].content }}<|im_end|>", "add_generation_prompt": False}
    error = _error(server, **fields)
    assert error["param"] == "chat_template"
    assert "--trust-request-chat-template" in error["message"]
    assert _content(trusting, **fields) == "given: hi"
    assert _content(trusting) == "user\nhi", "the next request gets the model's own"


def test_documents_reach_a_template_that_shows_them(server: LiveServer, trusting: LiveServer) -> None:
    documents = [{"title": "T", "text": "one"}, {"title": "U", "text": "two"}]
    assert _content(trusting, documents=documents, chat_template=DOCUMENTS, max_tokens=18) == "[T: one][U: two]hi"
    error = _error(server, documents=documents)
    assert error["param"] == "documents"
    assert _content(server, documents=[]) == "user\nhi"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "took more than 2 s"),
        ("{{ 'x' * 10000000000 }}", "needs more than 1024 MiB"),
        ("{{ 'x' | center(10000000000) }}", "needs more than 1024 MiB"),
        (
            "{% set s = namespace(x='xx') %}{% for i in range(40) %}{% set s.x = s.x ~ s.x %}{% endfor %}",
            "MiB of memory|more than 2 s",  # whichever it comes to first
        ),
        ("{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}", "RecursionError"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{{ messages.clear() }}", "SecurityError"),
        ("{{ cycler.__init__.__globals__.os }}", "SecurityError"),
        ("{{ '\\ud800' }}", "not valid Unicode"),
        ("{% include '/etc/passwd' %}", "failed"),
        ("{% if %}", "does not compile"),
    ],
)
def test_a_hostile_template_fails_alone(trusting: LiveServer, template: str, text: str) -> None:
    message = undisturbed(trusting, lambda: _error(trusting, chat_template=template)["message"], PACE_S)
    assert any(part in message for part in text.split("|"))
    assert "/etc" not in message
    assert _content(trusting) == "user\nhi", "the model's own template goes on"
