"""Files and batches, through the official client: whose they are, what becomes of each line, what a restart does."""

import asyncio
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from jserve.api.access.limits import Limit, Limits
from jserve.api.store.batches import MAX_UNFINISHED, new_batch
from jserve.api.store.responses import Turn
from jserve.api.store.store import Store
from jserve.errors import StartupError
from tests.api.live_server import LiveServer, StartServer
from tests.commands.test_serve import Command, port, start  # noqa: F401
from tests.patience import PATIENCE_S, wait_until

URL = "/v1/completions"


@pytest.fixture(scope="module")
def live(make_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("storage")
    live = make_server("--error-token", "5", storage_dir=folder, api_keys=("one", "two"), max_file_bytes=1 << 20)
    yield live
    live.stop()


def line(number: int, url: str = URL, **body: Any) -> dict[str, Any]:
    body = {"model": "tiny", "prompt": "abc", "max_tokens": 2, **body}
    return {"custom_id": f"line-{number}", "method": "POST", "url": url, "body": body}


def jsonl(*lines: Any) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in lines)


def upload(client: openai.OpenAI, content: bytes) -> str:
    return client.files.create(file=("in.jsonl", content), purpose="batch").id


def begin(client: openai.OpenAI, content: bytes, url: str = URL, window: str = "24h") -> str:
    endpoint: Any = url
    completion_window: Any = window
    made = client.batches.create(
        input_file_id=upload(client, content), endpoint=endpoint, completion_window=completion_window,
        metadata={"for": "test"},
    )  # fmt: skip
    assert (made.status, made.metadata) == ("validating", {"for": "test"})
    return made.id


def ended(client: openai.OpenAI, batch_id: str) -> openai.types.Batch:
    statuses = ("completed", "failed", "cancelled", "expired")
    wait_until(lambda: client.batches.retrieve(batch_id).status in statuses)
    return client.batches.retrieve(batch_id)


