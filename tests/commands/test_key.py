"""`jserve key`: keys are made, limited, renewed and revoked, and only their digests are on disk."""

import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from jserve.api.access.account import Accounts
from jserve.api.access.key_file import digest_of, read_key_file
from jserve.api.access.keys import ApiKey, KeyRing
from jserve.api.access.limits import Limit, Limits
from jserve.cli import run
from jserve.errors import ConfigError, RateLimitError
from tests.api.live_server import StartServer


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys"


@pytest.fixture
def key(file: Path, capsys: pytest.CaptureFixture[str]) -> object:
    """Run `jserve key` with the file, and return what it prints."""

    def command(*arguments: str) -> str:
        run(["key", *arguments, "--api-key-file", str(file)])
        return capsys.readouterr().out.strip()

    return command


def find(ring: KeyRing, key: str) -> ApiKey | None:
    return ring.find({b"authorization": f"Bearer {key}".encode()})


def test_a_new_key_opens_and_only_its_digest_is_kept(key, file: Path) -> None:  # type: ignore[no-untyped-def]
    made = key("new", "alice", "--tokens-per-day", "100", "--expires", "90d", "--models", "a,b")
    text = file.read_text()
    assert made.startswith("sk-")
    assert made not in text
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    (entry,) = read_key_file(file)
    assert entry.limits == (("tokens_per_day", 100),)
    assert entry.expires is not None
    assert entry.expires - datetime.now(UTC) > timedelta(days=89)
    found_key = find(KeyRing(file=file), made)
    assert found_key is not None
    assert (found_key.id, found_key.owner, found_key.models) == ("alice", "name:alice", {"a", "b"})
    with pytest.raises(ConfigError, match="has a key already"):
        key("new", "alice")
    assert file.read_text() == text


def test_a_running_server_follows_a_revocation_and_a_rotation(key, file: Path) -> None:  # type: ignore[no-untyped-def]
    file.write_text("# staff\nplain-key\n")
    os.chmod(file, 0o640)
    first = key("new", "alice", "--requests-per-minute", "7")
    clock = Clock()
    ring = KeyRing(file=file, clock=clock)
    before = find(ring, first)
    assert before is not None
    second = key("rotate", "alice", "--grace", "1h")
    assert find(ring, second) is None, "the file is looked at once a second"
    clock.now += 2
    old, new = find(ring, first), find(ring, second)
    assert old is not None
    assert new is not None
    assert old.tenant == new.tenant == before.tenant
    assert (new.owner, new.own_limits) == (before.owner, before.own_limits)
    accounts = Accounts(Limits(Limit(tokens_per_minute=5)))
    assert accounts.of(old) is accounts.of(new)
    assert accounts.of(new).limit == Limit(requests_per_minute=7, tokens_per_minute=5)  # type: ignore[union-attr]
    key("revoke", "alice")
    clock.now += 2
    assert find(ring, first) is find(ring, second) is ring.of_owner("name:alice") is None
    assert find(ring, "plain-key") is not None
    assert [line.split()[0] for line in key("list").splitlines()] == ["valid", "revoked", "revoked"]
    assert file.read_text().startswith("# staff\nplain-key\n")
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    with pytest.raises(ConfigError, match="no valid key"):
        key("rotate", "alice")
    assert key("new", "alice") not in ("", first, second)


def test_rotation_without_grace_ends_the_old_key_and_an_expired_key_opens_nothing(  # type: ignore[no-untyped-def]
    key, file: Path
) -> None:
    first = key("new", "alice")
    second = key("rotate", "alice")
    ring = KeyRing(file=file)
    assert find(ring, first) is None
    assert find(ring, second) is not None


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("name=a b", "name=value"),
        ("name=a/b", "is no name"),
        ("tokens_per_day=0", "above 0"),
        ("tokens_per_day=x", "invalid literal"),
        ("expires=soon", "does not match"),
        ("colour=red", "no field 'colour'"),
    ],
)
def test_a_damaged_line_is_told_with_its_number_and_is_not_overwritten(  # type: ignore[no-untyped-def]
    key, file: Path, line: str, text: str
) -> None:
    file.write_text(f"plain\nsha256:{digest_of('x').hex()} {line}\n")
    before = file.read_text()
    for attempt in (lambda: read_key_file(file), lambda: key("new", "bob"), lambda: key("list")):
        with pytest.raises(ConfigError, match=f"line 2.*{text}"):
            attempt()
    assert file.read_text() == before


def test_a_days_tokens_are_counted_beside_a_minutes() -> None:
    clock = Clock()
    accounts = Accounts(None, clock)
    account = accounts.of(ApiKey(b"x", "x", 1, "x", (("tokens_per_day", 240), ("tokens_per_minute", 100))))
    assert account is not None
    account.reserve(90)
    clock.now += 60
    account.reserve(100)
    clock.now += 60
    with pytest.raises(RateLimitError, match="240 tokens per day"):
        account.reserve(60)
    clock.now += 3600
    account.reserve(60)
    assert accounts.rejections == {("x", "tokens_per_day"): 1}


def test_keys_are_billed_and_see_their_models_only(start_server: StartServer, key, file: Path) -> None:  # type: ignore[no-untyped-def]
    alice, bob = key("new", "alice", "--models", "other"), key("new", "bob", "--models", "elsewhere")
    live = start_server(api_key_file=file, metrics_without_key=True)
    headers = {"x-api-key": alice}
    assert [card["id"] for card in live.http.get("/v1/models", headers=headers).json()["data"]] == ["other"]
    assert live.http.get("/v1/models", headers={"x-api-key": bob}).json()["data"] == []
    body = {"prompt": "abcdef", "max_tokens": 5, "n": 2, "temperature": 1}
    for model, reader, status in (("other", alice, 200), ("tiny", alice, 404), (None, alice, 200), (None, bob, 404)):
        answer = live.http.post("/v1/completions", json={**body, "model": model}, headers={"x-api-key": reader})
        assert answer.status_code == status, answer.text
    counts = {kind: live.metric("jserve:key_tokens_total", key_id="alice", kind=kind) for kind in ("prompt", "output")}
    assert counts == {"prompt": 12, "output": 20}
    assert live.metric("jserve:key_tokens_total", key_id="bob", kind="prompt") == 0
