"""The visit to a GPU, tried on a CPU: its parts, its limits, and the table that ends it. The figures are made up."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu
from benchmarks.device_trace import idle_share, share_of_gaps
from benchmarks.gpu_targets import PREDICTED, Row, print_targets, targets
from benchmarks.tiny_model import write_random_model
from jserve.commands.inspect import inspect
from jserve.config import EngineConfig

PARTS = ["target", "kernel-checks", "model-tests", "limits", "kernels", "steps"]
PARTS += ["serving", "serving-transformers", "serving-vllm", "startup"]


def run(folder: Path, *words: str) -> tuple[int, dict[str, Any]]:
    status = gpu.main(["--tiny", "--out", str(folder), *words])
    return status, json.loads((folder / "summary.json").read_text())


def test_parts_come_in_order_and_fit_ten_minutes_together() -> None:
    assert list(gpu.PARTS) == list(gpu.LIMITS) == PARTS
    assert sum(gpu.LIMITS.values()) <= 600


def test_trial_on_a_cpu_checks_and_tells_what_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, summary = run(tmp_path, "--only", "kernel-checks,serving-vllm")
    assert status == 0
    checks, vllm = summary["parts"]
    assert (checks["status"], vllm["status"]) == ("done", "skipped")
    assert checks["figures"][0].startswith("3 right")
    assert all(row["met"] is None for row in summary["targets"])
    out = capsys.readouterr().out
    assert "not measured" in out
    assert "none of these figures means anything" in out


@pytest.mark.slow
def test_whole_trial_on_a_cpu(tmp_path: Path) -> None:
    status, summary = run(tmp_path, "--minutes", "25")
    assert status == 0, summary["parts"]
    steps = [figure.split(":")[0] for figure in summary["parts"][5]["figures"]]
    assert steps == ["decode 4 at 32", "decode 1 at 32", "decode 4 at 64", "decode 1 at 64", "prefill 32 at 32"]
    parts = {part["part"]: part["status"] for part in summary["parts"]}
    done = ("kernel-checks", "limits", "kernels", "steps", "serving", "startup")
    assert parts == {name: "done" if name in done else "skipped" for name in PARTS}
    assert not (tmp_path / "served-model").exists()


def test_without_a_gpu_it_says_so_and_knows_its_parts(capsys: pytest.CaptureFixture[str]) -> None:
    if gpu.gpu_names():
        pytest.skip("a GPU is here")
    assert gpu.main([]) == 2
    assert "--tiny tries this command on a CPU" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        gpu.main(["--tiny", "--only", "nosuch"])


def kernel(case: str, implementation: str, of_copy: float, of_matmul: float, name: str = "paged_attention") -> object:
    shares = {"of_copy": of_copy, "of_matmul": of_matmul, "microseconds": 100.0}
    return {"kernel": name, "case": case, "implementation": implementation, **shares}


def step(rows: int, device_ms: float, memory_ms: float, gaps: float | None) -> object:
    times = {"device_ms": device_ms, "memory_ms": memory_ms, "gaps": gaps, "skipped": None}
    return {"kind": "decode", "rows": rows, "tokens": rows, "context": 1024, **times}


def serving(**rates: float) -> object:
    return {
        "runs": [{"load": f"c={c[1:]}", "metrics": {"output_tokens_per_s": rate}} for c, rate in rates.items()],
    }


def test_targets_are_judged_by_the_worst_case_of_the_best_implementation(tmp_path: Path) -> None:
    results = [
        kernel("llama3_8b_decode_64x8k", "triton", 0.9, 0.1),
        kernel("llama3_8b_decode_64x8k", "xla", 0.2, 0.1),
        kernel("llama3_8b_decode_1x8k", "triton", 0.86, 0.1),
        kernel("llama3_8b_tp4_prefill_8k", "triton", 0.1, 0.5),
        kernel("llama_3_1_8b_qkv_int4_1", "triton", 0.8, 0.1, "quant_matmul"),
        kernel("llama_3_1_8b_qkv_int4_2048", "triton", 0.1, 0.6, "quant_matmul"),
    ]
    files = {
        "kernels": {"results": results},
        "steps": {"steps": [step(1, 4.0, 3.5, 0.01), step(256, 16.0, 11.0, 0.05)]},
        "serving": serving(c1=300.0, c32=6000.0),
        "serving-transformers": serving(c1=100.0, c32=4000.0),
    }
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    rows = {row.name: row for row in targets(tmp_path)}
    assert [(row.measured, row.is_met) for row in rows.values()] == [
        (0.86, True),
        (0.5, False),
        (0.8, True),
        (3.5 / 4.0, True),
        (11.0 / 16.0, False),
        (0.05, False),
        (3.0, True),
        (1.5, False),
        *[(None, None)] * 4,
    ]
    decode = next(row for row in rows.values() if "batch 1 " in row.name)
    assert decode.predicted == pytest.approx(4.0 / 4.1, rel=0.02)
    assert all(row.predicted for row in list(rows.values())[:3]), "a case is missing from predicted.json"


def test_targets_of_an_empty_folder_are_not_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = targets(tmp_path)
    assert [row.is_met for row in rows] == [None] * 12
    print_targets([*rows, Row("x", 0.03, True, 0.01), Row("y", 2.0, False, 1.0)])
    out = capsys.readouterr().out
    assert out.count("not measured") == 12
    assert "at most 3%" in out
    assert "NO" in out


def test_a_step_is_told_beside_its_prediction() -> None:
    times = {"device_ms": 5.0, "wall_ms": 5.5, "of_limit": 0.8, "gaps": 0.021, "host_ms": {"pack": 0.2, "collect": 9}}
    decode = {"kind": "decode", "rows": 1, "tokens": 1, "context": 1024, "skipped": None, **times}
    predicted = json.loads(PREDICTED.read_text())
    assert gpu.step_line(decode, predicted).startswith("decode 1 at 1024: device 5.00 ms of 4.10 predicted = 80%")
    assert "gaps 2.1%, host 0.20 ms" in gpu.step_line(decode, predicted)
    prefill = {**decode, "kind": "prefill", "tokens": 4096, "context": 4096, "gaps": None}
    assert " predicted = " in gpu.step_line(prefill, predicted)
    assert "predicted" not in gpu.step_line({**decode, "rows": 3}, predicted)


def test_gaps_are_the_time_without_a_kernel_on_any_stream_within_a_burst() -> None:
    assert share_of_gaps([(0, 10), (5, 20), (25, 40), (5000, 5010)]) == pytest.approx(5 / 50)
    assert share_of_gaps([]) is None


def test_trace_is_read_from_the_streams_of_the_first_gpu(tmp_path: Path) -> None:
    def meta(kind: str, pid: int, tid: int, name: str) -> dict[str, Any]:
        return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}}

    def kernel(pid: int, tid: int, ts: float, dur: float) -> dict[str, Any]:
        return {"ph": "X", "name": "k", "pid": pid, "tid": tid, "ts": ts, "dur": dur}

    events = [
        meta("process_name", 1, 0, "/device:GPU:0"),
        meta("process_name", 2, 0, "/device:GPU:1"),
        meta("process_name", 3, 0, "/host:CPU"),
        meta("thread_name", 1, 7, "Stream #7(Compute)"),
        meta("thread_name", 1, 8, "XLA Modules"),
        kernel(1, 7, 0, 30),
        kernel(1, 7, 40, 60),
        kernel(1, 8, 0, 100),
        kernel(2, 7, 0, 100),
        kernel(3, 1, 0, 100),
    ]
    path = tmp_path / "plugins" / "profile" / "now" / "host.trace.json.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress(json.dumps({"traceEvents": events}).encode()))
    assert idle_share(tmp_path) == pytest.approx(0.1)
    assert idle_share(tmp_path / "nothing") is None


def test_model_of_random_weights_is_one_that_jserve_runs(tmp_path: Path) -> None:
    fields = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    write_random_model(tmp_path, {**fields, "num_key_value_heads": 2, "architectures": ["LlamaForCausalLM"]})
    inspected = inspect(EngineConfig(model=str(tmp_path)), "h200")
    assert (inspected.runs, inspected.problem, inspected.dtype) == (True, None, "bfloat16")
    assert inspected.parameters == 2 * 1024 * 64 + 64 + 2 * (2 * 64 + 64 * 16 * 8 + 64 * 64 + 3 * 64 * 96)
