"""Every row of the error contract: status, type, parameter and text."""

from typing import Any

import pytest

from tests.api.live_server import LiveServer

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
MESSAGES = [{"role": "user", "content": "hi"}]


def _error(server: LiveServer, path: str, body: dict[str, Any], status: int = 400) -> dict[str, Any]:
    response = server.http.post(path, json=body)
    assert response.status_code == status, response.text
    assert response.json().keys() == {"error"}
    error: dict[str, Any] = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["code"] is None or isinstance(error["code"], str)
    return error


def test_missing_field_is_named(server: LiveServer) -> None:
    error = _error(server, CHAT, {"model": "tiny"})
    assert error["type"] == "Bad Request"
    assert error["param"] == "body.messages"
    assert error["message"].startswith("1 validation error:\n  {")


def test_validation_shows_at_most_ten_problems_and_short_inputs(server: LiveServer) -> None:
    error = _error(server, CHAT, {"messages": ["x" * 1000] * 20})
    assert error["message"].startswith("20 validation errors:")
    assert error["message"].count("\n  {") == 10
    assert "x" * 201 not in error["message"]


def test_malformed_json(server: LiveServer) -> None:
    response = server.http.post(CHAT, content=b"{", headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "Bad Request"


def test_other_media_type(server: LiveServer) -> None:
    response = server.http.post(CHAT, content=b"{}", headers={"content-type": "text/plain"})
    assert response.status_code == 400
    message = "Unsupported Media Type: Only 'application/json' is allowed"
    assert response.json()["error"]["message"] == message


def test_unknown_model(server: LiveServer) -> None:
    for path, body in ((CHAT, {"messages": MESSAGES}), (COMPLETIONS, {"prompt": "x"})):
        error = _error(server, path, {**body, "model": "gpt-9"}, status=404)
        assert error["message"] == "The model `gpt-9` does not exist. Valid aliases: tiny, other."
        assert (error["type"], error["param"]) == ("NotFoundError", "model")


def test_unknown_path_and_method(server: LiveServer) -> None:
    absent = server.http.get("/v1/nothing")
    assert absent.status_code == 404
    assert absent.json()["error"]["type"] == "Not Found"
    wrong = server.http.get(CHAT)
    assert wrong.status_code == 405
    assert wrong.json()["error"]["type"] == "Method Not Allowed"


def test_prompt_longer_than_the_context(server: LiveServer) -> None:
    error = _error(server, COMPLETIONS, {"prompt": "x" * 300})
    assert error["param"] == "input_tokens"
    assert error["message"] == (
        "This model's maximum context length is 256 tokens. However, your prompt contains 300 input tokens, "
        "which exceeds this limit even without any output tokens. "
        "Please reduce the length of the input prompt."
    )


def test_prompt_that_fills_the_context(server: LiveServer) -> None:
    error = _error(server, COMPLETIONS, {"prompt": "x" * 256})
    assert "plus the number of requested output tokens (at least 1) is longer than" in error["message"]


def test_text_that_cannot_fit_is_refused_before_tokenizing(server: LiveServer) -> None:
    error = _error(server, COMPLETIONS, {"prompt": "x" * 1_000_000})
    assert error["param"] == "input_text"
    assert "contains at least " in error["message"]


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (COMPLETIONS, {"prompt": "x"}, "max_tokens"),
        (CHAT, {"messages": MESSAGES}, "max_tokens"),
        (CHAT, {"messages": MESSAGES}, "max_completion_tokens"),
        ("/v1/responses", {"input": "x"}, "max_output_tokens"),
        ("/v1/messages", {"messages": MESSAGES}, "max_tokens"),
        ("/api/generate", {"prompt": "x", "stream": False}, "options.num_predict"),
    ],
)
def test_more_tokens_than_the_context_holds_are_cut_to_what_is_left(
    server: LiveServer, path: str, body: dict[str, Any], field: str
) -> None:
    outer, _, inner = field.partition(".")
    wanted = {outer: {inner: 2**40} if inner else 2**40, **({"logit_bias": {"5": 100}} if path == CHAT else {})}
    response = server.http.post(path, json={**body, **wanted})
    assert response.status_code == 200, response.text


@pytest.mark.parametrize("prompt", [None, "", []])
def test_empty_prompt(server: LiveServer, prompt: Any) -> None:
    message = "Either prompt or prompt_embeds must be provided and non-empty."
    assert _error(server, COMPLETIONS, {"prompt": prompt})["message"] == message


def test_empty_prompt_within_a_list(server: LiveServer) -> None:
    message = _error(server, COMPLETIONS, {"prompt": ["a", ""]})["message"]
    assert message == "The decoder prompt cannot be empty"


@pytest.mark.parametrize("token", [300, -1])
def test_token_id_out_of_vocabulary(server: LiveServer, token: int) -> None:
    error = _error(server, COMPLETIONS, {"prompt": [5, token]})
    assert error["message"] == f"Token id {token} is out of vocabulary"


