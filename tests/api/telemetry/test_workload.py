"""`--record-workload`: the lines that `jserve record` would write, with the server's own counts and no text."""

from pathlib import Path

from jserve.api.call import Call
from jserve.api.telemetry.workload import ServedWorkload, read_trace
from jserve.commands.workload.statistics import measure
from tests.api.live_server import StartServer

HEADERS = {"authorization": "Bearer sk-secret"}


def test_each_request_that_gave_work_has_a_line(start_server: StartServer, tmp_path: Path) -> None:
    path = tmp_path / "workload.jsonl"
    live = start_server(api_keys=("sk-secret", "sk-other"), record_workload=path)
    live.http.post("/v1/completions", json={"prompt": "sesame", "max_tokens": 3}, headers=HEADERS)
    live.http.post("/v1/completions", json={"prompt": "sesame seed", "max_tokens": 3, "stream": True}, headers=HEADERS)
    other = {"authorization": "Bearer sk-other"}
    live.http.post("/v1/completions", json={"prompt": ["open", "sesame"], "max_tokens": 2, "n": 2}, headers=other)
    live.http.post("/v1/embeddings", json={"input": "sesame"}, headers=HEADERS)
    live.http.post("/v1/completions", json={"prompt": "sesame", "temperature": -1}, headers=HEADERS)
    live.http.post("/v1/completions", json={"prompt": "sesame"})
    live.http.get("/health")
    whole, streamed, several, embedded = read_trace(path)
    assert (whole.input_length, whole.output_length, whole.max_tokens, whole.status) == (6, 3, 3, 200)
    assert (whole.model, whole.endpoint, whole.stream, whole.ttft_ms) == ("tiny", "/v1/completions", False, None)
    assert streamed.stream
    assert 0 < (streamed.ttft_ms or 0) <= (streamed.e2e_ms or 0)
    assert (several.input_length, several.output_length) == (10, 8)
    assert embedded.output_length == 0
    assert whole.session_id == streamed.session_id == embedded.session_id != several.session_id
    assert 0 <= whole.timestamp <= streamed.timestamp <= several.timestamp
    assert not any(each.estimated for each in (whole, streamed, several, embedded))
    text = path.read_text()
    assert not any(word in text for word in ("sesame", "sk-secret", "sk-other"))


def test_prompts_that_begin_alike_have_the_same_first_blocks(tmp_path: Path) -> None:
    path = tmp_path / "workload.jsonl"
    workload = ServedWorkload(path, "m")
    common = list(range(1024))
    for prompt in ([*common, 1], [*common, 2], [9, *common], common[:5]):
        workload.write(Call(prompts=[prompt], num_prompt=len(prompt)), 200)
    workload.write(Call(), 200)
    workload.close()
    first, second, third, short = (each.hash_ids for each in read_trace(path))
    assert (len(first), len(second), len(third), len(short)) == (3, 3, 3, 1)
    assert first[:2] == second[:2]
    assert len({first[2], second[2], *third, *first[:2], *short}) == 8


def test_a_report_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "workload.jsonl"
    workload = ServedWorkload(path, "m")
    for _ in range(3):
        workload.write(Call(prompts=[[1, 2]], num_prompt=2), 200)
    workload.close()
    assert measure(list(read_trace(path)))


def test_a_full_disk_costs_lines_and_no_answer(start_server: StartServer) -> None:
    live = start_server(record_workload=Path("/dev/full"))
    assert live.complete("sesame", max_tokens=3)["choices"][0]["text"]
