"""Limits per key: the file, the buckets, and what clients see of them."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from jserve.api.access.account import Account, Accounts, TokenBucket, format_duration
from jserve.api.access.keys import KeyRing
from jserve.api.access.limits import Limit, Limits
from jserve.api.access.limits_file import read_limits
from jserve.commands.options import parse
from jserve.errors import ConfigError, OverloadedError, RateLimitError
from tests.api.live_server import LiveServer, StartServer
from tests.patience import wait_until


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_file_with_defaults_and_names(tmp_path: Path) -> None:
    file = tmp_path / "limits.yaml"
    file.write_text(
        f"""
default:
  requests_per_minute: 60
  tokens_per_minute: 100_000
keys:
  alice:
    sha256: {_digest("a").upper()}
    tokens_per_minute: null
    concurrent_requests: 2
    highest_priority: -3
  bob:
    sha256: "{_digest("b")}"
"""
    )
    limits = parse(["--model", "m", "--limits", str(file)])[1].limits
    assert limits is not None
    assert limits.default == Limit(60, 100_000, None)
    assert limits.by_digest[bytes.fromhex(_digest("a"))] == Limit(60, None, 2, -3)
    assert limits.by_digest[bytes.fromhex(_digest("b"))] == limits.default
    assert set(limits.names.values()) == {"alice", "bob"}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("", "is empty"),
        ("a: [", "cannot be read"),
        ("- a\n", "line 1: the file must hold"),
        ("default:\n  requests: 5\n", "line 2: default has no field 'requests'; its fields are requests_per_minute"),
        ("default:\n  requests_per_minute: 0\n", "line 2: default.requests_per_minute is '0' but must be"),
        ("default:\n  requests_per_minute: -3\n", "is '-3' but must be"),
        ("default:\n  requests_per_minute: 1.5\n", "is '1.5' but must be"),
        ("default:\n  requests_per_minute: many\n", "is 'many' but must be"),
        ("default:\n  requests_per_minute: [1]\n", "is a list or a mapping but must be"),
        ("default:\n  tokens_per_minute: 1\n  tokens_per_minute: 2\n", "line 3: default has 'tokens_per_minute' twice"),
        ("keys:\n  alice:\n    tokens_per_minute: 1\n", "line 3: keys.alice has no sha256"),
        ("keys:\n  alice:\n    sha256: abc\n", "line 3: keys.alice.sha256 must be the 64"),
        ("keys:\n  'a b':\n    sha256: abc\n", "'a b' is no name"),
        ("default:\n  highest_priority: high\n", "line 2: default.highest_priority is 'high' but must be a whole"),
        (f"keys:\n  a:\n    sha256: {_digest('k')}\n  b:\n    sha256: {_digest('k')}\n", "the sha256 of keys.a"),
        ("other: 1\n", "line 1: the file has no field 'other'"),
    ],
)
def test_a_file_that_is_wrong_is_told_with_its_line(tmp_path: Path, content: str, text: str) -> None:
    file = tmp_path / "limits.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError) as caught:
        read_limits(file)
    assert text in str(caught.value)
    assert str(file) in str(caught.value)


def test_bucket_fills_evenly_up_to_a_minutes_worth() -> None:
    clock = Clock()
    bucket = TokenBucket(60, clock)
    bucket.take(60)
    assert bucket.seconds_until(1) == pytest.approx(1)
    clock.now += 30
    assert bucket.level == pytest.approx(30)
    clock.now += 3600
    assert bucket.level == 60
    bucket.take(90)
    assert bucket.seconds_until(1) == pytest.approx(31)


def _account(clock: Clock, **limits: int) -> tuple[Account, "Counter[tuple[str, str]]"]:
    rejections: Counter[tuple[str, str]] = Counter()
    return Account("alice", Limit(**limits), rejections, clock), rejections


def test_requests_above_the_rate_are_told_when_to_come_back() -> None:
    clock = Clock()
    account, rejections = _account(clock, requests_per_minute=2)
    for _ in range(2):
        account.open_request()
        account.close(1)
    with pytest.raises(RateLimitError, match="at most 2 requests per minute") as caught:
        account.open_request()
    assert caught.value.retry_after_s == 30
    assert rejections == {("alice", "requests"): 1}
    clock.now += 30
    account.open_request()


def test_requests_at_once() -> None:
    account, rejections = _account(Clock(), concurrent_requests=1)
    account.open_request()
    with pytest.raises(RateLimitError, match=r"at most 1 sequences .* at once, wait until some of 1 are over"):
        account.open_request()
    assert rejections == {("alice", "concurrent"): 1}
    account.close(1)
    account.open_request()


def test_every_sequence_of_a_request_is_counted() -> None:
    account, rejections = _account(Clock(), concurrent_requests=8)
    account.open_request()
    account.open_more(4, num_held=1)
    account.open_request()
    with pytest.raises(RateLimitError, match="wait until some of 6 are over") as caught:
        account.open_more(3, num_held=1)
    assert caught.value.retry_after_s == 1
    account.open_more(2, num_held=1)
    with pytest.raises(RateLimitError):
        account.open_request()
    account.close(5)
    account.close(3)
    account.open_request()
    with pytest.raises(RateLimitError, match="this request alone has 2048") as caught:
        account.open_more(2047, num_held=1)
    assert caught.value.retry_after_s is None, "waiting does not help"
    assert rejections == {("alice", "concurrent"): 3}


def test_a_long_answer_overdraws_and_the_next_request_waits() -> None:
    clock = Clock()
    account, rejections = _account(clock, tokens_per_minute=60)
    account.open_request()
    account.reserve(20)
    account.spend(70)
    with pytest.raises(RateLimitError) as caught:
        account.open_request()
    assert caught.value.retry_after_s == 31
    clock.now += 31
    account.open_request()
    with pytest.raises(RateLimitError, match="this prompt has 30"):
        account.reserve(30)
    account.reserve(1)
    assert rejections == {("alice", "tokens"): 2}


def test_a_prompt_that_never_fits_is_not_told_to_wait() -> None:
    account, _ = _account(Clock(), tokens_per_minute=60)
    with pytest.raises(RateLimitError, match="this prompt alone has 61") as caught:
        account.reserve(61)
    assert caught.value.retry_after_s is None
    account.reserve(60)


def test_accounts_are_as_many_as_keys() -> None:
    accounts = Accounts(Limits(Limit(requests_per_minute=1)))
    ring = KeyRing(("a", "b"))
    a, b = (ring.find({b"x-api-key": name}) for name in (b"a", b"b"))
    assert a is not None
    assert b is not None
    assert accounts.of(a) is accounts.of(a) is not accounts.of(b)
    assert Accounts(None).of(a) is None


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0ms"), (0.0201, "21ms"), (1.42, "1.5s"), (59.99, "60s"), (60, "1m0s"), (125.2, "2m6s")]
)
def test_durations_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.fixture(scope="module")
def hold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file: while it is there, the engine makes no step."""
    return tmp_path_factory.mktemp("engine") / "hold"