def lines_of(client: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    if file_id is None:
        return []
    return [json.loads(each) for each in client.files.content(file_id).text.splitlines()]


def test_a_file_is_sent_seen_and_deleted_by_the_official_client(live: LiveServer) -> None:
    client = live.openai
    content = jsonl(line(1)) * 500
    sent = client.files.create(
        file=("mine.jsonl", content), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert (sent.filename, sent.bytes, sent.purpose, sent.object) == ("mine.jsonl", len(content), "batch", "file")
    assert sent.expires_at == sent.created_at + 3600
    assert client.files.retrieve(sent.id) == sent
    assert client.files.content(sent.id).read() == content
    second = client.files.create(file=("b", b"x"), purpose="user_data")
    assert [each.id for each in client.files.list(limit=1)] == [second.id, sent.id], "the client reads page after page"
    assert [each.id for each in client.files.list(purpose="user_data")] == [second.id]
    other = client.with_options(api_key="two")
    assert list(other.files.list()) == []
    for attempt in (other.files.retrieve, other.files.content, other.files.delete):
        with pytest.raises(openai.NotFoundError):
            attempt(sent.id)
    for file_id in (sent.id, second.id):
        assert client.files.delete(file_id).deleted
    assert list(client.files.list()) == []
    storage = live.server.context.settings.storage_dir
    assert storage is not None
    assert not list((storage / "files").iterdir())


@pytest.mark.parametrize(
    ("content", "data", "text"),
    [
        (b"x", {"purpose": "vision"}, "purpose is 'vision'"),
        (b"x", {}, "purpose is None"),
        (None, {"purpose": "batch"}, "no field `file`"),
        (b"x" * (1 << 20) + b"y" * (1 << 17), {"purpose": "batch"}, "--max-file-bytes"),
        (b"x", {"purpose": "batch", "expires_after[seconds]": "5"}, "expires_after"),
        (b"x", {"purpose": "b" * 5000}, "4096"),
    ],
)
def test_a_form_that_is_wrong_is_told_and_leaves_nothing(
    live: LiveServer, content: bytes | None, data: dict[str, str], text: str
) -> None:
    files = {"file": ("a", content)} if content is not None else {"other": ("a", b"x")}
    answer = live.http.post("/v1/files", files=files, data=data, headers={"x-api-key": "one"})
    assert answer.status_code in (400, 413), answer.text
    assert text in answer.json()["error"]["message"]
    storage = live.server.context.settings.storage_dir
    assert storage is not None
    assert not list((storage / "files").glob("*.part"))


def test_what_is_no_form_is_told(live: LiveServer) -> None:
    headers = {"x-api-key": "one", "content-type": "multipart/form-data; boundary=b"}
    for body in (b"--b\r\nContent-Disp", b"nonsense", b"", b"--b\r\n\r\nx\r\n--b--\r\n"):
        assert live.http.post("/v1/files", content=body, headers=headers).status_code == 400, body
    assert live.http.post("/v1/files", json={}, headers={"x-api-key": "one"}).status_code == 400


def test_without_a_folder_there_are_no_files_and_batches(server: LiveServer) -> None:
    assert server.http.post("/v1/files", files={"file": b"x"}, data={"purpose": "batch"}).status_code == 501
    assert "--storage-dir" in server.http.get("/v1/batches").text


def test_the_files_of_a_key_have_room(start_server: StartServer, tmp_path: Path) -> None:
    live = start_server(storage_dir=tmp_path, storage_bytes_per_key=10_000)
    first = upload(live.openai, b"x" * 6000)
    for size in (6000, 1):
        with pytest.raises(openai.BadRequestError, match="--storage-bytes-per-key"):
            upload(live.openai, b"x" * size)
    live.openai.files.delete(first)
    upload(live.openai, b"x")
    upload(live.openai, b"x" * 5000)


def test_a_key_has_so_many_unfinished_batches_and_what_is_old_is_forgotten(tmp_path: Path) -> None:
    async def check() -> None:
        store = Store(tmp_path)
        batches = [new_batch(URL, "file-x", "24h", 60, None) for _ in range(MAX_UNFINISHED + 1)]
        assert [await store.batches.add("a", batch) for batch in batches] == [True] * MAX_UNFINISHED + [False]
        assert await store.batches.add("b", batches[-1])
        await store.batches.move(batches[0].id, "failed")
        store.responses.put("a", Turn("old", None, b"[]", b"{}", is_open=False))
        await store.batches.delete_made_before(batches[0].created_at + 1)
        await store.responses.delete_used_before(batches[0].created_at + 60)
        assert await store.batches.find("a", batches[0].id) is None
        assert await store.batches.find("a", batches[1].id) is not None
        assert await store.responses.find("a", "old") is None
        store.close()

    asyncio.run(check())


def test_each_line_of_a_batch_has_its_answer_or_its_error(live: LiveServer) -> None:
    client = live.openai
    lines = [line(0), line(1, model="nobody"), line(2, max_tokens=0, temperature=-1), line(3, prompt=[5]), line(4)]
    batch = ended(client, begin(client, jsonl(*lines)))
    assert batch.status == "completed"
    assert batch.request_counts is not None
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (5, 2, 3)
    answers = lines_of(client, batch.output_file_id)
    assert [each["custom_id"] for each in answers] == ["line-0", "line-4"]
    assert [each["response"]["body"]["choices"][0]["text"] for each in answers] == ["ab", "ab"]
    failed = lines_of(client, batch.error_file_id)
    statuses = {each["custom_id"]: each["response"]["status_code"] for each in failed}
    assert statuses == {"line-1": 404, "line-2": 400, "line-3": 500}
    assert failed[0]["response"]["body"]["error"]["code"] == "model_not_found"
    assert batch.id in [each.id for each in client.batches.list(limit=1)]
    other = client.with_options(api_key="two")
    assert list(other.batches.list()) == []
    with pytest.raises(openai.NotFoundError):
        other.batches.retrieve(batch.id)
    with pytest.raises(openai.NotFoundError):
        other.files.content(batch.output_file_id or "")
    with pytest.raises(openai.BadRequestError, match="no file of yours"):
        other.batches.create(input_file_id=batch.input_file_id, endpoint=URL, completion_window="24h")


@pytest.mark.parametrize(
    ("url", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}),
        ("/v1/embeddings", {"input": "hi"}),
        ("/v1/responses", {"input": "hi", "max_output_tokens": 2}),
    ],
)
def test_lines_are_answered_as_their_endpoint_answers(live: LiveServer, url: str, body: dict[str, Any]) -> None:
    request = {"custom_id": "a", "method": "POST", "url": url, "body": body}
    batch = ended(live.openai, begin(live.openai, jsonl(request), url))
    (answer,) = lines_of(live.openai, batch.output_file_id)
    whole = live.http.post(url, json=body, headers={"x-api-key": "one"}).json()
    assert answer["response"]["status_code"] == 200
    assert answer["response"]["body"].keys() == whole.keys()
    assert answer["response"]["body"]["usage"] == whole["usage"]


