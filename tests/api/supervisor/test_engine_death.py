"""The engine is killed: open requests hear at once, the server recovers, and gives up when it cannot."""

import errno
import json
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from jserve.errors import StartupError
from tests.api.live_server import LiveServer, StartServer
from tests.patience import PATIENCE_S

_BODY = {"prompt": "hello ", "max_tokens": 240}


def _kill(live: LiveServer) -> None:
    assert live.engine_pid is not None
    os.kill(live.engine_pid, signal.SIGKILL)


def test_streams_and_whole_answers_fail_at_once_and_the_engine_comes_back(
    start_server: StartServer, tmp_path: Path
) -> None:
    """At once: before the next engine is loaded."""
    hold = tmp_path / "hold"
    live = start_server("--step-ms", "20", "--load-held-by", str(hold), max_model_len=40_000)
    hold.touch()
    body = {**_BODY, "max_tokens": 30_000}
    whole: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: whole.append(live.http.post("/v1/completions", json=body)))
    asking.start()
    with live.http.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("data: ")
        live.wait_for(lambda: live.metric("vllm:num_requests_running") == 2)
        _kill(live)
        rest = [line for line in lines if line]
    assert response.status_code == 200
    error = json.loads(rest[-2].removeprefix("data: "))["error"]
    assert (error["type"], error["code"]) == ("InternalServerError", None)
    assert "died" in error["message"]
    assert rest[-1] == "data: [DONE]"
    asking.join(PATIENCE_S)
    assert whole[0].status_code == 500
    assert whole[0].json()["error"]["type"] == "InternalServerError"
    refused = live.http.get("/ready")
    assert refused.status_code == 503
    assert "restart" in refused.json()["error"]["message"]
    hold.unlink()
    live.wait_until_ready()
    assert live.complete("ab", max_tokens=2)["choices"][0]["text"] == "ab"
    assert live.metric("jserve:engine_restarts_total") == 1
    assert live.metric("vllm:request_success_total", finished_reason="error") == 2


def test_server_gives_up_after_too_many_deaths(start_server: StartServer) -> None:
    live = start_server(max_engine_restarts=1)
    _kill(live)
    live.wait_for(lambda: live.metric("jserve:engine_restarts_total") == 1)
    live.wait_until_ready()
    _kill(live)
    live.join()
    assert isinstance(live.error, StartupError)
    assert "died 2 times" in str(live.error)


@pytest.mark.parametrize(("options", "status"), [((), 500), (("--error-refuses",), 400)])
def test_an_error_of_one_request_fails_only_that_one(
    start_server: StartServer, options: tuple[str, ...], status: int
) -> None:
    """It is a 400 where the request is to blame: a grammar, say, that can go on with no token."""
    live = start_server("--error-token", "9", *options)
    response = live.http.post("/v1/completions", json={"prompt": [8, 9]})
    assert response.status_code == status
    assert response.json()["error"]["message"] == "the page was torn"
    events = live.http.post("/v1/completions", json={"prompt": [8, 9], "stream": True}).text.split("\n\n")
    assert json.loads(events[-3].removeprefix("data: "))["error"]["message"] == "the page was torn"
    assert events[-2:] == ["data: [DONE]", ""]
    with pytest.raises(openai.APIError, match="the page was torn"):
        list(live.openai.completions.create(model="tiny", prompt=[8, 9], stream=True))
    embedded = live.http.post("/v1/embeddings", json={"input": [8, 9]})
    assert (embedded.status_code, embedded.json()["error"]["message"]) == (status, "the page was torn")
    assert live.http.post("/v1/completions", json={"prompt": [10, 11]}).status_code == 200


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--fatal", "weights do not fit: 3 GiB needed"), "weights do not fit: 3 GiB needed"),
        (("--fatal", "DTypePromotionError: no", "--fatal-may-pass"), "DTypePromotionError: no"),
        (("--exit-at-start", "3"), "exited with code 3"),
    ],
)
def test_an_engine_that_cannot_start_ends_the_server(
    start_server: StartServer, options: tuple[str, ...], text: str
) -> None:
    live = start_server(*options, wait=False)
    live.join()
    assert isinstance(live.error, StartupError)
    assert text in str(live.error)
    assert live.server.context.client.num_restarts == 0, "what ends the first start is told once"


def test_stalled_engine_shows_in_health_decode(start_server: StartServer) -> None:
    live = start_server("--step-ms", "20", stall_timeout_s=0.2)
    assert live.status("/health/decode") == 200
    pid = live.engine_pid
    assert pid is not None
    with live.http.stream("POST", "/v1/completions", json={**_BODY, "stream": True}) as response:
        lines = response.iter_lines()  # Kept: letting go of it closes the connection.
        assert next(lines)
        os.kill(pid, signal.SIGSTOP)
        live.wait_for(lambda: live.status("/health/decode") == 503)
        assert live.status("/health") == 200
        os.kill(pid, signal.SIGCONT)
        live.wait_for(lambda: live.status("/health/decode") == 200)


def test_an_engine_that_hangs_is_noticed_though_no_client_waits(start_server: StartServer) -> None:
    live = start_server("--step-ms", "20", stall_timeout_s=0.2)
    pid = live.engine_pid
    assert pid is not None
    with live.http.stream("POST", "/v1/completions", json={**_BODY, "stream": True}) as response:
        assert next(response.iter_lines())
        os.kill(pid, signal.SIGSTOP)
    live.wait_for(lambda: live.server.context.client.num_open == 0)
    live.wait_for(lambda: live.status("/health/decode") == 503)
    for _ in range(3):  # Clients that come and give up do not set the clock back.
        with pytest.raises(httpx.TimeoutException):
            live.http.post("/v1/completions", json=_BODY, timeout=0.05)
        assert live.status("/health/decode") == 503
    os.kill(pid, signal.SIGCONT)
    live.wait_for(lambda: live.status("/health/decode") == 200)
    assert live.server.context.client.seconds_silent == 0, "an idle engine owes nothing"


def test_an_engine_that_hangs_for_too_long_is_started_again(start_server: StartServer) -> None:
    live = start_server("--step-ms", "20", stall_timeout_s=0.2, hang_timeout_s=0.6)
    pid = live.engine_pid
    assert pid is not None
    with live.http.stream("POST", "/v1/completions", json={**_BODY, "stream": True}) as response:
        assert next(response.iter_lines())
        os.kill(pid, signal.SIGSTOP)
    live.wait_for(lambda: live.metric("jserve:engine_restarts_total") == 1)
    live.wait_until_ready()
    assert live.engine_pid != pid
    assert live.complete("ab", max_tokens=2)["choices"][0]["text"] == "ab"
    assert live.status("/health/decode") == 200


def test_an_engine_is_started_again_though_descriptors_are_lacking_at_first(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = start_server()
    attempts = []

    def without_descriptors(*arguments: Any, **options: Any) -> Any:
        attempts.append(None)
        if len(attempts) < 3:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return popen(*arguments, **options)

    popen = subprocess.Popen
    monkeypatch.setattr("jserve.api.supervisor.process.subprocess.Popen", without_descriptors)
    monkeypatch.setattr("jserve.api.supervisor.client._RELAUNCH_S", 0.05)
    _kill(live)
    live.wait_for(lambda: len(attempts) == 3)
    live.wait_until_ready()
    assert live.error is None
    assert live.complete("ab", max_tokens=2)["choices"][0]["text"] == "ab"
