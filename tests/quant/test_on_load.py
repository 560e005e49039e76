"""`--quantization`: answers are those of the rounded weights, in a share of the memory, on any number of devices."""

from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from flax import nnx

from jserve.config import QUANTIZATIONS
from jserve.engine.core import EngineCore
from jserve.errors import ConfigError
from jserve.quant.on_load import METHODS
from jserve.quant.rounding import round_fp8, round_int4, round_int8, unpack_pairs
from jserve.weights.load import load_dummy
from tests.quant.prefill import prefill_logits, prepared_and_weights
from tests.quant.worlds import (
    EXACT,
    FLIPPED,
    PROMPTS,
    SHAPE,
    first_tokens,
    float_logits,
    is_linear,
    tensors_of,
    with_tensors,
)
from tests.worlds import greedy, make_model, reference, reference_greedy, run, start_engine, tokens_of


def rounded(weight: np.ndarray, kind: str) -> np.ndarray:
    """What the weight becomes, worked out here in float64."""
    wide = weight.astype(np.float64)
    if kind == "int4":
        grouped = wide.reshape(len(wide), -1, 64 if wide.shape[1] % 64 == 0 else 32)
        low, high = np.minimum(grouped.min(-1, keepdims=True), 0), np.maximum(grouped.max(-1, keepdims=True), 0)
        scale = torch.tensor((high - low) / 15, dtype=torch.float32).bfloat16().double().numpy()
        zero = np.clip(np.rint(-low / scale), 0, 15)
        codes = np.clip(np.rint((grouped / scale).astype(np.float32)) + zero, 0, 15)
        return ((codes - zero) * scale).reshape(wide.shape)
    largest = np.abs(wide).max(-1, keepdims=True)
    if kind == "fp8":
        scale = (largest / 448).astype(np.float32)
        return torch.tensor(weight / scale).to(torch.float8_e4m3fn).double().numpy() * scale
    scale = (largest / 127).astype(np.float32)
    return np.rint(weight / scale) * scale


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "float", "LlamaForCausalLM", **SHAPE)


@pytest.fixture(scope="module")
def floats(folder: Path) -> dict[str, Path]:
    """For each kind, a model of the rounded weights in float32."""
    actual = {}
    for kind in ("int8", "int4", "fp8"):
        tensors = {
            name: torch.tensor(rounded(value.numpy(), kind), dtype=torch.float32) if is_linear(name) else value
            for name, value in tensors_of(folder).items()
        }
        actual[kind] = with_tensors(folder, folder.parent / kind, tensors)
    return actual


@pytest.fixture(scope="module")
def engine(folder: Path, executables: str) -> EngineCore:
    return start_engine(folder, executables, quantization="int4", tensor_parallel_size=2)


def test_every_method_has_a_name_on_the_command_line() -> None:
    assert tuple(METHODS) == QUANTIZATIONS


@pytest.mark.parametrize("kind", QUANTIZATIONS)
@pytest.mark.parametrize("parts", [1, 2])
def test_logits_are_those_of_the_rounded_weights(folder: Path, floats: dict[str, Path], kind: str, parts: int) -> None:
    activations = METHODS[kind].activations
    actual = prefill_logits(folder, PROMPTS["long"], kind, parts)
    expected = float_logits(floats[kind.removesuffix("-w8a8")], PROMPTS["long"], activations, parts)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=EXACT if activations == "float" else FLIPPED)


def test_answers_are_those_of_the_rounded_weights_in_batches_of_any_size(
    engine: EngineCore, floats: dict[str, Path]
) -> None:
    """One to four rows have a product of their own on a CPU; the prompt of 41 tokens has not."""
    model = reference(floats["int4"])
    expected = {name: reference_greedy(model, prompt, 24) for name, prompt in PROMPTS.items()}
    assert first_tokens(engine, 24) == expected
    for name, prompt in PROMPTS.items():
        assert tokens_of(run(engine, {name: prompt}, greedy(24))[name]) == expected[name]


