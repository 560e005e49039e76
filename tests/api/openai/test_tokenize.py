"""/tokenize and /detokenize."""

from typing import Any

import pytest
from tokenizers import Tokenizer

from tests.api.live_server import END, MAX_MODEL_LEN, STOP, LiveServer

MESSAGES = [{"role": "user", "content": "hi"}]


def post(server: LiveServer, path: str, **body: Any) -> dict[str, Any]:
    response = server.http.post(path, json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_text_becomes_tokens_and_text_again(server: LiveServer, tokenizer: Tokenizer) -> None:
    text = "hello é<|im_end|>"
    answer = post(server, "/tokenize", prompt=text)
    ids = tokenizer.encode(text).ids
    assert answer == {"count": len(ids), "max_model_len": MAX_MODEL_LEN, "tokens": ids, "token_strs": None}
    assert post(server, "/detokenize", tokens=ids) == {"prompt": text}
    strings = post(server, "/tokenize", prompt="hello", return_token_strs=True)["token_strs"]
    assert strings == tokenizer.encode("hello").tokens


def test_conversation_has_the_tokens_that_chat_sends(server: LiveServer) -> None:
    used = server.chat("hi", max_tokens=1, return_token_ids=True)["prompt_token_ids"]
    assert post(server, "/tokenize", messages=MESSAGES)["tokens"] == used
    bare = post(server, "/tokenize", messages=MESSAGES, add_generation_prompt=False)["tokens"]
    assert used[: len(bare)] == bare
    assert len(bare) < len(used)
    open_end = post(server, "/tokenize", messages=MESSAGES, continue_final_message=True)["tokens"]
    assert post(server, "/detokenize", tokens=open_end)["prompt"] == "<|im_start|>user\nhi"


def test_lm_eval_takes_its_tokenizer_from_the_server(server: LiveServer, tokenizer: Tokenizer) -> None:
    lm_eval = pytest.importorskip("lm_eval.utils", reason="needs the `clients` extra")
    base_url = f"{server.url}/v1/completions"
    assert lm_eval.check_remote_tokenizer_support(base_url)
    remote = lm_eval.RemoteTokenizer(base_url)
    ids = tokenizer.encode("hello").ids
    assert remote.encode("hello") == ids
    assert remote.decode(ids) == "hello"
    assert (remote.eos_token, remote.eos_token_id) == ("<|im_end|>", STOP)
    text = remote.apply_chat_template(MESSAGES)
    assert remote.encode(text) == post(server, "/tokenize", messages=MESSAGES)["tokens"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": MESSAGES}, "prompt"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": MESSAGES, "chat_template": "x"}, "chat_template"),
        ("/tokenize", {"prompt": 5}, "body.prompt"),
        ("/detokenize", {}, "body.tokens"),
        ("/detokenize", {"tokens": [END, 300]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
    ],
)
def test_what_is_wrong_is_named(server: LiveServer, path: str, body: dict[str, Any], param: str) -> None:
    response = server.http.post(path, json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_unknown_model_is_not_found(server: LiveServer) -> None:
    for path, body in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": []})):
        assert server.http.post(path, json={**body, "model": "gpt"}).status_code == 404
