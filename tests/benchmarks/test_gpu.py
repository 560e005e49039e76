"""The visit to a GPU, tried on a CPU: its parts, its limits, and the table that ends it. The figures are made up."""

import ast
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import packages_distributions
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import gpu, step_time, visit_cases
from benchmarks.archive import MAX_FILES, Archive
from benchmarks.device_trace import Trace, read_trace, share_of_gaps
from benchmarks.gpu_plan import LIMITS
from benchmarks.gpu_targets import PREDICTED, Row, print_targets, targets
from benchmarks.parts import ROOT
from benchmarks.presets import PRESETS
from benchmarks.tiny_model import write_random_model
from benchmarks.xla_flags import known_flags
from jserve.commands.inspect import inspect
from jserve.config import EngineConfig, read_model_config
from jserve.runtime.memory import MemoryPlan
from jserve.runtime.shapes import EngineShape
from pallas_kernels import discover

GRAPH_EVENTS = ["command_buffer::create", "command_buffer::update", *["command_buffer::execute"] * 3, "thunk::execute"]


def run(folder: Path, *words: str) -> tuple[int, dict[str, Any]]:
    status = gpu.main(["--tiny", "--out", str(folder), *words])
    return status, archived(folder / gpu.ARCHIVE)


def archived(path: Path) -> dict[str, Any]:
    """The results in an archive, which is all that a visit leaves."""
    with tarfile.open(path) as archive:
        assert len(archive.getnames()) <= MAX_FILES
        assert "logs.txt" in archive.getnames()
        results = archive.extractfile("results.json")
        assert results is not None
        content: dict[str, Any] = json.load(results)
    return content


def test_parts_come_in_order_and_fit_eight_minutes_together() -> None:
    assert list(gpu.PARTS) == list(LIMITS)
    assert sum(LIMITS.values()) <= 480


def test_cases_of_a_visit_are_there_and_of_every_kernel_that_has_one_for_a_gpu() -> None:
    cases = visit_cases.chosen(visit_cases.CASES)
    assert len(cases) == len(set(visit_cases.CASES))
    wanted = {kernel.name for kernel in discover() if "triton" in kernel.implementations}
    assert {kernel.name for kernel, _ in cases} == wanted
    assert sum(case.bytes_moved for _, case in cases) < 12 << 30, "inputs must be made in a minute"


def test_inputs_of_a_visit_are_drawn_once_and_repeated() -> None:
    with visit_cases.repeating():
        numbers = np.random.default_rng(3).standard_normal((3, visit_cases.BLOCK), np.float32)
        few = np.random.default_rng(3).standard_normal(1000)
    assert numbers.dtype == np.float32
    assert (numbers[0] == numbers[2]).all()
    assert 0.99 < numbers.std() < 1.01
    assert (few == np.random.default_rng(3).standard_normal(1000)).all()


def test_trial_on_a_cpu_checks_and_tells_what_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, results = run(tmp_path, "--only", "cases,serving-transformers")
    summary = results["summary"]
    assert status == 0, summary
    cases, peer = summary["parts"]
    assert (cases["status"], peer["status"]) == ("done", "skipped")
    assert cases["figures"][0].startswith("3 right")
    assert {result["case"] for result in results["kernels"]["results"]} == {
        name.split("/")[1] for name in visit_cases.TINY
    }
    assert all(row["met"] is None for row in summary["targets"] if "streams" in row["name"])
    out = capsys.readouterr().out
    assert "not measured" in out
    assert "none of these figures means anything" in out


@pytest.mark.slow
def test_whole_trial_from_a_bare_copy_of_the_tree(tmp_path: Path) -> None:
    """As on a visit: what git has and nothing else, in another folder, and no flags but --tiny."""
    tree, out = tmp_path / "tree", tmp_path / "out"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tree / name)
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "JAX_PLATFORMS")} | {"OUT": str(out)}
    command = [sys.executable, "-m", "benchmarks.gpu", "--tiny", "--minutes", "25"]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    results = archived(out / gpu.ARCHIVE)
    assert done.returncode == 0, (results["summary"]["parts"], done.stderr[-2000:])
    assert [path.name for path in out.iterdir()] == [gpu.ARCHIVE]
    parts = {part["part"]: part["status"] for part in results["summary"]["parts"]}
    skipped = ("target", "serving-transformers")
    assert parts == {name: "skipped" if name in skipped else "done" for name in gpu.PARTS}
    steps = [(step["kind"], step["rows"], step["context"]) for step in results["steps"]["steps"]]
    assert steps == [("decode", 4, 32), ("decode", 1, 32), ("prefill", 1, 32)]


