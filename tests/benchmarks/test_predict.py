"""Predictions are what a person gets with a pencil, and the committed files are what the formulae give today."""

import json
from dataclasses import replace

import pytest

from benchmarks.predict import (
    BF16,
    FP8,
    H200,
    INT4,
    RESULTS,
    Device,
    decode,
    fits,
    kv_bytes,
    limit,
    prefill,
    report,
    weights,
)
from benchmarks.predicted_tables import find, markdown
from benchmarks.presets import PRESETS
from jserve.config import ModelConfig, read_model_config
from jserve.quant.on_load import METHODS


def shape(name: str) -> ModelConfig:
    return read_model_config(PRESETS[name], source=name)


LLAMA_8B, LLAMA_70B = shape("llama-3.1-8b"), shape("llama-3.1-70b")
PLAIN: Device = limit()
"""The data sheet's rates, all of them reached."""


@pytest.mark.parametrize(("config", "parameters"), [(LLAMA_8B, 8_030_261_248), (LLAMA_70B, 70_553_706_496)])
def test_parameters_are_as_many_as_the_published_checkpoint_has(config: ModelConfig, parameters: int) -> None:
    assert weights(config, BF16).total == 2 * parameters


def test_8b_in_bf16_at_batch_1_takes_the_time_of_reading_its_weights() -> None:
    # 16.06 GB / 4.8 TB/s = 3.346 ms; a step reads one row of the token table's 1.05 GB: 3.127 ms.
    assert weights(LLAMA_8B, BF16).total / H200.memory_rate == pytest.approx(3.346e-3, rel=1e-3)
    step = decode(LLAMA_8B, BF16, 1, 1, 1024, PLAIN)
    assert step.weights == pytest.approx(3.127e-3, rel=1e-3)
    # 1,024 tokens x 2 x 32 layers x 8 heads x 128 x 2 bytes = 134 MB: 0.028 ms.
    assert step.kv == pytest.approx(134.2e6 / 4.8e12, rel=1e-3)
    assert step.total == step.weights + step.kv
    reached = decode(LLAMA_8B, BF16, 1, 1, 1024)
    assert reached.launches == pytest.approx((14 * 32 + 8) * 1.3e-6)
    assert reached.total == pytest.approx((3.127e-3 + 0.028e-3) / 0.9 + 0.593e-3, rel=1e-3)


def test_large_batches_are_bound_by_products_and_not_by_weights() -> None:
    # 256 rows x 2 x (6.98 G of the layers + 0.525 G of the head) = 3.84 TFLOP at 989 TFLOP/s: 3.886 ms.
    step = decode(LLAMA_8B, BF16, 1, 256, 1024, PLAIN)
    assert step.products == pytest.approx(3.886e-3, rel=1e-3)
    assert step.products > step.weights
    assert step.total == step.products + step.kv


def test_fewer_bits_read_fewer_bytes_but_the_head_stays_in_bf16() -> None:
    layers, head = 6_979_321_856, 2 * 525_336_576
    assert weights(LLAMA_8B, FP8).layers == pytest.approx(layers, rel=2e-3)
    assert weights(LLAMA_8B, INT4).layers == pytest.approx(layers * (0.5 + 3 / 128), rel=1e-3)
    assert weights(LLAMA_8B, FP8).head == weights(LLAMA_8B, INT4).head == head
    assert decode(LLAMA_8B, FP8, 1, 256, 1024, PLAIN).products < decode(LLAMA_8B, INT4, 1, 256, 1024, PLAIN).products
    assert (METHODS["int4"].group_size, METHODS["int4"].scale_dtype, METHODS["int4"].asymmetric) == (
        128,
        "bfloat16",
        True,
    )


def test_eight_gpus_share_weights_and_kv_and_pay_for_161_all_reduces() -> None:
    one, eight = decode(LLAMA_70B, BF16, 1, 8, 1024), decode(LLAMA_70B, BF16, 8, 8, 1024)
    assert eight.weights == pytest.approx(one.weights / 8, rel=1e-3)
    assert eight.kv == pytest.approx(one.kv / 8)
    assert one.all_reduce == 0
    # 8 rows of 16 KiB cross 7/4 times at 360 GB/s: 0.6 us beside the 9 us that the smallest takes.
    assert eight.all_reduce == pytest.approx(161 * (9e-6 + 131_072 * 7 / 4 / 360e9))
    assert kv_bytes(LLAMA_70B, 16) == kv_bytes(LLAMA_70B, 8)


