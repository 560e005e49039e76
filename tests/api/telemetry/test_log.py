"""What the log says of a request, in both formats, and that it never says what was in it."""

import json
import logging
import re
import socket
import sys
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from jserve.log import JsonFormatter, TextFormatter, request_fields
from tests.api.live_server import LiveServer, StartServer
from tests.commands.test_serve import Command, start, status_of  # noqa: F401
from tests.patience import PATIENCE_S, wait_until

SECRET = "zebra"


def _record(**extra: object) -> logging.LogRecord:
    logger = logging.getLogger("jserve.test")
    return logger.makeRecord("jserve.test", logging.WARNING, "f.py", 1, "%d pages", (3,), None, extra=extra)


def test_json_lines_hold_time_level_logger_message_and_extras() -> None:
    line = json.loads(JsonFormatter().format(_record(status=200, odd={1, 2}.__class__)))
    assert line.pop("time").endswith("Z")
    assert line.pop("odd")
    assert line == {"level": "warning", "logger": "jserve.test", "message": "3 pages", "status": 200}


def test_an_exception_stays_on_its_line() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        record = _record()
        record.exc_info = sys.exc_info()
    text = JsonFormatter().format(record)
    assert "\n" not in text
    assert "ValueError: two\nlines" in json.loads(text)["exception"]


def test_every_line_of_a_request_carries_its_id() -> None:
    token = request_fields.set({"request_id": "abc", "key_id": "k"})
    try:
        line = json.loads(JsonFormatter().format(_record()))
        assert (line["request_id"], line["key_id"]) == ("abc", "k")
        assert TextFormatter("%(message)s").format(_record()) == "3 pages (request abc)"
        record = _record()
        record.msg, record.args = "request abc is over", ()
        assert TextFormatter("%(message)s").format(record) == "request abc is over"
    finally:
        request_fields.reset(token)
    assert TextFormatter("%(message)s").format(_record()) == "3 pages"


FORGED = "x\n12:00:00 INFO jserve: forged\r\x1b[2J\x85\u2028\u009b31m"
_CONTROLS = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029]")


@pytest.mark.parametrize("formatter", [TextFormatter("%(levelname)s %(message)s"), JsonFormatter()])
def test_what_a_client_sends_makes_no_line_of_its_own(formatter: logging.Formatter) -> None:
    token = request_fields.set({"request_id": "abc"})
    try:
        record = _record()
        record.msg, record.args = "path %s", (FORGED,)
        assert not _CONTROLS.search(formatter.format(record))
        try:
            raise ValueError(FORGED)
        except ValueError:
            record = _record()
            record.exc_info = sys.exc_info()
        first, *others = formatter.format(record).split("\n")
        assert not _CONTROLS.search(first + "".join(others))
        assert all(line.startswith("    ") for line in others)
    finally:
        request_fields.reset(token)


def test_a_path_is_encoded_in_the_log(start_server: StartServer, caplog: pytest.LogCaptureFixture) -> None:
    live = start_server()
    with caplog.at_level(logging.INFO, "jserve"):
        live.http.get("/v1/models/%0a12:00:00%20INFO%20jserve:%20forged%E2%80%A8")
        live.http.get("/%1b%5B2J%0d%0a")
        live.wait_for(lambda: caplog.text.count(" 404 in ") == 2)
    [model, other] = [each for each in caplog.records if " 404 in " in each.getMessage()]
    assert "/v1/models/%0A12:00:00%20INFO%20jserve:%20forged%E2%80%A8" in model.getMessage()
    assert "/%1B%5B2J%0D%0A" in other.getMessage()
    assert not [each for each in caplog.records if _CONTROLS.search(each.getMessage())]
    assert "%0A" in vars(model)["path"]


def _serve(start: Callable[..., Command], *flags: str) -> tuple[Command, str]:  # noqa: F811
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = start("--port", str(port), *flags)
    url = f"http://127.0.0.1:{port}"
    wait_until(lambda: status_of(port, "/ready") == 200)
    return command, url


def _ask(url: str, **fields: Any) -> httpx.Response:
    headers = {"x-request-id": "my-id", "authorization": "Bearer opensesame"}
    return httpx.post(
        f"{url}/v1/completions", json={"prompt": SECRET, "max_tokens": 3, **fields}, headers=headers, timeout=PATIENCE_S
    )


def test_json_log_of_a_server(start: Callable[..., Command]) -> None:  # noqa: F811
    command, url = _serve(start, "--log-format", "json", "--enable-log-requests", "--api-key", "opensesame")
    answer = _ask(url)
    assert answer.headers["x-request-id"] == "my-id"
    assert "my-id" in answer.json()["id"]
    assert _ask(url, max_tokens="many", user=SECRET).status_code == 400
    command.process.terminate()
    code, text = command.finish()
    assert code == 0
    lines = [json.loads(line) for line in text.splitlines()]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    assert SECRET not in text
    assert "opensesame" not in text
    of_request = [line for line in lines if line.get("request_id") == "my-id"]
    assert any("received: prompt_tokens=5 max_tokens=3" in line["message"] for line in of_request)
    [ended] = [line for line in of_request if line.get("status") == 200]
    expected = {
        "method": "POST",
        "path": "/v1/completions",
        "prompt_tokens": 5,
        "output_tokens": 3,
        "cached_tokens": 3,
        "finish_reason": "length",
    }
    assert {name: ended[name] for name in expected} == expected
    assert ended["model"] == answer.json()["model"]
    assert 0 <= ended["ttft"] <= ended["total"]
    assert len(ended["key_id"]) == 12
    [refused] = [line for line in of_request if line.get("status") == 400]
    assert refused["path"] == "/v1/completions"
    assert any(line["message"] == "stopped" and "request_id" not in line for line in lines)


def test_a_start_that_fails_is_told_in_json(start: Callable[..., Command]) -> None:  # noqa: F811
    code, text = start("--port", "0", "--log-format", "json", "--model", "/nowhere").finish()
    assert code == 1
    last = json.loads(text.splitlines()[-1])
    assert last["level"] == "critical"
    assert last["message"].startswith("/nowhere does not exist")


def test_bodies_are_not_logged_by_default_either(start_server: StartServer, caplog: pytest.LogCaptureFixture) -> None:
    live = start_server()
    with caplog.at_level(logging.DEBUG):
        live.chat(SECRET, max_tokens=2)
        live.http.post(
            "/v1/chat/completions", content=f'{{"messages": "{SECRET}"', headers={"content-type": "application/json"}
        )
        wait_until(lambda: "POST /v1/chat/completions 400" in caplog.text)
    assert SECRET not in caplog.text
    assert "POST /v1/chat/completions 200" in caplog.text
    assert "received" not in caplog.text


@pytest.mark.parametrize(
    ("sent", "returned"),
    [
        ("abc", "abc"),
        ("a b\tc", "abc"),
        ("x" * 500, "x" * 128),
        ('quo"te{}', 'quo"te{}'),
        ("é\u00a0", None),
        ("", None),
    ],
)
def test_request_ids_are_cleaned(server: LiveServer, sent: str, returned: str | None) -> None:
    headers = {"x-request-id": sent.encode("latin-1")}
    answer = server.http.post("/v1/completions", json={"prompt": "a"}, headers=headers, timeout=PATIENCE_S)  # type: ignore[arg-type]
    seen = answer.headers["x-request-id"]
    assert answer.headers.get_list("x-request-id") == [seen]
    assert seen == returned if returned else len(seen) == 32
    assert answer.json()["id"] == f"cmpl-{seen}", "the engine's id is made of it"
