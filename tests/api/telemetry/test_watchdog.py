"""A decode that stalls is told in the log, once, and so is its end."""

import logging
import threading
import time
from pathlib import Path

import pytest

from tests.api.live_server import STOP, StartServer
from tests.patience import PATIENCE_S


def test_stall_is_logged_when_it_begins_and_when_it_ends(
    start_server: StartServer, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    (hold := tmp_path / "hold").touch()
    live = start_server("--stall-token", str(STOP), "--stall-held-by", str(hold), "--eos", "-1", stall_timeout_s=0.3)
    body = {"prompt": [STOP], "max_tokens": 1}
    with caplog.at_level(logging.WARNING, "jserve.api.telemetry.watchdog"):
        thread = threading.Thread(target=lambda: live.http.post("/v1/completions", json=body))
        thread.start()
        live.wait_for(lambda: live.status("/health/decode") == 503)
        assert live.status("/health") == live.status("/ready") == 200
        live.wait_for(lambda: "decode has stalled: 1 sequences are open" in caplog.text)
        hold.unlink()
        thread.join(PATIENCE_S)
        live.wait_for(lambda: "decode is no longer stalled, after " in caplog.text)
    assert live.status("/health/decode") == 200
    levels = [record.levelname for record in caplog.records if record.name == "jserve.api.telemetry.watchdog"]
    assert levels == ["ERROR", "WARNING"]


def test_an_idle_engine_does_not_stall(start_server: StartServer) -> None:
    live = start_server(stall_timeout_s=0.05)
    live.complete("abc", max_tokens=1)
    live.wait_for(lambda: live.server.context.client.seconds_silent == 0)
    time.sleep(0.2)
    assert live.status("/health/decode") == 200
