"""GGUF files read as Hugging Face checkpoints."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jserve.checkpoint import open_checkpoint
from jserve.checkpoint.gguf.rope import llama3_factors
from jserve.config import read_model_config
from jserve.errors import CheckpointError
from tests.checkpoint.gguf import maker as gguf_maker
from tests.checkpoint.gguf.maker import CONFIG, tiny_state, write_gguf

ARCHITECTURES = ["llama", "qwen2", "qwen3"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tensors_come_back_under_their_names_and_in_their_row_order(tmp_path: Path, architecture: str) -> None:
    state = tiny_state(architecture)
    if architecture == "llama":  # llama.cpp permutes biases of Q and K as well
        state["model.layers.0.self_attn.q_proj.bias"] = np.arange(64, dtype=np.float32)
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", state, CONFIG, architecture=architecture))
    assert {name: info.shape for name, info in checkpoint.tensors().items()} == {
        name: values.shape for name, values in state.items()
    }
    for name, values in state.items():
        np.testing.assert_array_equal(checkpoint.read(name), values, err_msg=name)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_transformers_reads_the_same_tensors_from_the_file(tmp_path: Path, architecture: str) -> None:
    from transformers import AutoModelForCausalLM

    metadata = {"tokenizer.ggml.tokens": [f"t{number}" for number in range(CONFIG["vocab_size"])]}
    state = tiny_state(architecture)
    write_gguf(tmp_path / "m.gguf", state, CONFIG, architecture=architecture, metadata=metadata)
    reference = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="m.gguf", **({"head_dim": 16} if architecture == "qwen3" else {})
    ).state_dict()
    checkpoint = open_checkpoint(tmp_path)
    assert set(checkpoint.tensors()) == set(reference)
    for name, values in reference.items():
        np.testing.assert_array_equal(checkpoint.read(name), values.float().numpy(), err_msg=name)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("quantized") / "m.gguf"
    write_gguf(path, tiny_state(), CONFIG, quantization=gguf.GGMLQuantizationType.Q8_0)
    return open_checkpoint(path)


def test_quantized_tensors_are_described_and_read_as_float32(quantized: Any) -> None:
    info = quantized.tensors()["model.layers.1.mlp.down_proj.weight"]
    assert (info.dtype, info.stored, info.shape) == ("float32", "Q8_0", (64, 96))
    values = quantized.read("model.layers.1.mlp.down_proj.weight")
    assert values.dtype == np.float32
    original = tiny_state()["model.layers.1.mlp.down_proj.weight"]
    # Q8_0 rounds to 127 steps of a block's largest value, here below 4.5: an error of at most half a step.
    np.testing.assert_allclose(values, original, atol=4.5 / 127 / 2 * 1.01)


bounds = st.none() | st.integers(-110, 110)
slices = st.builds(slice, bounds, bounds, st.sampled_from([None, 1, 2, 3]))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(name=st.sampled_from(sorted(tiny_state())), index=st.lists(slices, max_size=2).map(tuple))
def test_a_slice_equals_the_slice_of_the_whole(quantized: Any, name: str, index: tuple[slice, ...]) -> None:
    whole = quantized.read(name)
    index = index[: whole.ndim]
    np.testing.assert_array_equal(quantized.read(name, index), whole[index])


def test_float32_tensors_are_read_only_views_of_the_file(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", tiny_state(), CONFIG))
    values = checkpoint.read("model.embed_tokens.weight", (slice(3, 5),))
    assert values.base is not None
    assert not values.flags.writeable
    checkpoint.close()
    np.testing.assert_array_equal(values, tiny_state()["model.embed_tokens.weight"][3:5])


@pytest.mark.parametrize("kind", [gguf.GGMLQuantizationType.BF16, gguf.GGMLQuantizationType.F16])
def test_half_precision_stays_half_precision(tmp_path: Path, kind: gguf.GGMLQuantizationType) -> None:
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", tiny_state(), CONFIG, quantization=kind))
    info = checkpoint.tensors()["model.layers.0.self_attn.q_proj.weight"]
    assert info.dtype == {"BF16": "bfloat16", "F16": "float16"}[kind.name]
    values = checkpoint.read("model.layers.0.self_attn.q_proj.weight")
    assert values.dtype.name == info.dtype
    original = tiny_state()["model.layers.0.self_attn.q_proj.weight"]
    np.testing.assert_array_equal(values, original.astype(values.dtype))


def test_config_says_what_the_metadata_says(tmp_path: Path) -> None:
    metadata = {"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2}
    path = write_gguf(tmp_path / "m.gguf", tiny_state(tied=True), CONFIG, metadata=metadata)
    config = open_checkpoint(path).config()
    assert {key: config[key] for key in CONFIG} == CONFIG
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["tie_word_embeddings"] is True
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)
    assert config["rope_scaling"] is None
    model = read_model_config(config, source=path)
    assert (model.num_kv_heads, model.rope.theta, model.norm_eps) == (2, 500000.0, 1e-5)


def test_biases_and_an_own_head_are_seen_in_the_config(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", tiny_state("qwen2"), CONFIG, architecture="qwen2")
    config = open_checkpoint(path).config()
    assert (config["attention_bias"], config["tie_word_embeddings"]) == (True, False)


def test_every_token_that_ends_an_answer_is_in_the_config(tmp_path: Path) -> None:
    metadata = {
        "tokenizer.ggml.tokens": ["a", "<|end_of_text|>", "<|eot_id|>", "<|im_end|>"],
        "tokenizer.ggml.token_type": [1, 3, 3, 1],
        "tokenizer.ggml.eos_token_id": 1,
    }
    path = write_gguf(tmp_path / "m.gguf", tiny_state(), CONFIG, metadata=metadata)
    assert open_checkpoint(path).config()["eos_token_id"] == [1, 2, 3]  # the last by its name, whatever its type


def test_llama3_scaling_is_recovered_from_its_factors(tmp_path: Path) -> None:
    factors = np.array(llama3_factors(32.0, 500000.0, 16), np.float32)
    path = write_gguf(tmp_path / "m.gguf", tiny_state(), CONFIG, rope_freqs=factors)
    assert open_checkpoint(path).config()["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def test_llama3_factors_equal_those_of_transformers() -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling |= {"original_max_position_embeddings": 8192, "rope_theta": 500000.0}
    config = LlamaConfig(
        hidden_size=256, num_attention_heads=2, max_position_embeddings=131072, rope_parameters=scaling
    )
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 500000.0 ** (-np.arange(0, 128, 2) / 128)
    np.testing.assert_allclose(plain / scaled.numpy(), llama3_factors(8.0, 500000.0, 128), rtol=1e-5)


def test_factors_that_no_llama3_scaling_explains_are_handed_on(tmp_path: Path) -> None:
    factors = np.linspace(1.0, 9.0, 8).astype(np.float32)
    path = write_gguf(tmp_path / "m.gguf", tiny_state(), CONFIG, rope_freqs=factors)
    scaling = open_checkpoint(path).config()["rope_scaling"]
    assert scaling["rope_type"] == "freq_factors"
    np.testing.assert_array_equal(np.array(scaling["factors"], np.float32), factors)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        (
            {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.original_context_length": 64,
            },
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        ),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 2.5}, {"rope_type": "linear", "factor": 2.5}),
        ({"rope.scale_linear": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 1.0}, None),
    ],
)
def test_rope_scaling_is_read_from_metadata(tmp_path: Path, metadata: dict[str, Any], expected: Any) -> None:
    metadata = {f"llama.{key}": value for key, value in metadata.items()}
    path = write_gguf(tmp_path / "m.gguf", tiny_state(), CONFIG, metadata=metadata)
    assert open_checkpoint(path).config()["rope_scaling"] == expected


def test_recommended_sampling_is_in_the_generation_config(tmp_path: Path) -> None:
    metadata = {"general.sampling.temp": 0.6, "general.sampling.top_k": 20, "tokenizer.ggml.eos_token_id": 5}
    path = write_gguf(tmp_path / "m.gguf", tiny_state(), CONFIG, metadata=metadata)
    assert open_checkpoint(path).generation_config() == {"temperature": 0.6, "top_k": 20, "eos_token_id": 5}


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"llama.expert_count": 8}, "tensor 'blk.0.ffn_gate.weight' is not known"),
        ({"llama.rope.scaling.type": "longrope"}, "rope.scaling.type is 'longrope'"),
        ({"split.count": 3}, "first of 3 parts, which are found by their names"),
    ],
)
def test_what_no_model_here_can_do_is_refused(tmp_path: Path, metadata: dict[str, Any], message: str) -> None:
    path = write_gguf(tmp_path / "m.gguf", tiny_state(), CONFIG, metadata=metadata)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(path)


def test_an_unknown_architecture_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", tiny_state(), CONFIG, architecture="mamba")
    with pytest.raises(CheckpointError, match="'mamba'; supported are llama, llama4, mixtral, qwen2"):
        open_checkpoint(path)


def test_an_unknown_tensor_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gguf_maker.LAYER_NAMES, "self_attn.sinks", "attn_sinks")
    state = tiny_state() | {"model.layers.0.self_attn.sinks.weight": np.zeros(4, np.float32)}
    with pytest.raises(CheckpointError, match=r"'blk\.0\.attn_sinks\.weight' is not known"):
        open_checkpoint(write_gguf(tmp_path / "m.gguf", state, CONFIG))


def test_opening_and_reading_common_types_needs_neither_gguf_nor_transformers(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", tiny_state(), CONFIG, quantization=gguf.GGMLQuantizationType.Q4_1)
    script = (
        "import sys; from jserve.checkpoint import open_checkpoint; light = 'numpy' not in sys.modules; "
        f"c = open_checkpoint({str(path)!r}); [c.read(n) for n in c.tensors()]; "
        "print(light, [m for m in ('jax', 'torch', 'transformers', 'gguf') if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "True []"


@pytest.mark.slow
def test_the_real_model_equals_transformers_own_loader(real_gguf: Path) -> None:
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(
        real_gguf.parent, gguf_file=real_gguf.name, dtype="float32"
    ).state_dict()
    checkpoint = open_checkpoint(real_gguf)
    assert checkpoint.config()["tie_word_embeddings"] is True
    assert set(checkpoint.tensors()) == set(reference) - {"lm_head.weight"}
    for name in checkpoint.tensors():
        np.testing.assert_array_equal(checkpoint.read(name), reference[name].numpy(), err_msg=name)
