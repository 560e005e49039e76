"""The kernel benchmark runs, checks what it times, and on a GPU would really make every call it counts."""

import functools
import json

import jax
import jax.numpy as jnp
import pytest

from benchmarks import kernels as benchmark
from pallas_kernels.gpu_target import gpu_topology, why_unavailable


def test_benchmark_prints_json_with_figures_and_reasons(capsys):
    status = benchmark.main(["--match", "decode_smollm2_b16", "--check", "--seconds", "0.01", "--max-mib", "8"])
    results = {result["implementation"]: result for result in json.loads(capsys.readouterr().out)["results"]}
    assert status == 0
    assert results["xla"]["microseconds"] > 0
    assert 0 <= results["xla"]["error"] <= results["xla"]["tolerance"]
    if jax.default_backend() == "cpu":
        assert results["triton"]["skipped"] == "a GPU kernel, and this is a CPU"


def test_a_wrong_kernel_makes_the_status_1(capsys, monkeypatch):
    [kernel] = [kernel for kernel in benchmark.discover() if kernel.name == "paged_attention"]
    reference = kernel.reference
    wrong = benchmark.dataclasses.replace(
        kernel, implementations={"wrong": lambda *args, **static: reference(*args, **static) + 1}
    )
    monkeypatch.setattr(benchmark, "discover", lambda: (wrong,))
    assert benchmark.main(["--match", "decode_smollm2_b16", "--check", "--seconds", "0.01"]) == 1


def test_a_kernel_that_does_not_run_is_told_and_the_others_go_on(capsys, monkeypatch, tmp_path):
    def broken(*args, **static):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: shared memory")

    [kernel] = [kernel for kernel in benchmark.discover() if kernel.name == "paged_attention"]
    both = {"broken": broken, "right": kernel.reference}
    monkeypatch.setattr(benchmark, "discover", lambda: (benchmark.dataclasses.replace(kernel, implementations=both),))
    out = tmp_path / "checks.json"
    words = ["--match", "decode_smollm2_b16", "--check-only", "--out", str(out)]
    assert benchmark.main(words) == 1
    report = json.loads(out.read_text())
    results = {result["implementation"]: result for result in report["results"]}
    assert results["broken"]["failed"] == "RESOURCE_EXHAUSTED: shared memory"
    assert results["right"]["error"] <= results["right"]["tolerance"]
    assert results["right"]["microseconds"] is None
    assert report["copy_bytes_per_second"] is None
    assert benchmark.main([*words, "--budget", "-1"]) == 0
    assert {r["skipped"] for r in json.loads(out.read_text())["results"]} == {"no time was left of --budget -1"}


def test_no_matching_case_is_said_with_an_example(capsys):
    assert benchmark.main(["--match", "nosuch"]) == 2
    assert "names look like dense_matmul/bits_1_row" in capsys.readouterr().err


@pytest.mark.skipif(why_unavailable() is not None, reason=why_unavailable() or "")
def test_a_chain_of_calls_is_not_merged_or_dropped_by_the_compiler():
    device = jax.sharding.SingleDeviceSharding(gpu_topology("h200")[0])
    inputs = [(jax.ShapeDtypeStruct((2**20,), jnp.float32, sharding=device),)] * 5
    run = jax.jit(functools.partial(benchmark.chain, lambda x: x + 1))
    program = run.trace(*inputs).lower(lowering_platforms=("cuda",)).compile().as_text()
    assert program.split("ENTRY", 1)[1].count(" fusion(") == 5
