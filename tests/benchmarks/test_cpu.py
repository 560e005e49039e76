"""The comparison on a CPU, with servers that are a few lines long: who takes part, who is left out, who is stopped."""

import dataclasses
import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("aiohttp", reason="the load generator needs the `bench` extra")

from benchmarks.compare import (
    FIRST_S,
    Kind,
    estimate,
    label,
    measure_rounds,
    scenarios,
    summary,
    taking_part,
    with_others,
)
from benchmarks.cpu import add_second_start
from benchmarks.parts import FailedError, SkippedError, Visit, do, stop
from benchmarks.servers import Field, Forms, Running, Server
from benchmarks.speed_table import find
from jserve.commands.bench.load import Outcome, Target
from jserve.commands.bench.metrics import RunMetrics, measure
from jserve.commands.bench.report import Run, machine, ratios
from tests.patience import PATIENCE_S, wait_until

STUB = """
import http.server, json, sys
class Stub(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer({"data": [{"id": "stub-model"}]})
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer({"choices": [{"text": "a"}]})
    def answer(self, body):
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Stub).serve_forever()
"""


@pytest.fixture(autouse=True)
def _however_full_this_machine_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.servers.ROOM_GIB", 0.0)


@pytest.fixture
def visit(tmp_path: Path) -> Visit:
    return Visit(tmp_path, True, tmp_path / "model.gguf", time.monotonic() + 5 * PATIENCE_S)


@pytest.fixture
def forms(tmp_path: Path) -> Forms:
    return Forms(tmp_path / "hf", tmp_path / "model.gguf")


def server(tmp_path: Path, name: str, code: str) -> Server:
    script = tmp_path / f"{name}.py"
    script.write_text(f"#!{sys.executable}\n{textwrap.dedent(code)}")
    script.chmod(0o755)
    return Server(name, name, "float32", ("{port}",), str(script))


def test_server_is_ready_with_its_model_and_gone_after_the_context(tmp_path: Path, visit: Visit, forms: Forms) -> None:
    with Field(visit) as field:
        running = field.add(server(tmp_path, "good", STUB), forms)
        assert running is not None
        assert running.target.model == "stub-model"
        assert psutil.pid_exists(running.process.pid)
    assert running.process.poll() is not None


def test_server_is_stopped_when_a_part_fails(tmp_path: Path, visit: Visit, forms: Forms) -> None:
    def fail() -> None:
        with Field(visit) as field:
            running = field.add(server(tmp_path, "good", STUB), forms)
            assert running is not None
            pids.append(running.process.pid)
            raise KeyboardInterrupt

    pids: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        fail()
    assert not psutil.pid_exists(pids[0])


def test_server_that_ends_early_is_left_out_with_its_last_words(tmp_path: Path, visit: Visit, forms: Forms) -> None:
    with Field(visit) as field:
        assert field.add(server(tmp_path, "bad", "raise SystemExit('no such instruction')"), forms) is None
        assert "no such instruction" in field.left_out["bad"]
        assert not field.running


def test_server_that_never_answers_is_left_out_at_the_limit(tmp_path: Path, visit: Visit, forms: Forms) -> None:
    with Field(visit) as field:
        assert field.add(server(tmp_path, "mute", "import time; time.sleep(600)"), forms, limit=0.5) is None
        assert "not ready at its time limit" in field.left_out["mute"]