@pytest.fixture(scope="module")
def limited(make_server: StartServer, hold: Path) -> Iterator[LiveServer]:
    """Keys `many`, `few` and `slow` with limits, `free` without. No time passes for the limits."""
    limits = Limits(
        Limit(),
        {
            bytes.fromhex(_digest("few")): Limit(requests_per_minute=2),
            bytes.fromhex(_digest("many")): Limit(tokens_per_minute=1000, requests_per_minute=1000),
            bytes.fromhex(_digest("slow")): Limit(concurrent_requests=1),
            bytes.fromhex(_digest("tiny")): Limit(tokens_per_minute=20),
            bytes.fromhex(_digest("eight")): Limit(concurrent_requests=8),
            bytes.fromhex(_digest("urgent")): Limit(highest_priority=-10),
            bytes.fromhex(_digest("any")): Limit(highest_priority=None),
            bytes.fromhex(_digest("batch")): Limit(highest_priority=5),
        },
        {bytes.fromhex(_digest("few")): "the-few"},
    )
    keys = ("free", "few", "many", "slow", "tiny", "eight", "urgent", "any", "batch")
    live = make_server("--steps-held-by", str(hold), api_keys=keys, limits=limits, max_model_len=40_000)
    live.server.context.accounts._clock = Clock()
    yield live
    live.stop()


