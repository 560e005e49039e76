"""The error table of the contract and its rules of length, row by row: status, type, parameter, code and text."""

import json
from typing import Any

import pytest

from jserve.api.errors import answer_for
from jserve.errors import EngineFailedError, EngineUnavailableError, OverloadedError, RequestError
from tests.api.live_server import MAX_MODEL_LEN, LiveServer

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
MESSAGES = [{"role": "user", "content": "hi"}]
CONTEXT = f"This model's maximum context length is {MAX_MODEL_LEN} tokens. However, "
SHORTEN = "Please reduce the length of the input prompt."

ROWS: list[tuple[str, Any, int, str, str | None, str]] = [
    (
        CHAT,
        b"{",
        400,
        "Bad Request",
        "body",
        "1 validation error:\n  {'type': 'json_invalid', 'loc': 'body', 'msg': 'Invalid JSON: EOF while parsing an "
        "object at line 1 column 1', 'input': \"b'{'\"}",
    ),
    (
        CHAT,
        {},
        400,
        "Bad Request",
        "body.messages",
        "1 validation error:\n  {'type': 'missing', 'loc': 'body.messages', 'msg': 'Field required', "
        "'input': '<dict of 0 items>'}",
    ),
    (
        COMPLETIONS,
        {"prompt": "x", "temperature": "hot"},
        400,
        "Bad Request",
        "body.temperature",
        "1 validation error:\n  {'type': 'float_parsing', 'loc': 'body.temperature', 'msg': 'Input should be a "
        "valid number, unable to parse string as a number', 'input': 'hot'}",
    ),
    (
        COMPLETIONS,
        {"prompt": "x", "temperature": 3},
        400,
        "BadRequestError",
        "temperature",
        "temperature must be in [0, 2], got 3.0. (parameter=temperature, value=3.0)",
    ),
    (
        CHAT,
        {"messages": MESSAGES, "model": "gpt-9"},
        404,
        "NotFoundError",
        "model",
        "The model `gpt-9` does not exist. Valid aliases: tiny, other.",
    ),
    ("/v1/nothing", {}, 404, "Not Found", None, "Not Found"),
    ("/health", {}, 405, "Method Not Allowed", None, "Method Not Allowed"),
    (
        COMPLETIONS,
        {"prompt": "x" * (MAX_MODEL_LEN + 1)},
        400,
        "BadRequestError",
        "input_tokens",
        f"{CONTEXT}your prompt contains {MAX_MODEL_LEN + 1} input tokens, which exceeds this limit even without any "
        f"output tokens. {SHORTEN}",
    ),
    (
        COMPLETIONS,
        {"prompt": "x" * 1_000_000},
        400,
        "BadRequestError",
        "input_text",
        f"{CONTEXT}your prompt contains at least 76924 input tokens, which exceeds this limit even without any output "
        f"tokens. {SHORTEN}",
    ),
    (
        COMPLETIONS,
        {"prompt": "x" * MAX_MODEL_LEN},
        400,
        "BadRequestError",
        "input_tokens",
        f"{CONTEXT}your prompt contains {MAX_MODEL_LEN} input tokens, which plus the number of requested output tokens "
        f"(at least 1) is longer than the maximum model length. {SHORTEN}",
    ),
    (COMPLETIONS, {"prompt": ["a", ""]}, 400, "BadRequestError", "prompt", "The decoder prompt cannot be empty"),
    *(
        (
            COMPLETIONS,
            {"prompt": empty},
            400,
            "BadRequestError",
            "prompt",
            "Either prompt or prompt_embeds must be provided and non-empty.",
        )
        for empty in (None, "", [])
    ),
    (
        COMPLETIONS,
        {"prompt": "x", "truncate_prompt_tokens": 1000},
        400,
        "BadRequestError",
        "truncate_prompt_tokens",
        f"truncate_prompt_tokens value is greater than max_model_len ({MAX_MODEL_LEN}). Please request a smaller "
        "truncation size. (parameter=truncate_prompt_tokens, value=1000)",
    ),
    (COMPLETIONS, {"prompt": [5, 300]}, 400, "BadRequestError", "prompt", "Token id 300 is out of vocabulary"),
]


@pytest.mark.parametrize(("path", "body", "status", "kind", "param", "message"), ROWS)
def test_a_row(
    server: LiveServer, path: str, body: Any, status: int, kind: str, param: str | None, message: str
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = server.http.post(path, content=content, headers={"content-type": "application/json"})
    assert response.headers["content-type"] == "application/json"
    assert response.status_code == status
    code = "model_not_found" if kind == "NotFoundError" else None
    code = "context_length_exceeded" if message.startswith(CONTEXT) else code
    assert response.json() == {"error": {"message": message, "type": kind, "param": param, "code": code}}


@pytest.mark.parametrize(
    "media_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", None]
)
def test_another_media_type(server: LiveServer, media_type: str | None) -> None:
    headers = {"content-type": media_type} if media_type else {}
    response = server.http.post(CHAT, content=b"{}", headers=headers)
    message = "Unsupported Media Type: Only 'application/json' is allowed"
    assert response.status_code == 400
    assert response.json() == {"error": {"message": message, "type": "Bad Request", "param": None, "code": None}}


@pytest.mark.parametrize(
    ("error", "status", "kind", "retry_after"),
    [
        (OverloadedError("full", retry_after_s=3), 503, "Service Unavailable", "3"),
        (EngineUnavailableError("loading"), 503, "ServiceUnavailableError", "5"),
        (EngineFailedError("died"), 500, "InternalServerError", None),
        (RuntimeError("secret"), 500, "InternalServerError", None),
    ],
)
def test_failures_of_the_server(error: Exception, status: int, kind: str, retry_after: str | None) -> None:
    response = answer_for(error).response()
    assert response.status_code == status
    assert json.loads(response.body)["error"]["type"] == kind
    assert response.headers.get("retry-after") == retry_after
    assert b"secret" not in response.body


def test_a_message_tells_neither_paths_nor_addresses_nor_megabytes() -> None:
    problem = RequestError(f"cannot read /srv/models/x.gguf of <object at 0x7f00aa>, {'x' * 10**6}")
    message = answer_for(problem).message
    assert message.startswith("cannot read <path> of <object>, xxx")
    assert len(message) <= 4000


def test_a_request_that_fits_with_fewer_tokens_gets_fewer(server: LiveServer) -> None:
    done = server.complete("x" * (MAX_MODEL_LEN - 6), max_tokens=MAX_MODEL_LEN)
    assert done["usage"]["completion_tokens"] == 6
    assert done["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"truncate_prompt_tokens": -1}, MAX_MODEL_LEN - 1),
        ({"truncate_prompt_tokens": 5}, "6789z"),
        ({"truncate_prompt_tokens": 5, "truncation_side": "left"}, "6789z"),
        ({"truncate_prompt_tokens": 5, "truncation_side": "right"}, "01234"),
    ],
)
def test_a_prompt_is_cut_where_asked(server: LiveServer, fields: dict[str, Any], kept: int | str) -> None:
    prompt = "0123456789" * 30 + "z"
    done = server.complete(prompt, max_tokens=5, temperature=0, **fields)
    if isinstance(kept, int):
        assert done["usage"]["prompt_tokens"] == kept
        assert done["usage"]["completion_tokens"] == 1, "a token is reserved"
    else:
        assert done["choices"][0]["text"] == kept