def test_a_prompt_is_computed_in_steps_and_longer_ones_pay_for_attention() -> None:
    # 4,096 tokens x 2 x 6.979 G = 57.2 TFLOP, one row of logits, and 4 x 32 x 4,096 x 8.39 M pairs = 4.4 TFLOP.
    assert prefill(LLAMA_8B, BF16, 1, 4096, PLAIN) == pytest.approx((57.175e12 + 4.4e12) / 989e12, rel=2e-3)
    assert prefill(LLAMA_8B, BF16, 1, 8192, PLAIN) > 2 * prefill(LLAMA_8B, BF16, 1, 4096, PLAIN)
    assert prefill(LLAMA_8B, BF16, 1, 4096) > prefill(LLAMA_8B, BF16, 1, 4096, replace(H200, attention_reached=1.0))


def test_what_does_not_fit_is_not_predicted() -> None:
    assert not fits(LLAMA_70B, BF16, 1, 1024)
    assert fits(LLAMA_70B, FP8, 1, 1024)
    # 16 GB of weights leave room for 118 GB of KV, 131 KB a token: some 898,000 tokens.
    assert fits(LLAMA_8B, BF16, 1, 890_000)
    assert not fits(LLAMA_8B, BF16, 1, 910_000)


def test_committed_files_are_what_the_formulae_give() -> None:
    committed = json.loads(RESULTS.read_text())
    assert committed == report(), "run `python -m benchmarks.predict`"
    assert RESULTS.with_suffix(".md").read_text() == markdown(committed)


def test_entries_are_found_by_their_values() -> None:
    steps = json.loads(RESULTS.read_text())["steps"]
    entry = find(steps, model="llama-3.1-8b", weights="bf16", gpus=1, batch=1, context=1024)
    assert entry is not None
    assert entry["predicted_ms"] == pytest.approx(1e3 * decode(LLAMA_8B, BF16, 1, 1, 1024).total, rel=1e-5)
    assert find(steps, model="llama-3.1-8b", batch=7) is None


def test_both_models_are_predicted_at_every_precision_size_batch_and_context() -> None:
    steps = json.loads(RESULTS.read_text())["steps"]
    weights_and_gpus = {(each["model"], each["weights"], each["gpus"]) for each in steps}
    assert weights_and_gpus == {("llama-3.1-8b", kind, 1) for kind in ("bf16", "fp8", "int4")} | {
        ("llama-3.1-70b", kind, gpus) for kind in ("bf16", "fp8") for gpus in (1, 2, 4, 8)
    }
    for model, kind, gpus in weights_and_gpus:
        predicted = [each for each in steps if (each["model"], each["weights"], each["gpus"]) == (model, kind, gpus)]
        shapes = {(each["batch"], each["context"]) for each in predicted}
        assert shapes == {(rows, context << 10) for rows in (1, 8, 32, 128, 256) for context in (1, 8, 32, 128)}
        config = LLAMA_8B if model == "llama-3.1-8b" else LLAMA_70B
        for each in predicted:  # those that do not fit have no time
            tokens = each["batch"] * each["context"]
            fitting = fits(config, {"bf16": BF16, "fp8": FP8, "int4": INT4}[kind], gpus, tokens)
            assert (each["predicted_ms"] is not None) == fitting, each


def test_with_eight_gpus_the_host_launches_161_graphs_more_and_is_what_a_small_batch_waits_for() -> None:
    eight = decode(LLAMA_70B, BF16, 8, 1, 1024)
    assert eight.host == pytest.approx(0.25e-3 + 161 * 55e-6)
    assert eight.total == eight.host > eight.weights + eight.kv + eight.all_reduce + eight.launches
    assert decode(LLAMA_8B, BF16, 1, 1, 1024).host == 0.25e-3


def test_kernels_that_memory_does_not_bound_are_predicted_by_what_does() -> None:
    entries = report()["kernels"]
    threshold = find(entries, case="llama3_1x128k")
    assert threshold is not None
    assert threshold["bound"] == "passes"
    # 18 passes over 128,256 x 4 bytes at 117 GB/s, and as many sums.
    assert threshold["predicted_us"] == pytest.approx(18 * (513_024 / 117e3 + 0.2), rel=1e-3)
    two_waves = find(entries, case="llama3_256x128k")
    assert two_waves is not None
    assert two_waves["predicted_us"] == pytest.approx(2 * threshold["predicted_us"], rel=1e-3)
    packed = find(entries, case="qwen3_30b_a3b_int4_decode_32")
    assert packed is not None
    assert packed["bound"] == "arithmetic"