@pytest.mark.parametrize(
    ("fields", "param", "text"),
    [
        ({"temperature": -1}, "temperature", "temperature must be in [0, 2], got -1.0."),
        ({"temperature": 2.5}, "temperature", "[0, 2]"),
        ({"top_p": -0.1}, "top_p", "top_p must be in [0, 1], got -0.1."),
        ({"top_p": 1.1}, "top_p", "[0, 1]"),
        ({"top_k": -2}, "top_k", "top_k must be 0 (disable), or at least 1, got -2."),
        ({"min_p": 1.5}, "min_p", "[0, 1]"),
        ({"frequency_penalty": 3}, "frequency_penalty", "[-2, 2]"),
        ({"presence_penalty": -3}, "presence_penalty", "[-2, 2]"),
        ({"repetition_penalty": 0}, "repetition_penalty", "must be greater than zero, got 0.0."),
        ({"max_tokens": 0}, "max_tokens", "max_tokens must be at least 1, got 0."),
        ({"min_tokens": 9, "max_tokens": 3}, "min_tokens", "less than or equal to max_tokens=3, got 9."),
        ({"min_tokens": -1}, "min_tokens", "greater than or equal to 0"),
        ({"n": 0}, "n", "n must be at least 1, got 0."),
        ({"stop": ""}, "stop", "stop cannot contain an empty string."),
        ({"stop_token_ids": [5000]}, "stop_token_ids", "5000"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "'x'"),
        ({"logit_bias": {"5000": 1}}, "logit_bias", "out of vocabulary"),
        ({"stream_options": {}}, "stream_options", "`stream=True`"),
        ({"truncate_prompt_tokens": 1000}, "truncate_prompt_tokens", "smaller truncation size"),
        ({"cache_salt": "a/b"}, "cache_salt", "cache_salt"),
        ({"request_id": "a b"}, "request_id", "printable"),
        ({"prompt_logprobs": 21}, "prompt_logprobs", "Requested prompt logprobs of 21, which is greater than max"),
        ({"prompt_logprobs": -2}, "prompt_logprobs", "non-negative"),
        ({"prompt_logprobs": -1}, "prompt_logprobs", "the whole vocabulary, is not supported"),
        ({"prompt_logprobs": 0, "stream": True}, "prompt_logprobs", "not available when `stream=True`"),
        ({"logprob_token_ids": [5]}, "logprob_token_ids", "`logprobs` must be set"),
        ({"logprob_token_ids": [5000], "logprobs": 1}, "logprob_token_ids", "5000"),
        ({"logprob_token_ids": [5] * 129, "logprobs": 1}, "logprob_token_ids", "at most 128"),
    ],
)
def test_field_out_of_range(server: LiveServer, fields: dict[str, Any], param: str, text: str) -> None:
    for path, body in ((CHAT, {"messages": MESSAGES}), (COMPLETIONS, {"prompt": "x"})):
        error = _error(server, path, body | fields)
        assert error["type"] == "BadRequestError"
        assert error["param"] == param
        assert text in error["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stop": ["a", "b", "c", "d", "e"]}, "body.stop"),
        ({"stop": ["a", 5]}, "body.stop"),
        ({"prompt": 5}, "body.prompt"),
        ({"logit_bias": {"5": "x"}}, "body.logit_bias.5"),
        ({"seed": 2**63}, "body.seed"),
        ({"n": "many"}, "body.n"),
        ({"truncation_side": "middle"}, "body.truncation_side"),
    ],
)
def test_field_of_the_wrong_form(server: LiveServer, fields: dict[str, Any], param: str) -> None:
    error = _error(server, COMPLETIONS, {"prompt": "x"} | fields)
    assert error["type"] == "Bad Request"
    assert error["param"] == param


def test_a_wrong_body_is_not_repeated(server: LiveServer) -> None:
    tools = [{"function": {"description": "secret"}} for _ in range(30)]
    error = _error(server, CHAT, {"messages": MESSAGES, "tools": tools})
    assert error["param"] == "body.tools.0.function.name"
    assert error["message"].count("<dict of 1 items>") == 10
    assert error["message"].endswith("...and 20 more errors")
    assert "secret" not in error["message"]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"top_logprobs": 2}, "`logprobs` must be set to true"),
        ({"logprobs": True, "top_logprobs": 21}, "logprobs of 21, which is greater than max allowed: 20"),
        ({"logprobs": True, "top_logprobs": -1}, "non-negative"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "Cannot set both"),
        ({"tools": [], "tool_choice": "required"}, "`tools` must be set"),
        ({"tool_choice": "auto"}, "When using `tool_choice`, `tools` must be set."),
        ({"messages": []}, "empty"),
    ],
)
def test_chat_rules(server: LiveServer, fields: dict[str, Any], text: str) -> None:
    assert text in _error(server, CHAT, {"messages": MESSAGES} | fields)["message"]


def test_completions_refuse_what_they_lack(server: LiveServer) -> None:
    suffix = _error(server, COMPLETIONS, {"prompt": "x", "suffix": "y"})
    assert suffix["message"] == "suffix is only supported for models with FIM completion rendering"
    assert _error(server, COMPLETIONS, {"prompt": "x", "logprobs": 21})["param"] == "logprobs"


def test_image_is_refused(server: LiveServer) -> None:
    parts = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    error = _error(server, CHAT, {"messages": [{"role": "user", "content": parts}]})
    assert "image" in error["message"]


def test_a_streaming_request_that_is_wrong_gets_a_status_not_a_stream(server: LiveServer) -> None:
    error = _error(server, CHAT, {"messages": MESSAGES, "stream": True, "temperature": 9})
    assert error["param"] == "temperature"
