"""Responses that are remembered, through the official client: continued, fetched, forgotten, and answered behind."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from jserve.api.access.limits import Limit, Limits
from jserve.api.store.database import Database
from jserve.api.store.responses import ResponseTable, Turn
from tests.api.live_server import LiveServer, StartServer
from tests.patience import wait_until


@pytest.fixture(scope="module")
def live(make_server: StartServer) -> Iterator[LiveServer]:
    live = make_server(api_keys=("one", "two"), max_model_len=4096)
    yield live
    live.stop()


def items(*turns: tuple[str, str]) -> list[Any]:
    return [{"role": role, "content": text} for role, text in turns]


def tokens(client: openai.OpenAI, conversation: list[Any], **fields: Any) -> int:
    return client.responses.input_tokens.count(model="tiny", input=conversation, **fields).input_tokens


@pytest.mark.parametrize("stream", [False, True])
def test_a_conversation_goes_on_from_the_response_before(live: LiveServer, stream: bool) -> None:
    client = live.openai
    first = client.responses.create(model="tiny", input="hello", instructions="sys")
    second = client.responses.create(
        model="tiny", input=items(("user", "more")), previous_response_id=first.id, stream=stream
    )
    if stream:
        second = list(second)[-1].response  # type: ignore[union-attr]
    assert second.previous_response_id == first.id
    third = client.responses.create(model="tiny", input="last", previous_response_id=second.id)
    said = [("user", "hello"), ("assistant", first.output_text), ("user", "more"), ("assistant", second.output_text)]
    whole = items(*said, ("user", "last"))
    assert third.usage is not None
    assert third.usage.input_tokens == tokens(client, whole), "without the instructions of the first"
    counted = client.responses.input_tokens.count(model="tiny", input="last", previous_response_id=second.id)
    assert counted.input_tokens == third.usage.input_tokens


def test_a_response_is_fetched_listed_and_deleted_by_its_caller_alone(live: LiveServer) -> None:
    client, other = live.openai, live.openai.with_options(api_key="two")
    made = client.responses.create(model="tiny", input=items(("user", "a"), ("assistant", "b"), ("user", "c")))
    assert client.responses.retrieve(made.id).to_dict() == made.to_dict()
    listed = list(client.responses.input_items.list(made.id, order="asc", limit=2))
    assert [each.content[0].text for each in listed] == ["a", "b", "c"]  # type: ignore[union-attr]
    assert [each.id for each in client.responses.input_items.list(made.id)] == [each.id for each in reversed(listed)]
    for attempt in (other.responses.retrieve, other.responses.delete, other.responses.input_items.list):
        with pytest.raises(openai.NotFoundError):
            attempt(made.id)
    with pytest.raises(openai.BadRequestError, match="not found"):
        other.responses.create(model="tiny", input="x", previous_response_id=made.id)
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.cancel(made.id)
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)
    with pytest.raises(openai.BadRequestError, match="deleted") as caught:
        client.responses.create(model="tiny", input="x", previous_response_id=made.id)
    assert caught.value.param == "previous_response_id"


def test_what_is_not_to_be_stored_is_not(live: LiveServer) -> None:
    made = live.openai.responses.create(model="tiny", input="a", store=False)
    assert made.to_dict()["store"] is False
    with pytest.raises(openai.NotFoundError, match="never stored"):
        live.openai.responses.retrieve(made.id)


def test_an_error_in_the_new_input_is_numbered_as_it_was_sent(live: LiveServer) -> None:
    made = live.openai.responses.create(model="tiny", input="a")
    with pytest.raises(openai.BadRequestError, match=r"input\[1\].role"):
        live.openai.responses.create(
            model="tiny", input=items(("user", "a"), ("nobody", "b")), previous_response_id=made.id
        )


def test_responses_outlive_the_server_where_it_has_a_folder(start_server: StartServer, tmp_path: Path) -> None:
    first = start_server(storage_dir=tmp_path)
    made = first.openai.responses.create(model="tiny", input="hello")
    first.stop()
    second = start_server(storage_dir=tmp_path)
    assert second.openai.responses.retrieve(made.id).output_text == made.output_text
    more = second.openai.responses.create(model="tiny", input="more", previous_response_id=made.id)
    assert more.usage is not None
    whole = items(("user", "hello"), ("assistant", made.output_text), ("user", "more"))
    assert more.usage.input_tokens == tokens(second.openai, whole)


def test_a_response_in_the_background_is_fetched_when_it_is_complete(start_server: StartServer, tmp_path: Path) -> None:
    (hold := tmp_path / "hold").touch()
    limits = Limits(Limit(concurrent_requests=2))
    live = start_server("--steps-held-by", str(hold), api_keys=("one",), limits=limits)
    client = live.openai
    begun = client.responses.create(model="tiny", input="hello", background=True)
    assert (begun.status, begun.background, begun.output) == ("in_progress", True, [])
    assert client.responses.retrieve(begun.id).status == "in_progress"
    with pytest.raises(openai.BadRequestError, match="not complete"):
        client.responses.create(model="tiny", input="x", previous_response_id=begun.id, background=True)
    client.responses.create(model="tiny", input="hello", background=True)
    with pytest.raises(openai.RateLimitError):
        client.responses.create(model="tiny", input="hello", background=True)
    hold.unlink()
    wait_until(lambda: client.responses.retrieve(begun.id).status == "completed")
    waited = client.responses.create(model="tiny", input="hello", store=False)
    assert client.responses.retrieve(begun.id).output_text == waited.output_text
    assert client.responses.cancel(begun.id).status == "completed"


def test_a_response_in_the_background_is_cancelled_or_deleted(start_server: StartServer, tmp_path: Path) -> None:
    (hold := tmp_path / "hold").touch()
    live = start_server("--steps-held-by", str(hold))
    client = live.openai
    first, second = (client.responses.create(model="tiny", input="hello", background=True) for _ in range(2))
    assert client.responses.cancel(first.id).status == client.responses.cancel(first.id).status == "cancelled"
    client.responses.delete(second.id)
    wait_until(lambda: not live.server.context.background)
    hold.unlink()
    wait_until(lambda: live.metric("jserve:aborted_requests_total", reason="given up") == 2)
    assert client.responses.retrieve(first.id).status == "cancelled"
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(second.id)


def test_a_response_whose_engine_or_server_ends_is_failed(start_server: StartServer, tmp_path: Path) -> None:
    (hold := tmp_path / "hold").touch()
    options: dict[str, Any] = {"storage_dir": tmp_path / "store", "shutdown_timeout_s": 0.0}
    live = start_server("--steps-held-by", str(hold), "--error-token", "5", **options)
    begun = live.openai.responses.create(model="tiny", input="hello", background=True)
    live.server.context.client._process.kill()  # type: ignore[union-attr]
    wait_until(lambda: live.openai.responses.retrieve(begun.id).status == "failed")
    assert live.openai.responses.retrieve(begun.id).error is not None
    live.wait_until_ready()
    cut = live.openai.responses.create(model="tiny", input="hello", background=True)
    abandoned = Turn("resp_x", None, b"[]", b'{"id": "resp_x", "status": "in_progress", "output": []}', is_open=True)
    live.server.context.store.responses.put("", abandoned)
    live.stop()
    hold.unlink()
    again = start_server(**options)
    assert again.http.get(f"/v1/responses/{cut.id}").json()["status"] == "failed"
    error = again.http.get("/v1/responses/resp_x").json()["error"]
    assert "restarted" in error["message"]


def test_what_was_used_longest_ago_is_forgotten_and_a_chain_stays_whole() -> None:
    import asyncio

    async def check() -> None:
        database = Database(None)
        table = ResponseTable(database, max_bytes_of_owner=1000)
        body = b'{"output":[]}'
        table.put("a", Turn("old", None, b"[]" + b" " * 200, body, is_open=False))
        table.put("a", Turn("new", "old", b"[]" + b" " * 200, body, is_open=False))
        table.put("b", Turn("other", None, b"[]" + b" " * 900, body, is_open=False))
        for number in range(3):
            chain = await table.chain("a", "new")
            assert chain is not None
            assert [turn.id for turn in chain] == ["old", "new"]
            table.put("a", Turn(f"single-{number}", None, b"[]" + b" " * 400, body, is_open=False))
        assert await table.find("a", "single-1") is None
        assert await table.find("a", "single-2") is not None
        assert await table.find("b", "other") is not None
        table.put("a", Turn("new", "new", b"[]", body, is_open=False))
        assert await table.chain("a", "new") is None, "it continues itself"
        database.close()

    asyncio.run(check())
