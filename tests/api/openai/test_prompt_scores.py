"""Logprobs of prompts and of chosen tokens, in both endpoints; the fake engine's are made up in a known way."""

from typing import Any

import pytest
from tokenizers import Tokenizer

from tests.api.live_server import END, MAX_MODEL_LEN, LiveServer


def own(token: int) -> float:
    """The logprob that the fake engine gives a prompt's token."""
    return -float(token % 100) - 3


def test_prompt_logprobs_hold_the_prompts_tokens_and_the_best(server: LiveServer, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("abc").ids
    [choice] = server.complete("abc", max_tokens=1, prompt_logprobs=2)["choices"]
    first, *rest = choice["prompt_logprobs"]
    assert first is None
    for token, entries in zip(ids[1:], rest, strict=True):
        assert list(entries) == [str(token), str(token + 1), str(token + 2)]
        text = tokenizer.decode([token])
        assert entries[str(token)] == {"logprob": own(token), "rank": 3, "decoded_token": text}
        assert entries[str(token + 1)]["logprob"] == -1.0
        assert [entries[str(token + rank)]["rank"] for rank in (1, 2)] == [1, 2]
    assert choice["logprobs"] is None


def test_prompt_logprobs_of_zero_hold_the_prompts_tokens_alone(server: LiveServer) -> None:
    body = server.chat("hi", max_tokens=1, prompt_logprobs=0, return_token_ids=True)
    ids = body["prompt_token_ids"]
    assert [list(entry) for entry in body["prompt_logprobs"][1:]] == [[str(token)] for token in ids[1:]]
    assert body["prompt_logprobs"][0] is None
    assert server.chat("hi", max_tokens=1)["prompt_logprobs"] is None


def test_every_prompt_of_a_list_has_its_own(server: LiveServer, tokenizer: Tokenizer) -> None:
    prompts = ["abc", "x", "zy"]
    choices = server.complete(prompts, max_tokens=1, prompt_logprobs=0)["choices"]
    for prompt, choice in zip(prompts, choices, strict=True):
        ids = tokenizer.encode(prompt).ids
        assert choice["prompt_logprobs"] == [
            None,
            *({str(t): {"logprob": own(t), "rank": 3, "decoded_token": tokenizer.decode([t])}} for t in ids[1:]),
        ]


def stream(server: LiveServer, prompt: Any, **fields: Any) -> dict[str, Any]:
    """A streamed completion put together as if it had not been streamed."""
    parts: dict[str, list[Any]] = {"text_offset": [], "token_logprobs": [], "tokens": [], "top_logprobs": []}
    text, reasons = "", []
    with server.openai.completions.create(model="tiny", prompt=prompt, stream=True, **fields) as chunks:
        for chunk in chunks:
            for choice in chunk.choices:
                text += choice.text
                reasons += [choice.finish_reason] if choice.finish_reason else []
                for name, part in parts.items():
                    part += getattr(choice.logprobs, name) if choice.logprobs else []
    return {"text": text, "logprobs": parts, "finish_reasons": reasons}


@pytest.mark.parametrize("as_ids", [False, True])
def test_echo_with_logprobs_covers_prompt_and_answer(server: LiveServer, tokenizer: Tokenizer, as_ids: bool) -> None:
    ids = tokenizer.encode("abcd").ids
    prompt = ids if as_ids else "abcd"
    fields = {"echo": True, "logprobs": 1, "max_tokens": 2}
    [choice] = server.complete(prompt, **fields)["choices"]
    logprobs = choice["logprobs"]
    assert choice["text"] == "abcdab"
    assert logprobs["tokens"] == ["a", "b", "c", "d", "a", "b"]
    assert logprobs["text_offset"] == [0, 1, 2, 3, 4, 5]
    assert logprobs["token_logprobs"] == [None, *(own(token) for token in ids[1:]), -3.0, -3.0]
    assert logprobs["top_logprobs"][0] is None
    assert logprobs["top_logprobs"][1] == {tokenizer.decode([ids[1] + 1]): -1.0, "b": own(ids[1])}
    assert choice["prompt_logprobs"] is None
    streamed = stream(server, prompt, **fields)
    assert streamed == {"text": "abcdab", "logprobs": logprobs, "finish_reasons": ["length"]}


@pytest.mark.parametrize("prompt", ["abc", "a"])
def test_echo_without_an_answer_scores_the_prompt(server: LiveServer, tokenizer: Tokenizer, prompt: str) -> None:
    ids = tokenizer.encode(prompt).ids
    body = server.complete(prompt, echo=True, logprobs=0, max_tokens=0)
    [choice] = body["choices"]
    assert (choice["text"], choice["finish_reason"]) == (prompt, "length")
    assert choice["logprobs"]["token_logprobs"] == [None, *(own(token) for token in ids[1:])]
    assert (
        body["usage"].items() >= {"prompt_tokens": len(ids), "total_tokens": len(ids), "completion_tokens": 0}.items()
    )
    streamed = stream(server, prompt, echo=True, logprobs=0, max_tokens=0)
    assert streamed == {"text": prompt, "logprobs": choice["logprobs"], "finish_reasons": ["length"]}


def test_prompt_without_an_answer_may_fill_the_context(server: LiveServer) -> None:
    [choice] = server.complete("x" * MAX_MODEL_LEN, echo=True, max_tokens=0, logprobs=0)["choices"]
    assert len(choice["logprobs"]["tokens"]) == MAX_MODEL_LEN
    whole = server.complete("x" * 400, echo=True, max_tokens=0, truncate_prompt_tokens=-1)
    assert whole["usage"]["prompt_tokens"] == MAX_MODEL_LEN
    over = {"prompt": "x" * (MAX_MODEL_LEN + 1), "echo": True, "max_tokens": 0}
    assert server.http.post("/v1/completions", json=over).status_code == 400


def test_offsets_count_characters_of_the_text_that_is_echoed(server: LiveServer, tokenizer: Tokenizer) -> None:
    """A token inside a character stands where that begins; a special token that is not shown takes no room."""
    logprobs = server.complete("é🎉ab", echo=True, logprobs=0, max_tokens=1)["choices"][0]["logprobs"]
    assert logprobs["text_offset"] == [0, 0, 1, 1, 1, 1, 2, 3, 4]
    ids = [END, *tokenizer.encode("ab").ids]
    [choice] = server.complete(ids, echo=True, logprobs=0, max_tokens=0)["choices"]
    assert (choice["text"], choice["logprobs"]["text_offset"]) == ("ab", [0, 0, 1])
    [choice] = server.complete(ids, echo=True, logprobs=0, max_tokens=0, skip_special_tokens=False)["choices"]
    assert choice["logprobs"]["text_offset"] == [0, len("<|endoftext|>"), len("<|endoftext|>") + 1]


def test_prompt_logprobs_and_echo_keep_their_own_counts(server: LiveServer) -> None:
    [choice] = server.complete("abc", echo=True, logprobs=1, prompt_logprobs=3, max_tokens=1)["choices"]
    assert [len(entry) for entry in choice["prompt_logprobs"][1:]] == [4, 4]
    assert [len(entry) for entry in choice["logprobs"]["top_logprobs"][1:]] == [2, 2, 2]


def test_chosen_tokens_replace_the_best(server: LiveServer, tokenizer: Tokenizer) -> None:
    chosen = [tokenizer.encode(letter).ids[0] for letter in "zxy"]
    body = server.chat("hi", max_tokens=2, logprobs=True, top_logprobs=5, logprob_token_ids=chosen)
    for entry in body["choices"][0]["logprobs"]["content"]:
        assert [top["token"] for top in entry["top_logprobs"]] == ["z", "x", "y"]
        assert [top["logprob"] for top in entry["top_logprobs"]] == pytest.approx([-token / 10 for token in chosen])
        assert entry["logprob"] == -3.0
    [choice] = server.complete("ab", max_tokens=1, logprobs=5, logprob_token_ids=chosen)["choices"]
    assert choice["logprobs"]["top_logprobs"][0].keys() == {"z", "x", "y", "a"}


def test_chosen_tokens_are_not_reported_for_an_echo(server: LiveServer) -> None:
    body = {"prompt": "a", "echo": True, "logprobs": 1, "logprob_token_ids": [5]}
    response = server.http.post("/v1/completions", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "logprob_token_ids"


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_whole_vocabulary_is_refused_by_name(server: LiveServer, path: str) -> None:
    fields: dict[str, Any] = {"prompt": "a", "logprobs": -1}
    if "chat" in path:
        fields = {"messages": [{"role": "user", "content": "a"}], "logprobs": True, "top_logprobs": -1}
    response = server.http.post(path, json=fields)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == ("top_logprobs" if "chat" in path else "logprobs")
