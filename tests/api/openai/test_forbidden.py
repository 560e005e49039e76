"""allowed_token_ids, bad_words and repetition_detection: how they are checked and what becomes of them."""

from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer

from jserve.api.generation.choice import Choice
from jserve.api.openai.forbidden import allowed_tokens, bad_word_tokens
from jserve.errors import RequestError
from jserve.protocol import RepetitionDetection, SamplingParams, TokenDelta
from jserve.text.load import load_tokenizer
from tests.api.live_server import LiveServer

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"allowed_token_ids": []}, "allowed_token_ids", "must not be empty"),
    ({"allowed_token_ids": [1, 400]}, "allowed_token_ids", "token id 400, which is out of vocabulary (0 to 299)"),
    ({"allowed_token_ids": [-1]}, "allowed_token_ids", "token id -1"),
    ({"bad_words": ["fine", ""]}, "bad_words", "''"),
    ({"bad_words": ["x"] * 129}, "bad_words", "at most 128"),
    ({"bad_words": ["x" * 257]}, "bad_words", "at most 256"),
    ({"bad_words": "x"}, "bad_words", "list"),
    ({"repetition_detection": {"max_pattern_size": -1}}, "repetition_detection", "greater than or equal to 0"),
    (
        {"repetition_detection": {"max_pattern_size": 3, "min_pattern_size": 4, "min_count": 2}},
        "repetition_detection",
        "min_pattern_size is 4 but must be at most max_pattern_size=3",
    ),
    (
        {"repetition_detection": {"max_pattern_size": 3}},
        "repetition_detection",
        "min_count is 0 but must be at least 2",
    ),
]


def post(server: LiveServer, path: str, body: dict[str, Any]) -> httpx.Response:
    return server.http.post(path, json=body)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(("fields", "param", "text"), REFUSED)
def test_wrong_values_are_refused_by_name(
    server: LiveServer, path: str, fields: dict[str, Any], param: str, text: str
) -> None:
    prompt = {"messages": [{"role": "user", "content": "hi"}]} if path == CHAT else {"prompt": "hi"}
    answer = post(server, path, prompt | fields)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert param in (error["param"] or "") + error["message"]
    assert text in error["message"]


def test_bad_words_that_leave_no_allowed_token_are_refused(server: LiveServer, tokenizer: Tokenizer) -> None:
    (letter,) = tokenizer.encode("q").ids
    answer = post(server, COMPLETIONS, {"prompt": "a", "bad_words": ["q"], "allowed_token_ids": [letter]})
    assert answer.status_code == 400
    assert "forbids every token" in answer.json()["error"]["message"]


def test_values_that_change_nothing_are_taken(server: LiveServer) -> None:
    body = server.complete("ab", max_tokens=20, bad_words=[], repetition_detection={"max_pattern_size": 0})
    assert body["choices"][0]["finish_reason"] == "length"


def test_bad_words_are_forbidden_at_the_beginning_and_after_a_space(model_dir: object) -> None:
    tokenizer = load_tokenizer(str(model_dir))
    encode = lambda text: tuple(tokenizer.encode(text, add_special_tokens=False))  # noqa: E731
    assert bad_word_tokens([" cat", "cat", "\n"], tokenizer, 300) == (encode("cat"), encode(" cat"), encode("\n"))
    assert bad_word_tokens(None, tokenizer, 300) == ()
    with pytest.raises(RequestError, match="no tokens"):
        bad_word_tokens([""], tokenizer, 300)


def test_allowed_tokens_are_kept_once() -> None:
    assert allowed_tokens([5, 3, 5], 6) == (5, 3)
    assert allowed_tokens(None, 6) == ()


LIMITS = {"max_pattern_size": 6, "min_pattern_size": 2, "min_count": 3}


@pytest.mark.parametrize("stop", [None, "zzz", "cab"])
@pytest.mark.parametrize("stream", [False, True])
def test_output_that_goes_round_in_circles_ends(server: LiveServer, stream: bool, stop: str | None) -> None:
    """The fake engine repeats the prompt: three times three letters are nine tokens. A stop string comes first."""
    fields = {"prompt": "abc", "max_tokens": 60, "repetition_detection": LIMITS, "stop": stop, "stream": stream}
    if stream:
        chunks = [chunk for chunk in server.events(COMPLETIONS, **fields) if chunk["choices"]]
        text = "".join(chunk["choices"][0]["text"] for chunk in chunks)
        choice = chunks[-1]["choices"][0]
    else:
        (choice,) = post(server, COMPLETIONS, fields).json()["choices"]
        text = choice["text"]
    if stop == "cab":
        assert (text, choice["finish_reason"]) == ("ab", "stop")
    else:
        assert (text, choice["finish_reason"]) == ("abc" * 3, "repetition")
        assert choice["stop_reason"] == "repetition_detected"


def test_repetition_counts_only_after_min_tokens_and_within_the_sizes(server: LiveServer) -> None:
    body = server.complete("abc", max_tokens=60, min_tokens=20, repetition_detection=LIMITS)
    assert body["choices"][0]["finish_reason"] == "repetition"
    assert body["usage"]["completion_tokens"] == 21
    body = server.complete("abcdefgh", max_tokens=60, repetition_detection=LIMITS)
    assert body["choices"][0]["finish_reason"] == "length"


def test_end_of_the_engine_wins_over_a_repetition_with_the_same_token(model_dir: object) -> None:
    tokenizer = load_tokenizer(str(model_dir))
    ids = tokenizer.encode("abab", add_special_tokens=False)
    choice = Choice(0, SamplingParams(repetition_detection=RepetitionDetection(2, 2, 2)), tokenizer)
    update = choice.accept(TokenDelta("r", ids, finish_reason="length"))
    assert (update.text, update.finish_reason) == ("abab", "length")
