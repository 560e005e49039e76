"""Processes that compile grammars and are lost: by the grammar's fault it is a 400, else the grammar is tried again."""

import os
import signal
from typing import Any

from jserve.api.supervisor.worker_process import WorkerProcess
from tests.api.live_server import LiveServer, StartServer

COMPLETIONS = "/v1/completions"


def ask(server: LiveServer, **fields: Any) -> Any:
    return server.http.post(COMPLETIONS, json={"prompt": "x", "max_tokens": 60, **fields})


def test_an_innocent_grammar_outlives_the_process_that_compiles_it(start_server: StartServer, monkeypatch: Any) -> None:
    server = start_server()
    kills = [2]
    exchange = WorkerProcess._exchange

    async def killed(self: WorkerProcess, request: bytes) -> bytes:
        """Each process is killed once its first frame is in, while `kills` lasts."""
        if request is not self._setup and "grammar" in self._module and kills[0]:
            kills[0] -= 1
            assert self._popen is not None
            os.kill(self._popen.pid, signal.SIGKILL)
        return await exchange(self, request)

    monkeypatch.setattr(WorkerProcess, "_exchange", killed)
    refused = ask(server, guided_choice=["a"])
    assert refused.status_code == 503, refused.text
    assert "killed twice" in refused.json()["error"]["message"]
    assert refused.headers["retry-after"]
    kills[0] = 1
    answered = ask(server, guided_choice=["a"])
    assert answered.status_code == 200, answered.text
    assert answered.json()["choices"][0]["text"] == "a"


def test_a_grammar_that_is_too_big_is_a_400(server: LiveServer) -> None:
    rules = "\n".join(f'r{number}: "x{number}"' for number in range(90_000))
    for fields in (
        {"guided_grammar": f"start: r0\n{rules}"},
        {"guided_regex": "x" * 900_000},
        {"guided_choice": [f"{number} {'x' * 90}" for number in range(9_000)]},
        {"structured_outputs": {"structural_tag": {"format": {"type": "const_string", "value": "x" * 2_000_000}}}},
        {"guided_json": {"enum": ["x" * 500_000 + str(number) for number in range(2)]}},
    ):
        answer = ask(server, **fields)
        assert answer.status_code in (200, 400), (answer.text[:500], str(fields)[:100])
        if answer.status_code == 400:
            assert len(answer.json()["error"]["message"]) < 2_000
    answer = ask(server, n=2048, temperature=1, guided_regex="(" + "ab|" * 50_000 + "c)")
    assert answer.status_code == 400, answer.text[:500]


def test_ten_thousand_labels_are_answered_with_one_of_them(server: LiveServer) -> None:
    labels = [f"label {number * 7919 % 100_000}" for number in range(10_000)]
    for seed in range(3):
        fields: dict[str, Any] = {"structured_outputs": {"choice": labels}, "temperature": 1, "seed": seed}
        answer = ask(server, **fields)
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["text"] in labels
