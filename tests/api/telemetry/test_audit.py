"""The audit log: a line for each request, without text, in files that are rotated."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from jserve.api.call import Call
from jserve.api.telemetry.audit import AuditLog
from jserve.errors import StartupError
from tests.api.live_server import StartServer
from tests.patience import wait_until

FIELDS = {
    "time", "request_id", "key_id", "client", "method", "path", "status", "outcome", "model", "prompt_tokens",
    "cached_tokens", "output_tokens", "seconds_to_first_token", "seconds",
}  # fmt: skip


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_request_has_a_line_without_its_text(start_server: StartServer, tmp_path: Path) -> None:
    path = tmp_path / "audit"
    live = start_server(api_keys=("sk-secret",), audit_log=path, storage_dir=tmp_path / "store")
    headers = {"authorization": "Bearer sk-secret", "x-request-id": "mine"}
    live.http.post("/v1/completions", json={"prompt": "sesame", "max_tokens": 3}, headers=headers)
    live.http.post("/v1/completions", json={"prompt": "sesame"}, headers={"x-api-key": "wrong"})
    live.http.post("/v1/completions", json={"prompt": "sesame", "temperature": -1}, headers=headers)
    live.http.get("/health")
    done, stranger, refused = lines_of(path)
    assert all(line.keys() == FIELDS for line in (done, stranger, refused))
    assert (done["request_id"], done["status"], done["outcome"], done["model"]) == ("mine", 200, "length", "tiny")
    assert (done["prompt_tokens"], done["output_tokens"]) == (6, 3)
    assert 0 < done["seconds_to_first_token"] <= done["seconds"]
    assert (stranger["status"], stranger["outcome"], stranger["key_id"]) == (401, "unauthorized", None)
    assert (refused["status"], refused["outcome"], refused["model"]) == (400, "refused", None)
    assert done["key_id"] == refused["key_id"] is not None
    assert "sesame" not in path.read_text()
    assert "sk-secret" not in path.read_text()
    begun = live.openai.responses.create(model="tiny", input="sesame", background=True)
    client = live.openai.with_options(api_key="sk-secret")
    wait_until(lambda: client.responses.retrieve(begun.id).status == "completed")
    usage = client.responses.retrieve(begun.id).usage
    assert usage is not None
    (behind,) = [line for line in lines_of(path) if line["method"] == "POST" and line["path"] == "/v1/responses"]
    assert (behind["outcome"], behind["output_tokens"]) == ("stop", usage.output_tokens)


def test_files_are_rotated_by_their_size(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    log = AuditLog(path, 1000, 2, "m")
    for _ in range(50):
        log.write(Call("id"), 200)
    log.close()
    assert {each.name for each in tmp_path.iterdir()} == {"audit", "audit.1", "audit.2"}
    assert all(each.stat().st_size <= 1000 for each in tmp_path.iterdir())
    assert all(lines_of(each) for each in tmp_path.iterdir())


def test_a_disk_that_takes_no_more_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = AuditLog(tmp_path / "audit", 1000, 1, "m")
    with caplog.at_level(logging.ERROR):
        log._handler.stream = Path("/dev/full").open("w")  # type: ignore[assignment]  # noqa: SIM115
        for _ in range(5):
            log.write(Call("id"), 200)
    assert len(caplog.records) == 1
    log.close()


def test_a_file_that_cannot_be_written_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="--audit-log"):
        AuditLog(tmp_path / "none" / "audit", 1000, 1, "m")