@pytest.mark.parametrize(("kind", "bits"), [("int8", 8 + 32 / 64), ("fp8", 8 + 32 / 64), ("int4", 4 + (16 + 8) / 32)])
@pytest.mark.parametrize("parts", [1, 2])
def test_the_plan_counts_the_packed_bytes_and_devices_hold_them(
    folder: Path, kind: str, bits: float, parts: int
) -> None:
    """`bits` is the most that a weight may take, with its share of the scales."""
    prepared, weights = prepared_and_weights(folder, kind, parts)
    shares = [leaf.addressable_shards[0].data for leaf in weights]
    assert prepared.plan.weights == sum(share.nbytes for share in shares)
    linear = sum(value.numel() for name, value in tensors_of(folder).items() if is_linear(name))
    others = sum(value.numel() for name, value in tensors_of(folder).items() if not is_linear(name))
    assert prepared.plan.weights <= linear * bits / 8 / parts + 4 * others


@pytest.mark.parametrize("kind", ["int8", "fp8", "int4"])
def test_rounding_errs_by_half_a_step_at_most(kind: str) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((3, 5, 128), np.float32)
    weight[1, 2] = 0
    weight[2, 0, :64] = 7.0  # a group without a spread
    if kind == "int4":
        parts = round_int4(weight, 32)
        scale, zero = (np.repeat(np.asarray(a, np.float32), 32, -1) for a in (parts.scale, parts.zero))
        actual = (unpack_pairs(parts.values) - zero) * scale
        # A group spans 15 steps of a scale that is rounded by 2^-9 of itself.
        assert (np.abs(actual - weight) <= scale * (0.5 + 15 / 512)).all()
    else:
        parts = round_int8(weight) if kind == "int8" else round_fp8(weight)
        actual = parts.values.astype(np.float32) * parts.scale
        step = parts.scale if kind == "int8" else np.maximum(np.abs(weight) / 8, parts.scale * 2**-9)
        assert (np.abs(actual - weight) <= step * 0.501).all()
    assert not actual[1, 2].any()


@pytest.mark.parametrize(
    ("requested", "said"), [("int8", "quantized (int8), the others in float32"), (None, "in float32")]
)
def test_the_log_says_how_weights_are_kept(
    folder: Path, requested: str | None, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "jserve.runtime.prepare"):
        prepared_and_weights(folder, requested)
    expected = f"weights {said}, activations in float32, KV cache in float32; "
    assert [message for message in caplog.messages if message.startswith(expected)]


def test_inputs_that_are_no_whole_groups_stay_in_floating_point(tmp_path: Path) -> None:
    fields = {"hidden_size": 36, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1}
    _, weights = prepared_and_weights(make_model(tmp_path, "LlamaForCausalLM", **fields), "int4")
    assert [leaf.dtype for leaf in weights].count(np.uint8) == 2, "down_proj of two layers has 48 inputs, the others 36"


def test_devices_cut_groups_where_they_must(tmp_path: Path) -> None:
    """48 inputs in groups of 16, and 32 in one of 32, on two devices: each device names the group of each input."""
    folder = make_model(tmp_path, "LlamaForCausalLM", num_hidden_layers=1)
    _, weights = prepared_and_weights(folder, "int4", 2)
    assert {leaf.shape for leaf in weights if leaf.dtype == np.int32} == {(48,), (32,)}, "down_proj and o_proj"
    one, two = (prefill_logits(folder, PROMPTS["middle"], "int4", parts) for parts in (1, 2))
    np.testing.assert_allclose(one, two, rtol=0, atol=EXACT)


def test_a_name_of_a_stored_format_is_refused_for_what_is_not_quantized(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"'awq' but .* is not quantized; .* int8, int8-w8a8, fp8, int4"):
        prepared_and_weights(folder, "awq")


def test_dummy_weights_are_as_large_as_those_of_float_layers(folder: Path) -> None:
    for kind in QUANTIZATIONS:
        prepared, _ = prepared_and_weights(folder, kind)
        filled = load_dummy(prepared.model, prepared.build.mesh)
        state = nnx.state(prepared.model, nnx.Param)
        model = nnx.merge(nnx.graphdef(prepared.model), jax.tree.unflatten(jax.tree.structure(state), filled))
        weight = model.layers[0].mlp.gate_up_proj.weight.get_value()
        assert 0.015 < float(weight.dequantize().std()) < 0.025, kind
