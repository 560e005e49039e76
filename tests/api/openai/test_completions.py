"""/v1/completions against the fake engine, which repeats the prompt."""

import pytest
from tokenizers import Tokenizer

from tests.api.live_server import STOP, LiveServer


def test_text_prompt_is_continued(server: LiveServer) -> None:
    body = server.complete("hexxo ", max_tokens=9)
    assert body["object"] == "text_completion"
    assert body["id"].startswith("cmpl-")
    assert body["model"] == "tiny"
    assert body["system_fingerprint"].startswith("jserve-")
    [choice] = body["choices"]
    assert choice["text"] == "hexxo hex"
    assert (choice["finish_reason"], choice["stop_reason"]) == ("length", None)
    assert body["usage"].keys() == {"prompt_tokens", "completion_tokens", "total_tokens"}
    assert body["usage"].items() >= {"prompt_tokens": 6, "total_tokens": 15, "completion_tokens": 9}.items()


def test_null_and_absent_max_tokens_mean_sixteen(server: LiveServer) -> None:
    assert server.complete("a", max_tokens=None)["usage"]["completion_tokens"] == 16
    assert server.complete("a")["usage"]["completion_tokens"] == 16


def test_prompt_of_ids_equals_prompt_of_text(server: LiveServer, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("hello world").ids
    by_ids = server.complete(ids, max_tokens=20)
    by_text = server.complete("hello world", max_tokens=20)
    assert by_ids["choices"] == by_text["choices"]


def test_prompts_of_a_list_are_answered_in_order(server: LiveServer, tokenizer: Tokenizer) -> None:
    texts = server.complete(["ab", "cd", "ef"], max_tokens=2)
    assert [choice["text"] for choice in texts["choices"]] == ["ab", "cd", "ef"]
    assert [choice["index"] for choice in texts["choices"]] == [0, 1, 2]
    assert texts["usage"]["prompt_tokens"] == 6
    ids = server.complete([tokenizer.encode(text).ids for text in ("ab", "cd")], max_tokens=2)
    assert [choice["text"] for choice in ids["choices"]] == ["ab", "cd"]


def test_choices_are_prompt_major_and_differ(server: LiveServer) -> None:
    body = server.complete(["abcdefg", "tuvwxyz"], n=3, max_tokens=7, temperature=1.0, seed=5)
    assert [choice["index"] for choice in body["choices"]] == list(range(6))
    texts = [choice["text"] for choice in body["choices"]]
    assert all(sorted(text) == list("abcdefg") for text in texts[:3])
    assert all(sorted(text) == list("tuvwxyz") for text in texts[3:])
    assert len(set(texts[:3])) > 1
    assert texts[0] == "fgabcde", "the first choice uses the given seed itself"
    assert body["usage"]["prompt_tokens"] == 14
    assert body["usage"]["completion_tokens"] == 42
    again = server.complete(["abcdefg", "tuvwxyz"], n=3, max_tokens=7, temperature=1.0, seed=5)
    assert [choice["text"] for choice in again["choices"]] == texts


def test_end_of_sequence_stops_and_is_counted_but_not_shown(server: LiveServer, tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("abc").ids, STOP]
    body = server.complete(ids, max_tokens=10, skip_special_tokens=False)
    [choice] = body["choices"]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("abc", "stop", None)
    assert body["usage"]["completion_tokens"] == 4
    ignored = server.complete(ids, max_tokens=10, ignore_eos=True)
    assert ignored["choices"][0]["text"] == "abcabcab"
    assert ignored["choices"][0]["finish_reason"] == "length"
    shown = server.complete(ids, max_tokens=5, ignore_eos=True, skip_special_tokens=False)
    assert shown["choices"][0]["text"] == "abc<|im_end|>a"


def test_stop_token_id_is_the_stop_reason(server: LiveServer, tokenizer: Tokenizer) -> None:
    stop = tokenizer.token_to_id("c")
    [choice] = server.complete("abcd", max_tokens=10, stop_token_ids=[stop])["choices"]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("ab", "stop", stop)
    [choice] = server.complete("abcd", max_tokens=10, stop_token_ids=[stop], include_stop_str_in_output=True)["choices"]
    assert choice["text"] == "abc"


def test_stop_string_across_tokens_ends_the_text_and_the_engine_request(server: LiveServer) -> None:
    [choice] = server.complete("one two three ", max_tokens=100, stop=["o thr", "zzz"])["choices"]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("one tw", "stop", "o thr")
    server.wait_for(lambda: server.metric("vllm:num_requests_running") == 0)
    [choice] = server.complete("one two three ", max_tokens=100, stop="o thr", include_stop_str_in_output=True)[
        "choices"
    ]
    assert choice["text"] == "one two thr"


def test_stop_string_is_ignored_before_min_tokens(server: LiveServer) -> None:
    [choice] = server.complete("abcd", max_tokens=20, min_tokens=6, stop="b")["choices"]
    assert choice["text"] == "abcdabcda"


def test_text_held_back_for_a_stop_string_comes_out_at_the_end(server: LiveServer) -> None:
    [choice] = server.complete("abcdef", max_tokens=5, stop="def")["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("abcde", "length")


def test_echo_puts_the_prompt_first(server: LiveServer, tokenizer: Tokenizer) -> None:
    assert server.complete("abc", echo=True, max_tokens=2)["choices"][0]["text"] == "abcab"
    ids = tokenizer.encode("abc").ids
    assert server.complete(ids, echo=True, max_tokens=2)["choices"][0]["text"] == "abcab"


def test_logprobs_hold_the_best_and_the_sampled(server: LiveServer, tokenizer: Tokenizer) -> None:
    [choice] = server.complete("abc", max_tokens=3, logprobs=2)["choices"]
    logprobs = choice["logprobs"]
    assert logprobs["tokens"] == ["a", "b", "c"]
    assert logprobs["text_offset"] == [0, 1, 2]
    assert logprobs["token_logprobs"] == [-3.0, -3.0, -3.0]
    first = tokenizer.token_to_id("a")
    best, second = (tokenizer.id_to_token(first + i) for i in (1, 2))
    assert logprobs["top_logprobs"][0] == {best: -1.0, second: -2.0, "a": -3.0}


def test_logprobs_zero_gives_the_sampled_token_only(server: LiveServer) -> None:
    [choice] = server.complete("abc", max_tokens=2, logprobs=0)["choices"]
    assert choice["logprobs"]["top_logprobs"] == [{"a": -3.0}, {"b": -3.0}]


def test_logit_bias_reaches_the_engine(server: LiveServer, tokenizer: Tokenizer) -> None:
    z = tokenizer.token_to_id("z")
    assert server.complete("abc", max_tokens=3, logit_bias={str(z): 100})["choices"][0]["text"] == "zzz"


def test_token_ids_come_back_on_request(server: LiveServer, tokenizer: Tokenizer) -> None:
    [choice] = server.complete("abc", max_tokens=2, return_token_ids=True)["choices"]
    ids = tokenizer.encode("abc").ids
    assert (choice["prompt_token_ids"], choice["token_ids"]) == (ids, ids[:2])


def test_max_tokens_is_clamped_to_the_context(server: LiveServer) -> None:
    body = server.complete("x" * 250, max_tokens=200)
    assert body["usage"]["completion_tokens"] == 6
    assert body["choices"][0]["finish_reason"] == "length"


def test_truncation_keeps_the_end_or_the_beginning(server: LiveServer) -> None:
    fields = {"truncate_prompt_tokens": 2, "max_tokens": 2}
    assert server.complete("abcdef", **fields)["choices"][0]["text"] == "ef"
    assert server.complete("abcdef", truncation_side="right", **fields)["choices"][0]["text"] == "ab"
    whole = server.complete("a" * 400, truncate_prompt_tokens=-1)
    assert whole["usage"].items() >= {"prompt_tokens": 255, "total_tokens": 256, "completion_tokens": 1}.items()


def test_a_character_of_several_tokens_comes_out_whole(server: LiveServer) -> None:
    assert server.complete("né🎉", max_tokens=14)["choices"][0]["text"] == "né🎉né🎉"


def test_unknown_fields_and_harmless_values_are_accepted(server: LiveServer) -> None:
    body = server.complete(
        "ab",
        max_tokens=1,
        user="me",
        made_up=1,
        best_of=1,
        suffix=None,
        response_format={"type": "text"},
        use_beam_search=False,
        bad_words=[],
    )
    assert body["choices"][0]["text"] == "a"


@pytest.mark.parametrize("model", ["tiny", "other", "", None])
def test_every_alias_is_answered_with_the_first_name(server: LiveServer, model: str | None) -> None:
    assert server.complete("a", model=model)["model"] == "tiny"


def test_a_prompt_that_ends_inside_a_character_is_continued_by_the_whole_of_it(server: LiveServer) -> None:
    """Token ids of half an emoji, after which the fake engine says the same half again, and the other one."""
    ids = server.http.post("/tokenize", json={"prompt": "\U0001f44d"}).json()["tokens"]
    prompt = [*ids[2:], *ids, *ids[:2]]  # The engine repeats it from the start: the half that is missing comes first.
    done = server.complete(prompt, max_tokens=6, temperature=0, echo=True)
    assert done["choices"][0]["text"].endswith("\U0001f44d" * 3)
    assert server.complete(prompt, max_tokens=6, temperature=0)["choices"][0]["text"] == "\U0001f44d" * 2
