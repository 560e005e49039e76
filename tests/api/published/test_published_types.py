"""Every answer, event and error of every route is of the type that the vendor has published, streamed and whole.

sglang#32808, agentgateway#2664: clients in typed languages throw at a number where a word is described, or at null.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from jserve.api.access.limits import Limit, Limits
from jserve.api.app import ROUTES
from jserve.api.errors import Dialect, ErrorAnswer
from tests.api.live_server import LiveServer, StartServer
from tests.api.published.schemas import check_anthropic, check_ollama, check_openai, check_openai_event
from tests.api.tool_templates import CALL, CALL_TIME, THINKING, TOOLS, saying

Body = dict[str, Any]
CHAT, COMPLETIONS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"

_HELLO = saying("<think>Hm.</think>Hello!")
_CALLS = saying(f"<think>Hm.</think>Let me see.\n{CALL}\n{CALL_TIME}")
_RESPONSE_TOOLS = [{"type": "function", **tool["function"]} for tool in TOOLS]
_MESSAGE_TOOLS = [
    {
        "name": tool["function"]["name"],
        "input_schema": tool["function"].get("parameters", {"type": "object"}),
    }
    for tool in TOOLS
]
_USAGE = {"include_usage": True, "continuous_usage_stats": True}
_DETAILS: Body = {"return_token_ids": True, "n": 2, "temperature": 1, "seed": 1}

OPENAI: list[tuple[str, Body]] = [
    (CHAT, {"messages": _HELLO}),
    (CHAT, {"messages": _HELLO, "max_tokens": 3, "user": "me", "logprobs": True, "top_logprobs": 2}),
    (CHAT, {"messages": _CALLS, "tools": TOOLS, "service_tier": "auto", **_DETAILS}),
    (CHAT, {"messages": _HELLO, "repetition_detection": {"max_pattern_size": 4, "min_count": 2}}),
    (CHAT, {"messages": _HELLO, "response_format": {"type": "json_object"}, "max_tokens": 9}),
    (COMPLETIONS, {"prompt": "hello", "max_tokens": 3}),
    (COMPLETIONS, {"prompt": "hello", "max_tokens": 3, "logprobs": 2, "echo": True, "user": "me"}),
    (COMPLETIONS, {"prompt": ["hello", "you"], "max_tokens": 3, **_DETAILS}),
    (RESPONSES, {"input": _HELLO}),
    (RESPONSES, {"input": _HELLO, "user": "me", "instructions": "Be brief.", "metadata": {"a": "b"}}),
    (RESPONSES, {"input": _HELLO, "max_output_tokens": 3, "reasoning": {"effort": "low"}, "prompt_cache_key": "k"}),
    (RESPONSES, {"input": _HELLO, "include": ["message.output_text.logprobs"], "top_logprobs": 2}),
    (RESPONSES, {"input": _CALLS, "tools": _RESPONSE_TOOLS, "tool_choice": "auto", "safety_identifier": "me"}),
    (RESPONSES, {"input": _CALLS, "tools": _RESPONSE_TOOLS, "max_output_tokens": 80}),
    (RESPONSES, {"input": _CALLS, "tools": _RESPONSE_TOOLS, "tool_choice": {"type": "function", "name": "get_time"}}),
    (
        RESPONSES,
        {
            "input": _HELLO,
            "max_output_tokens": 9,
            "text": {"format": {"type": "json_schema", "name": "x", "schema": {}}},
        },
    ),
]
ANTHROPIC: list[Body] = [
    {"messages": _HELLO},
    {"messages": _HELLO, "max_tokens": 3, "stop_sequences": ["zzz"]},
    {
        "messages": _HELLO,
        "stop_sequences": ["llo"],
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "max_tokens": 2000,
    },
    {"messages": _CALLS, "tools": _MESSAGE_TOOLS},
    {"messages": _CALLS, "tools": _MESSAGE_TOOLS, "max_tokens": 80},
]
OLLAMA: list[tuple[str, str, Body]] = [
    ("/api/chat", "ChatResponse", {"messages": _HELLO, "think": True}),
    ("/api/chat", "ChatResponse", {"messages": _CALLS, "tools": TOOLS}),
    ("/api/chat", "ChatResponse", {"messages": _HELLO, "logprobs": True, "top_logprobs": 2}),
    ("/api/chat", "ChatResponse", {"messages": []}),
    ("/api/generate", "GenerateResponse", {"prompt": "hello", "options": {"num_predict": 5}}),
    ("/api/generate", "GenerateResponse", {"prompt": ""}),
]
WITHOUT_STREAM: list[tuple[str, str, Body]] = [
    ("/v1/embeddings", "CreateEmbeddingResponse", {"input": ["a", "b"]}),
    ("/v1/embeddings", "CreateEmbeddingResponse", {"input": "a", "encoding_format": "base64"}),
    ("/v1/embeddings", "CreateEmbeddingResponse", {"messages": _HELLO}),
    ("/api/embed", "EmbedResponse", {"input": ["a", "b"]}),
    ("/api/embed", "EmbedResponse", {"input": []}),
    ("/api/embeddings", "EmbeddingsResponse", {"prompt": "a"}),
    ("/api/show", "ShowResponse", {"model": "tiny"}),
    ("/v1/messages/count_tokens", "MessageTokensCount", {"messages": _HELLO}),
]
READ = {
    "/v1/models": "ListModelsResponse",
    "/v1/models/tiny": "Model",
    "/api/tags": "ListResponse",
    "/api/ps": "ProcessResponse",
}
UNPUBLISHED = {
    "/v1/responses/input_tokens", "/v1/score", "/score", "/v1/rerank", "/rerank", "/v2/rerank", "/classify",
    "/tokenize", "/detokenize", "/tokenizer_info", "/health", "/health/decode", "/ready", "/ping", "/version", "/load",
    "/metrics", "/", "/ui", "/docs", "/redoc", "/docs/{name}", "/api/version",
}  # fmt: skip
"""Routes whose answers no vendor here describes; their errors are checked all the same."""
ERRORS_ALONE = {
    "/v1/responses/{response_id}", "/v1/responses/{response_id}/input_items", "/v1/responses/{response_id}/cancel",
    "/v1/files", "/v1/files/{file_id}", "/v1/files/{file_id}/content",
    "/v1/batches", "/v1/batches/{batch_id}", "/v1/batches/{batch_id}/cancel",
    "/api/pull", "/api/push", "/api/create", "/api/copy", "/api/delete", "/api/blobs/{digest}",
}  # fmt: skip


@pytest.fixture(scope="module")
def live(make_server: StartServer) -> Iterator[LiveServer]:
    live = make_server(
        "--quote-token", "0",
        chat_template=THINKING, max_model_len=4096, enable_prompt_tokens_details=True,
    )  # fmt: skip
    yield live
    live.stop()


def post(live: LiveServer, path: str, body: Body) -> str:
    answer = live.http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.text


def data_of(text: str) -> list[str]:
    """The data of server-sent events."""
    lines = [line for frame in text.removesuffix("\n\n").split("\n\n") for line in frame.split("\n")]
    return [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]


def check_openai_stream(path: str, text: str) -> None:
    if path == RESPONSES:
        for line in data_of(text):
            check_openai_event(json.loads(line))
        return
    *events, done = data_of(text)
    assert done == "[DONE]"
    name = "CreateChatCompletionStreamResponse" if path == CHAT else "CreateCompletionResponse"
    for line in events:
        event = json.loads(line)
        check_openai("ErrorResponse" if "error" in event else name, event)


@pytest.mark.parametrize(("path", "body"), OPENAI)
def test_an_openai_answer_is_of_the_published_type(live: LiveServer, path: str, body: Body) -> None:
    names = {
        CHAT: "CreateChatCompletionResponse", COMPLETIONS: "CreateCompletionResponse", RESPONSES: "Response"
    }  # fmt: skip
    check_openai(names[path], json.loads(post(live, path, body)))


@pytest.mark.parametrize("options", [None, {"include_usage": True}, _USAGE])
@pytest.mark.parametrize(("path", "body"), OPENAI)
def test_openai_events_are_of_the_published_types(
    live: LiveServer, path: str, body: Body, options: Body | None
) -> None:
    more = {} if path == RESPONSES else {"stream_options": options}
    check_openai_stream(path, post(live, path, {**body, **more, "stream": True}))


@pytest.mark.parametrize("body", ANTHROPIC)
def test_an_anthropic_message_is_of_the_published_type(live: LiveServer, body: Body) -> None:
    check_anthropic("Message", post(live, MESSAGES, {"model": "tiny", "max_tokens": 200, **body}))


@pytest.mark.parametrize("body", ANTHROPIC)
def test_anthropic_events_are_of_the_published_types(live: LiveServer, body: Body) -> None:
    text = post(live, MESSAGES, {"model": "tiny", "max_tokens": 200, "stream": True, **body})
    for line in data_of(text):
        if json.loads(line) != {"type": "ping"}:  # In the vendor's documentation, not among its types.
            check_anthropic("event", line)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "name", "body"), OLLAMA)
def test_an_ollama_answer_is_of_the_clients_type(
    live: LiveServer, path: str, name: str, body: Body, stream: bool
) -> None:
    for line in post(live, path, {"model": "tiny", "stream": stream, **body}).splitlines():
        check_ollama(name, line)


@pytest.mark.parametrize(("path", "name", "body"), WITHOUT_STREAM)
def test_an_answer_that_is_never_streamed_is_of_the_published_type(
    live: LiveServer, path: str, name: str, body: Body
) -> None:
    text = post(live, path, {"model": "tiny", **body})
    match Dialect.of(path):
        case Dialect.OLLAMA:
            check_ollama(name, text)
        case Dialect.ANTHROPIC:
            check_anthropic(name, text)
        case Dialect.OPENAI:
            check_openai(name, json.loads(text))


@pytest.mark.parametrize("path", READ)
def test_what_is_read_is_of_the_published_type(live: LiveServer, path: str) -> None:
    text = live.http.get(path).text
    if path.startswith("/api/"):
        check_ollama(READ[path], text)
        return
    check_openai(READ[path], json.loads(text))
    for model in json.loads(text).get("data", [json.loads(text)]):
        check_anthropic("ModelInfo", json.dumps({**model, "type": "model"}))


def test_every_route_is_walked() -> None:
    walked = {path for path, _ in OPENAI} | {MESSAGES} | {path for path, *_ in OLLAMA} | {p for p, *_ in WITHOUT_STREAM}
    walked |= (READ.keys() - {"/v1/models/tiny"}) | {"/v1/models/{name:path}"} | UNPUBLISHED | ERRORS_ALONE
    assert walked == {path for _, path, _ in ROUTES}


def check_error(path: str, text: str) -> None:
    match Dialect.of(path):
        case Dialect.OLLAMA:
            error = json.loads(text)
            assert error.keys() == {"error"}
            assert isinstance(error["error"], str)
        case Dialect.ANTHROPIC:
            check_anthropic("ErrorResponse", text)
        case Dialect.OPENAI:
            check_openai("ErrorResponse", json.loads(text))


POSTED = sorted({path for method, path, _ in ROUTES if method == "POST" and path != "/ping" and "{" not in path})
_BAD: dict[str, Body] = {
    "another type": {"model": 1, "messages": 1, "prompt": {}, "input": {}, "tokens": "x", "documents": 1},
    "another model": {
        "model": "gone",
        "messages": _HELLO,
        "prompt": "x",
        "input": "x",
        "tokens": [5],
        "max_tokens": 1,
        "query": "q",
        "queries": "q",
        "documents": ["d"],
    },
    "an empty prompt": {"model": "tiny", "messages": [], "prompt": [], "input": [], "max_tokens": 1},
    "too long": {
        "model": "tiny",
        "messages": saying("x" * 9000),
        "prompt": "x" * 9000,
        "input": "x" * 9000,
        "max_tokens": 1,
        "truncate": False,
    },
}
BAD = {"not JSON": b"{", "a list": b"[]"} | {name: json.dumps(body).encode() for name, body in _BAD.items()}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("path", POSTED)
def test_a_refusal_is_of_the_published_type(live: LiveServer, path: str, bad: str) -> None:
    answer = live.http.post(path, content=BAD[bad], headers={"content-type": "application/json"})
    if answer.status_code != 200:
        check_error(path, answer.text)


STATUSES = [400, 401, 403, 404, 405, 408, 409, 413, 415, 422, 426, 429, 431, 499, 500, 501, 503, 504]


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("path", [CHAT, MESSAGES, "/api/chat"])
def test_an_error_of_every_status_is_of_the_published_type(path: str, status: int) -> None:
    body = ErrorAnswer(status, "it failed", "type").body(Dialect.of(path)).decode()
    if path == MESSAGES and status == 413:
        assert json.loads(body)["error"]["type"] == "request_too_large"  # In the documentation, not among the types.
        body = body.replace("request_too_large", "api_error")
    check_error(path, body)


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
def test_another_method_is_refused_in_the_published_type(live: LiveServer, method: str) -> None:
    for _, path, _ in ROUTES:
        answer = live.http.request(method, path.replace("{name:path}", "x").replace("{response_id:path}", "x"))
        assert answer.status_code >= 400
        check_error(path, answer.text)


@pytest.mark.parametrize("path", ["/v1/nothing", "/v1/models/gone", "/v1/responses/resp_1", "/api/nothing"])
def test_what_is_not_there_is_told_in_the_published_type(live: LiveServer, path: str) -> None:
    answer = live.http.get(path)
    assert answer.status_code == 404
    check_error(path, answer.text)


FAILING = saying("Hello ~!")
"""The engine fails at the `~`."""
GENERATING: dict[str, Body] = {
    CHAT: {"messages": FAILING},
    COMPLETIONS: {"prompt": "Hello ~!"},
    RESPONSES: {"input": FAILING},
    MESSAGES: {"messages": FAILING, "max_tokens": 50},
    "/api/chat": {"messages": FAILING},
    "/api/generate": {"prompt": "<|endoftext|>Hello ~!<|endoftext|>"},
}


@pytest.fixture(scope="module")
def failing(make_server: StartServer) -> Iterator[LiveServer]:
    live = make_server("--quote-token", "0", "--error-token", "96", chat_template=THINKING, max_model_len=4096)
    yield live
    live.stop()


@pytest.mark.parametrize("path", GENERATING)
def test_a_failure_of_the_engine_is_told_in_the_published_type(failing: LiveServer, path: str) -> None:
    body = {"model": "tiny", **GENERATING[path]}
    answer = failing.http.post(path, json={"stream": False, **body})
    assert answer.status_code == 500, answer.text
    check_error(path, answer.text)
    streamed = failing.http.post(path, json={"stream": True, **body}).text
    assert "the page was torn" in streamed
    if Dialect.of(path) is Dialect.OLLAMA:
        check_error(path, streamed.splitlines()[-1])
    elif path == MESSAGES:
        check_error(path, data_of(streamed)[-1])
    else:
        check_openai_stream(path, streamed)


def test_keys_and_limits_are_refused_in_the_published_type(start_server: StartServer) -> None:
    live = start_server(api_keys=("one",), limits=Limits(Limit(requests_per_minute=1)))
    live.server.context.accounts._clock = lambda: 0.0
    for path in (*GENERATING, "/v1/embeddings", "/api/embed", "/v1/models", "/tokenize"):
        for key, status in (("none", 401), ("one", 0), ("one", 429)):
            method = "GET" if path == "/v1/models" else "POST"
            answer = live.http.request(method, path, json={}, headers={"authorization": f"Bearer {key}"})
            if status == 401:
                assert answer.status_code == 401
            if answer.status_code >= 400:
                check_error(path, answer.text)
    assert answer.status_code == 429


@pytest.mark.parametrize("path", [*GENERATING, "/v1/embeddings", "/ready"])
def test_a_server_that_loads_says_so_in_the_published_type(start_server: StartServer, path: str) -> None:
    live = start_server("--load-held-by", ".", wait=False)
    live.wait_for(lambda: live.status("/health") == 200)
    body = {"model": "tiny", **GENERATING.get(path, {"input": "x"})}
    answer = live.http.get(path) if path == "/ready" else live.http.post(path, json=body)
    assert answer.status_code == 503, answer.text
    check_error(path, answer.text)