@pytest.mark.parametrize(
    ("content", "code", "at"),
    [
        (jsonl(line(1), line(2), line(1)), "duplicate_custom_id", 3),
        (b"\n\n" + jsonl(line(1, url="/v1/chat/completions")), "invalid_request", 3),
        (jsonl(line(1, stream=True)), "invalid_request", 1),
        (jsonl(line(1)) + b"nonsense\n", "invalid_request", 2),
        (jsonl({"custom_id": 3}), "invalid_request", 1),
        (b"\n", "empty_file", 1),
    ],
)
def test_a_file_that_is_wrong_fails_the_batch_before_anything_runs(
    live: LiveServer, content: bytes, code: str, at: int
) -> None:
    batch = ended(live.openai, begin(live.openai, content))
    assert batch.status == "failed"
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert (batch.errors.data[0].code, batch.errors.data[0].line) == (code, at)
    assert batch.output_file_id is None


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"endpoint": "/v1/images"}, "endpoint"),
        ({"completion_window": "soon"}, "completion_window"),
        ({"input_file_id": "file-none"}, "input_file_id"),
    ],
)
def test_a_batch_that_cannot_be_is_refused_by_name(live: LiveServer, change: dict[str, str], param: str) -> None:
    file_id = upload(live.openai, jsonl(line(1)))
    body = {"input_file_id": file_id, "endpoint": URL, "completion_window": "24h", **change}
    answer = live.http.post("/v1/batches", json=body, headers={"x-api-key": "one"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_a_cancelled_batch_keeps_what_was_answered(start_server: StartServer, tmp_path: Path) -> None:
    (hold := tmp_path / "hold").touch()
    live = start_server(
        "--stall-token", "7", "--stall-held-by", str(hold), "--max-num-seqs", "2", storage_dir=tmp_path / "store"
    )
    client = live.openai
    batch_id = begin(client, jsonl(line(0), line(1, prompt=[7]), *(line(n) for n in range(2, 9))))
    wait_until(lambda: client.batches.retrieve(batch_id).request_counts.completed == 1)  # type: ignore[union-attr]
    assert client.batches.cancel(batch_id).status == "cancelling"
    batch = ended(client, batch_id)
    assert batch.status == "cancelled"
    assert [each["custom_id"] for each in lines_of(client, batch.output_file_id)] == ["line-0"]
    hold.unlink()
    wait_until(lambda: live.metric("jserve:aborted_requests_total", reason="given up") == 1)
    with pytest.raises(openai.ConflictError, match="cancelled"):
        client.batches.cancel(batch_id)


def test_batches_run_last_and_leave_live_requests_their_limits(start_server: StartServer, tmp_path: Path) -> None:
    limits = Limits(Limit(concurrent_requests=1, requests_per_minute=3, tokens_per_minute=40, tokens_per_day=10_000))
    live = start_server(storage_dir=tmp_path, api_keys=("one",), limits=limits)
    sent = []
    client = live.server.context.client
    submit = client.submit
    client.submit = lambda batch: sent.extend(batch) or submit(batch)  # type: ignore[method-assign,assignment,func-returns-value]
    batch = ended(live.openai, begin(live.openai, jsonl(*(line(n, priority=-3) for n in range(12)))))
    assert batch.request_counts is not None
    assert batch.request_counts.completed == 12
    assert {request.priority for request in sent} == {1_000_000}
    assert live.openai.completions.create(model="tiny", prompt="abc", max_tokens=1).usage is not None
    account = next(iter(live.server.context.accounts._accounts.values()))
    assert account._day_tokens is not None
    assert account._day_tokens.level < 10_000 - 12 * 5
    (key_id,) = {name for name, _ in live.server.context.metrics.key_tokens}
    assert live.server.context.metrics.key_tokens[key_id, "output"] == 12 * 2 + 1


def test_an_expired_batch_tells_which_lines_had_no_time(start_server: StartServer, tmp_path: Path) -> None:
    (hold := tmp_path / "hold").touch()
    live = start_server("--steps-held-by", str(hold), storage_dir=tmp_path / "store")
    batch_id = begin(live.openai, jsonl(line(0), line(1)))
    wait_until(lambda: live.openai.batches.retrieve(batch_id).status == "in_progress")
    table = live.server.context.store.batches
    wait_until(lambda: live.server.context.generator.num_open > 0)
    live.loop.call_soon_threadsafe(table.on_cancelling, batch_id)  # Its deadline, as if the time had come.
    batch = ended(live.openai, batch_id)
    hold.unlink()
    assert batch.status == "expired"
    errors = lines_of(live.openai, batch.error_file_id)
    assert [each["error"]["code"] for each in errors] == ["batch_expired"] * 2


def test_a_batch_whose_input_is_deleted_keeps_what_was_answered(start_server: StartServer, tmp_path: Path) -> None:
    (hold := tmp_path / "hold").touch()
    options = ("--stall-token", "7", "--stall-held-by", str(hold), "--max-num-seqs", "2")
    first = start_server(*options, storage_dir=tmp_path / "store")
    client = first.openai
    batch_id = begin(client, jsonl(line(0), line(1, prompt=[7]), line(2)))
    wait_until(lambda: client.batches.retrieve(batch_id).request_counts.completed == 1)  # type: ignore[union-attr]
    client.files.delete(client.batches.retrieve(batch_id).input_file_id)
    first.stop()
    hold.unlink()
    second = start_server(storage_dir=tmp_path / "store")
    batch = ended(second.openai, batch_id)
    assert batch.status == "failed"
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert batch.errors.data[0].code == "missing_file"
    assert [each["custom_id"] for each in lines_of(second.openai, batch.output_file_id)] == ["line-0"]


def test_what_is_kept_is_for_the_servers_user_alone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.close()
    assert [path.name for path in tmp_path.iterdir() if path.stat().st_mode & 0o077] == []


def test_a_folder_belongs_to_one_server(tmp_path: Path) -> None:
    first = Store(tmp_path)
    with pytest.raises(StartupError, match="a server that is running"):
        Store(tmp_path)
    first.close()
    Store(tmp_path).close()


def served(start: Callable[..., Command], port: int, *arguments: str) -> tuple[Command, openai.OpenAI]:  # noqa: F811
    """A server as a process of its own, once it is ready, and a client for it."""
    command = start("--port", str(port), "--served-model-name", "tiny", "--log-level", "error", *arguments)

    def is_ready() -> bool:
        assert command.process.poll() is None
        try:
            return httpx.get(f"http://127.0.0.1:{port}/ready").status_code == 200
        except httpx.TransportError:
            return False

    wait_until(is_ready)
    base = f"http://127.0.0.1:{port}/v1"
    return command, openai.OpenAI(base_url=base, api_key="none", timeout=PATIENCE_S, max_retries=0)


def test_a_batch_goes_on_after_a_kill_without_a_line_lost_or_twice(
    start: Callable[..., Command],  # noqa: F811
    port: int,  # noqa: F811
    tmp_path: Path,
) -> None:
    storage = ("--storage-dir", str(tmp_path))
    command, client = served(start, port, *storage)
    batch_id = begin(client, jsonl(*(line(n) for n in range(600))))
    for done in (50, 200):
        wait_until(lambda: client.batches.retrieve(batch_id).request_counts.completed > done)  # type: ignore[union-attr]  # noqa: B023
        os.kill(command.process.pid, signal.SIGKILL)
        command.finish()
        command, client = served(start, port, *storage)
    batch = ended(client, batch_id)
    assert batch.request_counts is not None
    assert (batch.status, batch.request_counts.completed) == ("completed", 600)
    answers = lines_of(client, batch.output_file_id)
    assert [each["custom_id"] for each in answers] == [f"line-{n}" for n in range(600)]
    command.process.terminate()
    assert command.finish()[0] == 0


@pytest.mark.slow
def test_ten_thousand_lines_take_no_more_memory_than_a_thousand(
    start: Callable[..., Command],  # noqa: F811
    port: int,  # noqa: F811
    tmp_path: Path,
) -> None:
    command, client = served(start, port, "--storage-dir", str(tmp_path))
    process = psutil.Process(command.process.pid)
    after: list[int] = []
    for count in (1_000, 1_000, 10_000):
        batch = ended(client, begin(client, jsonl(*(line(n, user="x" * 500) for n in range(count)))))
        assert batch.request_counts is not None
        assert batch.request_counts.completed == count
        after.append(process.memory_info().rss)
    assert after[2] - after[1] < 32 << 20, after
