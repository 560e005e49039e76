"""The largest answers that one request can ask for: bounded, kept in little memory, and written without holding up
anybody else.
"""

import gc
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jserve.api.generation.answer_size import MAX_LOGPROBS
from jserve.api.generation.packed_logprobs import PackedLogprobs
from jserve.protocol import TokenLogprobs
from tests.api.live_server import LiveServer, StartServer
from tests.api.stream_pace import undisturbed
from tests.patience import PATIENCE_S

HELD_UP_S = 0.05
"""CPU time between two turns of the server's loop."""
_MESSAGES = [{"role": "user", "content": "né " * 40}]
_MANY: dict[str, Any] = {"n": 40, "temperature": 1, "max_tokens": 150, "ignore_eos": True}
_TOP: dict[str, Any] = {"temperature": 1, "logprobs": True, "top_logprobs": 20}
_LONG: dict[str, Any] = {"ignore_eos": True, "temperature": 1}
LARGE: list[tuple[str, dict[str, Any], int]] = [
    ("/v1/chat/completions", {"messages": _MESSAGES, **_MANY, "logprobs": True, "top_logprobs": 20}, 5000),
    ("/v1/chat/completions", {"messages": _MESSAGES, "max_tokens": 1, "prompt_logprobs": 20}, 0),
    ("/v1/completions", {"prompt": "né " * 40, **_MANY, "logprobs": 20}, 400),
    ("/v1/completions", {"prompt": "ab " * 1300, "max_tokens": 1, "logprobs": 20, "echo": True}, 600),
    ("/v1/completions", {"prompt": ["ab"] * 1000, "max_tokens": 4, "return_token_ids": True}, 0),
    (
        "/v1/responses",
        {
            "input": "né " * 40, **_LONG, "max_output_tokens": 3800, "top_logprobs": 20,
            "include": ["message.output_text.logprobs"],
        },
        3000,
    ),
    (
        "/api/generate",
        {
            "prompt": "né " * 40, "raw": True, "stream": False, "logprobs": True, "top_logprobs": 20,
            "options": {"num_predict": 3800},
        },
        2000,
    ),
    ("/v1/embeddings", {"input": ["ab"] * 400}, 10_000),
    ("/api/embed", {"input": ["ab"] * 400}, 10_000),
]  # fmt: skip
"""Each with the least size of its answer, in thousands of bytes."""


@pytest.fixture(scope="module")
def live(make_server: StartServer) -> Iterator[LiveServer]:
    live = make_server("--embedding-size", "8192", max_model_len=4096)
    gc.collect()
    gc.freeze()  # As the server does by itself: `serve`.
    yield live
    gc.unfreeze()
    live.stop()


@pytest.mark.parametrize(("path", "body", "least_kb"), LARGE)
def test_a_large_answer_holds_up_nobody(live: LiveServer, path: str, body: dict[str, Any], least_kb: int) -> None:
    def ask() -> bytes:
        answer = live.http.post(path, json={"model": "tiny", **body}, timeout=PATIENCE_S)
        assert answer.status_code == 200, answer.text[:500]
        return answer.content

    content = undisturbed(live, ask, HELD_UP_S)
    assert len(content) > 1000 * least_kb
    json.loads(content)


STREAMED = [(path, body) for path, body, _ in LARGE if path.startswith("/v1/") and "prompt_logprobs" not in body][:-1]


@pytest.mark.parametrize(("path", "body"), STREAMED)
def test_a_large_stream_holds_up_nobody(live: LiveServer, path: str, body: dict[str, Any]) -> None:
    def ask() -> int:
        with live.http.stream("POST", path, json={**body, "stream": True}, timeout=PATIENCE_S) as answer:
            assert answer.status_code == 200
            return sum(len(chunk) for chunk in answer.iter_raw())

    assert undisturbed(live, ask, HELD_UP_S) > 300_000


def test_the_pieces_of_a_stream_put_together_are_the_answer(live: LiveServer) -> None:
    body = {"prompt": "ab " * 200, "max_tokens": 2, "logprobs": 3, "echo": True}
    whole = live.complete(body.pop("prompt"), **body)["choices"][0]["logprobs"]
    events = live.events("/v1/completions", prompt="ab " * 200, **body)
    for name, values in whole.items():
        assert [value for event in events for value in event["choices"][0]["logprobs"][name]] == values


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (
            "/v1/chat/completions",
            {"messages": _MESSAGES, "n": 512, "temperature": 1, "logprobs": True, "top_logprobs": 20},
        ),
        ("/v1/completions", {"prompt": "a", "n": 2048, "temperature": 1, "logprobs": 20, "max_tokens": 200}),
        ("/v1/completions", {"prompt": ["a"] * 1000, "max_tokens": 300, "logprobs": 20}),
        (
            "/v1/completions",
            {"prompt": "ab " * 1300, "n": 512, "temperature": 1, "max_tokens": 1, "prompt_logprobs": 20},
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_more_logprobs_than_one_request_may_ask_for_are_refused(
    live: LiveServer, path: str, body: dict[str, Any], stream: bool
) -> None:
    if stream and "prompt_logprobs" in body:
        return
    answer = live.http.post(path, json={**body, "stream": stream})
    assert answer.status_code == 400, answer.text[:300]
    message = answer.json()["error"]["message"]
    assert str(MAX_LOGPROBS) in message
    assert f"{body.get('n', 1000)} choices" in message


def test_the_limit_that_is_named_is_the_limit(live: LiveServer) -> None:
    body = {"prompt": "a", "n": 512, "temperature": 1, "logprobs": 20, "max_tokens": 4000}
    message = live.http.post("/v1/completions", json=body).json()["error"]["message"]
    fits = int(message.rpartition("`max_tokens` can be ")[2])
    assert fits * 512 * 21 <= MAX_LOGPROBS < (fits + 1) * 512 * 21
    assert live.http.post("/v1/completions", json={**body, "max_tokens": fits + 1}).status_code == 400


def test_many_choices_without_logprobs_have_no_such_limit(live: LiveServer) -> None:
    body = {"prompt": "ab", "n": 2048, "temperature": 1, "max_tokens": 2, "return_token_ids": True}
    answer = live.http.post("/v1/completions", json=body, timeout=PATIENCE_S)
    assert answer.status_code == 200
    assert [choice["index"] for choice in answer.json()["choices"]] == list(range(2048))


_FLOATS = st.floats(allow_nan=False, width=32)


@given(st.lists(st.tuples(_FLOATS, st.integers(1, 2**31 - 1), st.lists(st.tuples(st.integers(0, 2**31 - 1), _FLOATS)))))
def test_packed_logprobs_come_out_as_they_went_in(rows: list[Any]) -> None:
    positions = [
        TokenLogprobs(own, rank, [token for token, _ in top], [logprob for _, logprob in top], [own, own])
        for own, rank, top in rows
    ]
    packed = PackedLogprobs(positions[:1])
    packed.extend(positions[1:])
    assert [*packed] == positions
    assert len(packed) == len(positions)


def test_packed_logprobs_are_small() -> None:
    position = TokenLogprobs(-1.0, 1, [*range(1000, 1020)], [-float(i) for i in range(20)])
    packed = PackedLogprobs([position] * 1000)
    arrays = [getattr(packed, name) for name in PackedLogprobs.__slots__ if name != "_chosen_per_token"]
    assert sum(array.itemsize * len(array) for array in arrays) == 1000 * (8 + 4 + 20 * 12 + 8)
