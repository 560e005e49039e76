"""A worker that is lost: a job that somebody else's kill interrupted is done in a new one."""

import asyncio
import os
import pickle
import signal

import pytest

from jserve.api.supervisor.worker_process import WorkerDiedError, WorkerLostError, WorkerProcess
from tests.api.live_server import LiveServer, StartServer

_MODULE = "tests.api.supervisor.odd_worker"
"""Answers a job with its process id; the job "die" ends it, "die once FILE" too if FILE is not there yet."""


def _run(*jobs: str) -> list[bytes | Exception]:
    async def call() -> list[bytes | Exception]:
        worker = WorkerProcess(_MODULE, pickle.dumps(None), 60.0)
        answers: list[bytes | Exception] = []
        try:
            for job in jobs:
                try:
                    answers.append(await worker.call(pickle.dumps(job)))
                except WorkerLostError as error:
                    answers.append(error)
        finally:
            worker.stop()
        return answers

    return asyncio.run(call())


def test_a_job_whose_process_ends_once_is_done_in_a_new_one(tmp_path: object) -> None:
    before, done, after = _run("pid", f"die once {tmp_path}/died", "pid")
    assert isinstance(done, bytes)
    assert before != done == after


def test_a_job_that_ends_every_process_is_given_up_after_two() -> None:
    dead, after = _run("die", "pid")
    assert isinstance(dead, WorkerDiedError)
    assert isinstance(after, bytes)


def test_a_template_worker_that_is_killed_harms_no_request(start_server: StartServer) -> None:
    live = start_server()
    live.chat("abc", max_tokens=1)
    for _ in range(3):
        os.kill(_worker_pid(live), signal.SIGKILL)
        assert live.chat("abc", max_tokens=2)["usage"]["completion_tokens"] == 2


def test_one_that_cannot_be_kept_alive_is_a_503(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    live = start_server()
    live.chat("abc", max_tokens=1)
    worker = live.server.context.loaded_model.renderer._processes[False]  # type: ignore[union-attr]

    async def exchange(request: bytes) -> bytes:
        raise asyncio.IncompleteReadError(b"", 4)

    monkeypatch.setattr(worker, "_exchange", exchange)
    refused = live.http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "abc"}]})
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) > 0
    monkeypatch.undo()
    live.chat("abc", max_tokens=1)


def _worker_pid(live: LiveServer) -> int:
    popen = live.server.context.loaded_model.renderer._processes[False]._popen  # type: ignore[union-attr]
    assert popen is not None
    return popen.pid