def _client(live: LiveServer, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{live.url}/v1", api_key=key, max_retries=0)


def test_official_client_sees_a_rate_limit_error(limited: LiveServer) -> None:
    client = _client(limited, "few")
    for _ in range(2):
        client.completions.create(model="tiny", prompt="abc", max_tokens=2)
    with pytest.raises(openai.RateLimitError) as caught:
        client.completions.create(model="tiny", prompt="abc", max_tokens=2)
    answer = caught.value.response
    assert answer.json()["error"]["code"] == "rate_limit_exceeded"
    assert answer.json()["error"]["type"] == "rate_limit_error"
    assert answer.headers["retry-after"] == "30"
    assert answer.headers["x-ratelimit-limit-requests"] == "2"
    assert answer.headers["x-ratelimit-remaining-requests"] == "0"
    assert answer.headers["x-ratelimit-reset-requests"].endswith("s")
    assert "x-ratelimit-limit-tokens" not in answer.headers
    assert _client(limited, "few").models.list().data, "asking for models is not limited"
    headers = {"authorization": "Bearer free"}
    text = limited.http.get("/metrics", headers=headers).text
    assert (
        'jserve:ratelimit_rejections_total{engine="0",key_id="the-few",kind="requests",model_name="tiny"} 1.0' in text
    )


def test_prompt_and_answer_are_taken_from_the_tokens(limited: LiveServer) -> None:
    headers = {"authorization": "Bearer many"}
    body = {"prompt": "abcdefgh", "max_tokens": 50}
    first = limited.http.post("/v1/completions", json=body, headers=headers)
    assert first.status_code == 200
    after = limited.http.get("/v1/models", headers=headers).headers
    assert first.headers["x-ratelimit-limit-tokens"] == after["x-ratelimit-limit-tokens"] == "1000"
    assert after["x-ratelimit-remaining-tokens"] == "942", "8 + 50 are taken"
    streamed = limited.http.post(
        "/v1/completions", json={**body, "stream": True, "n": 2, "temperature": 1}, headers=headers
    )
    assert streamed.status_code == 200
    after = limited.http.get("/v1/models", headers=headers).headers
    assert after["x-ratelimit-remaining-tokens"] == str(942 - 108)


def test_tokens_above_the_rate(limited: LiveServer) -> None:
    headers = {"authorization": "Bearer tiny"}
    large = limited.http.post("/v1/completions", json={"prompt": "x" * 21}, headers=headers)
    assert large.status_code == 429
    assert large.headers["x-should-retry"] == "false"
    assert "retry-after" not in large.headers
    assert limited.http.post("/v1/completions", json={"prompt": "x" * 9, "max_tokens": 30}, headers=headers).is_success
    for path, kind in (("/v1/messages", "rate_limit_error"), ("/v1/chat/completions", "rate_limit_error")):
        refused = limited.http.post(path, json={}, headers=headers)
        assert refused.status_code == 429
        assert refused.json()["error"]["type"] == kind
        assert int(refused.headers["retry-after"]) == 60, "overdrawn by 19 of 20 a minute"


def test_requests_at_once_end_with_their_answers(limited: LiveServer, hold: Path) -> None:
    def ask(stream: bool) -> int:
        body = {"prompt": "abc", "max_tokens": 60, "stream": stream}
        return limited.http.post("/v1/completions", json=body, headers={"x-api-key": "slow"}).status_code

    hold.touch()
    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, stream) for stream in (True, False, True, False)]
        wait_until(lambda: sum(one.done() for one in asking) == 3)
        hold.unlink()
        assert sorted(one.result() for one in asking) == [200, 429, 429, 429]
    assert ask(True) == ask(False) == 200


