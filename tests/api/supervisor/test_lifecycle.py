"""Loading, readiness, and a stop that lets open requests finish."""

import asyncio
import threading
from pathlib import Path
from typing import Any

from jserve.api.model.served_model import ServedModel
from jserve.api.server import Server
from jserve.api.settings import ServerSettings
from jserve.config import EngineConfig
from tests.api.live_server import LiveServer, StartServer
from tests.patience import PATIENCE_S, wait_until

_BODY = {"prompt": "hello ", "max_tokens": 50}


def test_while_loading_requests_are_refused_with_how_far_it_is(start_server: StartServer, tmp_path: Path) -> None:
    (hold := tmp_path / "hold").touch()
    live = start_server("--load-held-by", str(hold), wait=False)
    live.wait_for(lambda: live.status("/health") == 200)
    live.wait_for(lambda: "weights 1 of 4" in live.http.get("/ready").text)
    response = live.http.post("/v1/completions", json=_BODY)
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) > 0
    error = response.json()["error"]
    assert error["type"] == "ServiceUnavailableError"
    assert "starting: loading weights" in error["message"]
    assert live.status("/v1/models") == 200
    hold.unlink()
    live.wait_until_ready()
    assert live.http.post("/v1/completions", json=_BODY).status_code == 200


def test_the_first_request_after_ready_knows_the_model(start_server: StartServer, monkeypatch: Any) -> None:
    """Here the engine is ready before the tokenizer is, and there is more to do before the start is over."""
    started: list[LiveServer] = []
    goes_on = threading.Event()
    load, go_on = ServedModel.load, Server._go_on

    def load_late(settings: ServerSettings, config: EngineConfig) -> ServedModel:
        wait_until(lambda: bool(started) and started[0].server.context.client.ready is not None)
        return load(settings, config)

    async def held(server: Server) -> None:
        await asyncio.to_thread(goes_on.wait, PATIENCE_S)
        await go_on(server)

    monkeypatch.setattr(ServedModel, "load", load_late)
    monkeypatch.setattr(Server, "_go_on", held)
    live = start_server(wait=False)
    started.append(live)
    wait_until(lambda: live.status("/ready") == 200)
    answer = live.http.post("/v1/completions", json={"prompt": "abc", "max_tokens": 3})
    goes_on.set()
    assert answer.status_code == 200, answer.text


def test_ready_tells_how_many_programs_follow_behind(start_server: StartServer) -> None:
    live = start_server()
    assert live.http.get("/ready").json() == {
        "status": "ready",
        "programs": {"ready": 2, "pending": 6, "failed": 1, "total": 9, "untuned": 0},
        "detail": "compiled 2 of 9 programs",
    }
    assert [live.metric("jserve:programs", state=state) for state in ("ready", "pending", "failed")] == [2, 6, 1]


def _post_in_thread(live: LiveServer, body: dict[str, Any]) -> tuple[threading.Thread, list[Any]]:
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(live.http.post("/v1/completions", json=body)))
    thread.start()
    live.wait_for(lambda: live.server.context.generator.num_open == 1)
    return thread, answers


def test_open_requests_finish_while_new_ones_are_refused(start_server: StartServer, tmp_path: Path) -> None:
    (hold := tmp_path / "hold").touch()
    live = start_server("--steps-held-by", str(hold), shutdown_timeout_s=PATIENCE_S)
    thread, answers = _post_in_thread(live, _BODY)
    live.begin_stop()
    live.wait_for(lambda: live.status("/ready") == 503)
    refused = live.http.post("/v1/completions", json=_BODY)
    assert refused.status_code == 503
    assert "shutting down" in refused.json()["error"]["message"]
    hold.unlink()
    thread.join(PATIENCE_S)
    assert answers[0].json()["usage"]["completion_tokens"] == 50
    live.join()
    assert live.error is None
    assert live.status("/health") == 0


def test_requests_that_take_too_long_are_cut_off(start_server: StartServer) -> None:
    live = start_server("--step-ms", "1000", shutdown_timeout_s=0.2)
    thread, answers = _post_in_thread(live, {**_BODY, "max_tokens": 240})
    live.begin_stop()
    thread.join(PATIENCE_S)
    live.join()
    assert answers[0].status_code == 503
    assert "shut down before" in answers[0].json()["error"]["message"]


def test_stop_while_loading(start_server: StartServer, tmp_path: Path) -> None:
    (hold := tmp_path / "hold").touch()
    live = start_server("--load-held-by", str(hold), wait=False)
    live.wait_for(lambda: live.status("/health") == 200)
    live.begin_stop()
    live.join()
    assert live.error is None