def test_a_killed_visit_leaves_what_it_had_measured(tmp_path: Path) -> None:
    folder, path = tmp_path / "folder", tmp_path / "out" / "gpu.tar.gz"
    folder.mkdir()
    with Archive(folder, path) as kept:
        (folder / "kernels.json").write_text('{"results": [1]}')
        (folder / "cases.log").write_text("one case\n")
        kept.save()
        assert archived(path) == {"kernels": {"results": [1]}}
        (folder / "kernels.json").write_text('{"results": [1, 2')
        kept.save()
        assert archived(path) == {"kernels": None}
        (folder / "kernels.json").write_text('{"results": [1, 2]}')
        for index in range(2 * MAX_FILES):
            (folder / f"{index}.pbtxt").touch()
    assert archived(path) == {"kernels": {"results": [1, 2]}}


def test_what_a_visit_imports_is_on_the_machine_or_carried() -> None:
    """The machine has no network. Imports at the top of files, of all that the server and the benchmarks consist of."""
    carried = set(re.search(r"PACKAGES=\((.*?)\n\)", (ROOT / "benchmarks/carry.sh").read_text(), re.DOTALL)[1].split())  # type: ignore[index]
    there = set((Path(__file__).parent / "visit_machine.txt").read_text().split())
    names = packages_distributions()
    missing: dict[str, str] = {}
    files = [*ROOT.glob("jserve/**/*.py"), *ROOT.glob("pallas_kernels/**/*.py")]
    files += [ROOT / f"benchmarks/{name}.py" for name in VISIT_MODULES]
    for file in files:
        for module in top_level_imports(file) - sys.stdlib_module_names - {"jserve", "pallas_kernels", "benchmarks"}:
            packages = {name.lower().replace("_", "-") for name in names.get(module, [module])}
            if not packages & (there | carried):
                missing[module] = str(file.relative_to(ROOT))
    assert not missing


VISIT_MODULES = (
    "gpu",
    "gpu_plan",
    "gpu_serving",
    "gpu_targets",
    "parts",
    "visit_cases",
    "kernels",
)
VISIT_MODULES += (
    "step_time",
    "step_loop",
    "device_trace",
    "archive",
    "xla_flags",
    "tiny_model",
    "presets",
    "tune",
)


def top_level_imports(file: Path) -> set[str]:
    """First names of the modules that a file imports when it is imported."""
    names: set[str] = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_what_is_said_of_steps_is_json_whatever_the_model_has() -> None:
    """Sets of layers among it, which once cost all figures of a visit's steps."""
    config = read_model_config({**PRESETS["tiny"], "architectures": ["LlamaForCausalLM"]}, source="config.json")
    started: Any = SimpleNamespace(
        config=config,
        shape=EngineShape(2, 16, 64, 4, 8, 512),
        plan=MemoryPlan(1, 1, 1, 1, 1, 1, 1),
        device="cpu",
        build=SimpleNamespace(dtype="float32"),
        seconds={},
    )
    limits = step_time.DeviceLimits(1.0, 1.0, "float32")
    assert json.loads(json.dumps(step_time.report(started, limits, [], [])))["model"]["hidden_size"] == 256


def test_flags_that_the_installed_version_does_not_know_are_left_out() -> None:
    assert known_flags({"xla_gpu_autotune_level": "0", "xla_gpu_no_such_flag": "1"}) == "--xla_gpu_autotune_level=0"


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
        *[{**kernel(3, 1, ts, 9), "name": name} for ts, name in enumerate(GRAPH_EVENTS)],
    ]
    path = tmp_path / "plugins" / "profile" / "now" / "host.trace.json.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress(json.dumps({"traceEvents": events}).encode()))
    assert read_trace(tmp_path) == Trace(pytest.approx(0.1), graph_updates=2, graph_launches=3)  # type: ignore[arg-type]
    assert read_trace(tmp_path / "nothing") is None


def test_model_of_random_weights_is_one_that_jserve_runs(tmp_path: Path) -> None:
    fields = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    write_random_model(tmp_path, {**fields, "num_key_value_heads": 2, "architectures": ["LlamaForCausalLM"]})
    inspected = inspect(EngineConfig(model=str(tmp_path)), "h200")
    assert (inspected.runs, inspected.problem, inspected.dtype) == (True, None, "bfloat16")
    assert inspected.parameters == 2 * 1024 * 64 + 64 + 2 * (2 * 64 + 64 * 16 * 8 + 64 * 64 + 3 * 64 * 96)