def test_choices_and_prompts_count_as_sequences_at_once(limited: LiveServer) -> None:
    headers = {"x-api-key": "eight"}

    def status(**fields: object) -> int:
        body = {"prompt": "abc", "max_tokens": 2, "temperature": 1, **fields}
        return limited.http.post("/v1/completions", json=body, headers=headers).status_code

    for _ in range(3):  # and all are given back
        assert status(n=8) == status(prompt=["a", "b"], n=4) == 200
        assert status(n=9) == status(prompt=["a", "b", "c"], n=3) == 429
    refused = limited.http.post("/v1/completions", json={"prompt": "a", "n": 128, "temperature": 1}, headers=headers)
    assert refused.status_code == 429
    assert "at most 8 sequences (prompts and choices) at once" in refused.json()["error"]["message"]
    assert "128" in refused.json()["error"]["message"]
    assert refused.headers["x-should-retry"] == "false"
    inputs = limited.http.post("/v1/embeddings", json={"input": ["a"] * 9}, headers=headers)
    assert inputs.status_code == 429


PRIORITIES = [
    ("free", -1, 400),
    ("free", 0, 200),
    ("free", 7, 200),
    ("urgent", -10, 200),
    ("urgent", -11, 400),
    ("any", -(1 << 40), 200),
    ("batch", 4, 400),
    ("batch", 5, 200),
]


@pytest.mark.parametrize(("key", "priority", "status"), PRIORITIES)
def test_a_priority_above_the_default_needs_a_right(limited: LiveServer, key: str, priority: int, status: int) -> None:
    headers = {"x-api-key": key}
    for path, body in (
        ("/v1/completions", {"prompt": "abc"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
        ("/v1/embeddings", {"input": "abc"}),
    ):
        answer = limited.http.post(path, json={**body, "priority": priority}, headers=headers)
        assert answer.status_code == status, (path, answer.text)
        if status == 400:
            error = answer.json()["error"]
            assert error["param"] == "priority"
            assert f"priority is {priority} but this API key may ask for" in error["message"]


def test_a_client_that_leaves_gives_its_place_back(limited: LiveServer) -> None:
    headers = {"x-api-key": "slow"}
    body = {"prompt": "abc", "max_tokens": 30_000, "stream": True}
    with limited.http.stream("POST", "/v1/completions", json=body, headers=headers) as response:
        next(response.iter_lines())
    limited.wait_for(lambda: limited.http.post("/v1/completions", json={"prompt": "a"}, headers=headers).is_success)


def test_unlimited_keys_carry_no_headers(limited: LiveServer) -> None:
    answer = limited.http.post("/v1/completions", json={"prompt": "a"}, headers={"x-api-key": "free"})
    assert answer.is_success
    assert not [name for name in answer.headers if name.startswith("x-ratelimit")]


def test_without_keys_the_defaults_hold_for_all_together(start_server: StartServer) -> None:
    live = start_server(limits=Limits(Limit(requests_per_minute=2)))
    live.server.context.accounts._clock = Clock()
    statuses = [live.http.post("/v1/completions", json={"prompt": "a"}).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
    assert live.metric("jserve:ratelimit_rejections_total", key_id="anonymous", kind="requests") == 1


def test_a_prompt_that_the_queue_refuses_is_given_back(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = start_server(limits=Limits(Limit(tokens_per_minute=100)))
    live.server.context.accounts._clock = Clock()

    def refuse(requests: object) -> None:
        raise OverloadedError("full")

    with monkeypatch.context() as patch:
        patch.setattr(live.server.context.client, "submit", refuse)
        for _ in range(3):
            assert live.http.post("/v1/completions", json={"prompt": "x" * 90}).status_code == 503
    answer = live.http.post("/v1/completions", json={"prompt": "x" * 90, "max_tokens": 1})
    assert answer.status_code == 200
    assert answer.headers["x-ratelimit-remaining-tokens"] == "9"


def test_without_keys_anybody_may_ask_for_any_priority(start_server: StartServer) -> None:
    live = start_server(limits=Limits(Limit(concurrent_requests=4)))
    assert live.http.post("/v1/completions", json={"prompt": "a", "priority": -5}).status_code == 200


def test_keys_without_limits_have_no_right_to_a_higher_priority(start_server: StartServer) -> None:
    live = start_server(api_keys=("a",))
    headers = {"x-api-key": "a"}
    statuses = [
        live.http.post("/v1/completions", json={"prompt": "a", "priority": priority}, headers=headers).status_code
        for priority in (-1, 0, 1)
    ]
    assert statuses == [400, 200, 200]