def test_server_without_room_in_memory_is_left_out(
    tmp_path: Path, visit: Visit, forms: Forms, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.servers.ROOM_GIB", 1e6)
    with Field(visit) as field:
        assert field.add(server(tmp_path, "good", STUB), forms) is None
        assert "GiB of memory were free" in field.left_out["good"]


def test_stop_ends_children_that_were_left_behind(visit: Visit) -> None:
    code = "import subprocess, sys; print(subprocess.Popen(['sleep', '600']).pid, flush=True)"
    process = visit.start("parent", [sys.executable, "-c", code])
    process.wait()
    child = int(visit.log("parent").read_text())
    assert psutil.pid_exists(child)
    stop(process)
    try:
        wait_until(lambda: not is_running(child))
    finally:
        with suppress(ProcessLookupError):
            os.kill(child, 9)


def is_running(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


@pytest.mark.parametrize(
    ("error", "status"), [(SkippedError("no GPU"), "skipped"), (FailedError("oh"), "failed"), (KeyError("k"), "failed")]
)
def test_part_that_goes_wrong_is_an_outcome_with_its_reason(visit: Visit, error: Exception, status: str) -> None:
    def part(_: Visit) -> tuple[str, ...]:
        raise error

    outcome = do("part", part, visit)
    assert outcome.status == status
    assert str(error) in outcome.reason


def run(target: str, index: int, rate: float, flags: tuple[str, ...] = ()) -> Run:
    outcome = Outcome(asked_tokens=10, due=0.0, text_times=[0.1, 0.5], ended=10 / rate, output_tokens=10)
    metrics: RunMetrics = measure([outcome], streamed=True)
    return Run(target, "128 c=8", index, dataclasses.replace(metrics, flags=flags))


def test_flagged_round_is_kept_but_takes_no_part_in_the_medians() -> None:
    runs = [run("jserve", 0, 20), run("vllm", 0, 10), run("jserve", 1, 90, ("others took 50%",)), run("vllm", 1, 10)]
    medians = summary(runs, ratios(runs))
    assert find(medians, "128/c=8/jserve/output_tokens_per_s") == pytest.approx(20)
    assert find(medians, "128/c=8/jserve/ratio_to/vllm") == pytest.approx(2)
    assert find(medians, "128/c=8/jserve/flagged") == 1
    assert find(medians, "128/c=8/vllm/flagged") == 0


def targets(names: Sequence[str], url: str = "") -> list[Running]:
    return [
        Running(Server(name, name, "float32", ()), url, (), Popen("true"), Target(name, url, "m"), 0.0, "", "")
        for name in names
    ]


class Popen(subprocess.Popen[Any]):
    """A process that is over."""

    def __init__(self, command: str) -> None:
        super().__init__([command])
        self.wait()


def test_scenario_without_time_is_left_out_with_a_word(tmp_path: Path) -> None:
    visit = Visit(tmp_path, True, tmp_path / "model.gguf", time.monotonic())
    todo = scenarios([Kind("128", "title", 128, 8, 0, ((1, 1), (8, 8)), 1)], targets(["jserve"]), 0)
    left_out: dict[str, str] = {}
    assert measure_rounds(todo, 1, visit, None, left_out) == []
    assert list(left_out) == [f"{label(scenario)} round 1" for scenario in todo]


def test_run_that_the_end_of_the_time_cuts_off_is_no_result(
    tmp_path: Path, visit: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.compare.FIRST_S", 0.1)
    """The server answers when it is asked whether it is ready, and to warm up; and never after that."""
    count = "Stub.posts = getattr(Stub, 'posts', 0) + 1; import time; time.sleep(600 * (Stub.posts > 2)); "
    with Field(visit) as field:
        running = field.add(
            server(tmp_path, "jserve", STUB.replace("self.rfile.read", count + "self.rfile.read")),
            Forms(tmp_path, tmp_path),
        )
        assert running is not None
        left = iter((100.0, 0.5, 0.0))  # before the warm-up, before the run, after it
        monkeypatch.setattr(Visit, "left", lambda _: next(left))
        (scenario,) = scenarios([Kind("128", "title", 16, 2, 0, ((1, 1),), 1)], [running], 0)
        left_out: dict[str, str] = {}
        assert measure_rounds([scenario], 1, visit, None, left_out) == []
    assert list(left_out) == ["128 c=1 round 1 jserve"]
    assert "no complete answer within" in left_out["128 c=1 round 1 jserve"]


def test_first_round_is_of_jserve_and_the_peers_that_targets_name() -> None:
    kind = Kind("128", "title", 128, 8, 0, ((1, 1),), 1, ("vllm",))
    (scenario,) = scenarios([kind], targets(["jserve", "jserve-bf16", "vllm", "llama"]), 0)
    assert [target.name for target in taking_part(scenario, 0)] == ["jserve", "jserve-bf16", "vllm"]
    assert [target.name for target in taking_part(scenario, 1)] == ["llama", "vllm", "jserve-bf16", "jserve"]


def test_a_load_is_expected_to_need_what_the_one_before_needed_for_each_prompt() -> None:
    kind = Kind("long", "title", 1500, 8, 0, ((1, 2), (8, 8), (32, 32)), 1)
    one, eight, many = scenarios([kind], targets(["jserve", "vllm"]), 0)
    jserve, vllm = one.plan.targets
    assert estimate(one, jserve, {}) == FIRST_S
    assert estimate(eight, jserve, {(label(one), "jserve"): 50.0}) == 200.0
    assert estimate(eight, vllm, {(label(one), "jserve"): 50.0}) == 200.0
    assert estimate(many, jserve, {(label(one), "jserve"): 50.0, (label(eight), "jserve"): 211.0}) == 844.0
    assert estimate(many, jserve, {(label(many), "jserve"): 7.0}) == 7.0
    assert estimate(many, jserve, {("other c=8", "jserve"): 1000.0}) == FIRST_S


def test_loads_that_are_measured_again_replace_their_results_alone() -> None:
    def result(when: str, loads: dict[str, int], here: dict[str, object]) -> dict[str, Any]:
        kinds = dict.fromkeys(load.split(" ")[0] for load in loads)
        by_kind: dict[str, Any] = {name: {} for name in kinds}
        for load, value in loads.items():
            by_kind[load.split(" ")[0]][load.split(" ")[1]] = value
        return {
            "time": when,
            "machine": here,
            "kinds": [{"name": name, "loads": [(1, 2), (8, 8)]} for name in kinds],
            "ratios": [{"load": load, "median": value} for load, value in loads.items()],
            "runs": [{"load": load, "metrics": value} for load, value in loads.items()],
            "summary": by_kind,
        }

    here = machine()
    first = result("monday", {"128 c=1": 1, "1500 c=1": 2, "1500 c=8": 3}, here)
    second = {**with_others(result("tuesday", {"1500 c=1": 4}, here), first), "time": "tuesday"}
    assert second["summary"] == {"128": {"c=1": 1}, "1500": {"c=1": 4, "c=8": 3}}
    assert [run["metrics"] for run in second["runs"]] == [1, 3, 4]
    assert second["measured_before"] == {"128 c=1": "monday", "1500 c=8": "monday"}
    third = with_others(result("friday", {"128 c=1": 5, "128 c=8": 6}, here), second)
    assert third["measured_before"] == {"1500 c=8": "monday", "1500 c=1": "tuesday"}
    assert third["summary"] == {"128": {"c=1": 5, "c=8": 6}, "1500": {"c=1": 4, "c=8": 3}}
    assert [ratio["median"] for ratio in third["ratios"]] == [3, 4, 5, 6]
    elsewhere = {**first, "machine": {**here, "instructions": ["avx1024"]}}
    assert with_others(result("sunday", {"1500 c=1": 7}, here), elsewhere)["summary"] == {"1500": {"c=1": 7}}


def test_start_of_a_resident_server_counts_as_its_second(tmp_path: Path) -> None:
    file = tmp_path / "startup.json"
    file.write_text(json.dumps({"seconds": {"vllm": {"cold": {"first_token_s": 99.0}, "second": None}}}))
    (running,) = targets(["vllm"])
    running.ready_s = 80.5
    add_second_start(file, running)
    starts = json.loads(file.read_text())
    assert find(starts, "seconds/vllm/second/first_token_s") == 80.5
    assert find(starts, "seconds/vllm/cold/first_token_s") == 99.0
    assert starts["resident"] == ["vllm"]


def test_servers_of_a_part_that_is_stopped_at_its_limit_are_stopped_too(visit: Visit) -> None:
    script = [sys.executable, "-m", "benchmarks.host_ceiling", "--streams", "2", "--tokens", "8"]
    process = visit.start("ceiling", script)
    parent = psutil.Process(process.pid)
    wait_until(lambda: parent.children(recursive=True) or process.poll() is not None)
    children = parent.children(recursive=True)
    assert children, visit.log("ceiling").read_text()
    stop(process)
    wait_until(lambda: not any(is_running(child.pid) for child in children))
