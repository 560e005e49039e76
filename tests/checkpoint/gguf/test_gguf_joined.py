"""gpt-oss and DeepSeek from GGUF: tensors that lie there in pieces or packed, and what the models then answer."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from jserve.checkpoint import open_checkpoint
from jserve.checkpoint.gguf.dequantize import MXFP4, MXFP4_PAIRS, dequantize
from jserve.errors import CheckpointError
from tests.checkpoint.gguf.families_maker import write_family
from tests.checkpoint.gguf.maker import CONFIG, tiny_state, write_gguf
from tests.checkpoint.gguf.test_gguf_families import FAMILIES
from tests.checkpoint.gpt_oss_maker import make_gpt_oss, write_by_llama_cpp, write_by_ollama
from tests.worlds import greedy, make_model, reference, reference_greedy, run, start_engine, tokens_of

PROMPTS = {"long": list(range(3, 24)), "short": [5]}
WRITERS = {"llama.cpp": write_by_llama_cpp, "ollama": write_by_ollama}


def check_tokens(file: Path, folder: Path, executables: str, **options: Any) -> None:
    """Greedy tokens of the file are those of transformers over the folder."""
    model, core = reference(folder), start_engine(file, executables, early=True, **options)
    deltas = run(core, PROMPTS, greedy(24))
    for name, prompt in PROMPTS.items():
        assert tokens_of(deltas[name]) == reference_greedy(model, prompt, 24), name


@pytest.mark.parametrize("writer", WRITERS)
def test_experts_of_gpt_oss_stay_packed(writer: str, tmp_path: Path) -> None:
    plain, packed = make_gpt_oss(tmp_path / "plain")
    checkpoint = open_checkpoint(WRITERS[writer](tmp_path / "m.gguf", plain, packed))
    assert checkpoint.config()["quantization_config"] == {"quant_method": "mxfp4"}
    stems = {name.removesuffix("_blocks") for name in packed}
    floats = {name: values for name, values in load_file(plain / "model.safetensors").items() if name not in stems}
    expected = floats | packed
    assert {name: info.shape for name, info in checkpoint.tensors().items()} == {
        name: values.shape for name, values in expected.items()
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(checkpoint.read(name), values, err_msg=name)
        part = tuple(slice(size // 3, size) for size in values.shape)
        np.testing.assert_array_equal(checkpoint.read(name, part), values[part], err_msg=name)


@pytest.mark.parametrize(
    ("writer", "devices"),
    [
        ("llama.cpp", 1),
        pytest.param("llama.cpp", 2, marks=pytest.mark.slow),
        pytest.param("ollama", 1, marks=pytest.mark.slow),
    ],
)
def test_packed_experts_of_gpt_oss_give_the_same_tokens(
    writer: str, devices: int, tmp_path: Path, executables: str
) -> None:
    plain, packed = make_gpt_oss(tmp_path / "plain")
    file = WRITERS[writer](tmp_path / "m.gguf", plain, packed)
    check_tokens(file, plain, executables, tensor_parallel_size=devices)


@pytest.mark.parametrize(
    "case",
    [
        "deepseek 3",
        *(pytest.param(case, marks=pytest.mark.slow) for case in ("deepseek 2, groups", "deepseek 2 lite", "gpt-oss")),
    ],
)
def test_a_file_gives_the_same_tokens(case: str, tmp_path: Path, executables: str) -> None:
    architecture, family, fields = FAMILIES[case]
    folder = make_model(tmp_path / "hf", family, **fields)
    file = write_family(tmp_path / "m.gguf", folder, architecture)
    check_tokens(file, folder, executables)


@pytest.mark.parametrize("case", ["deepseek 2 lite", "deepseek 3"])
def test_older_files_of_deepseek_have_the_same_tensors_and_shape(case: str, tmp_path: Path) -> None:
    """From before keys and values of latents lay apart."""
    architecture, family, fields = FAMILIES[case]
    folder = make_model(tmp_path / "hf", family, **fields)
    new, old = (
        open_checkpoint(write_family(tmp_path / f"{age}.gguf", folder, architecture, old=age == "old"))
        for age in ("new", "old")
    )
    assert new.config() | {"head_dim": None} == old.config() | {"head_dim": None}
    assert new.tensors().keys() == old.tensors().keys()
    for name in new.tensors():
        np.testing.assert_array_equal(new.read(name), old.read(name), err_msg=name)


@pytest.mark.parametrize(("layers", "experts", "groups"), [(60, 160, (8, 3)), (61, 256, (8, 4)), (27, 64, (1, 1))])
def test_groups_that_older_files_do_not_name_are_those_of_the_published_size(
    layers: int, experts: int, groups: tuple[int, int]
) -> None:
    from jserve.checkpoint.gguf.family_config import further_fields
    from jserve.checkpoint.gguf.keys import Keys

    reported = {"expert_count": experts, "expert_used_count": 6, "expert_feed_forward_length": 16}
    reported |= {"rope.dimension_count": 8, "attention.key_length": 20, "attention.value_length": 12}
    reported |= {"attention.kv_lora_rank": 16}
    metadata = {"general.architecture": "deepseek2", **{f"deepseek2.{key}": value for key, value in reported.items()}}
    common = {"num_hidden_layers": layers, "rope_scaling": None}
    actual = further_fields("DeepseekV2ForCausalLM", Keys(metadata, Path("m.gguf")), common, {})
    assert (actual["n_group"], actual["topk_group"]) == groups


@pytest.mark.parametrize("lost", ["ffn_up_exps.weight", "ffn_up_exps.bias"])
def test_a_gate_without_its_up_is_refused(lost: str, tmp_path: Path) -> None:
    plain, packed = make_gpt_oss(tmp_path / "plain")
    file = write_by_llama_cpp(tmp_path / "m.gguf", plain, packed)
    data = file.read_bytes()
    name = f"blk.1.{lost}".encode()
    file.write_bytes(data.replace(name, name.replace(b"blk.1", b"blk.7")))
    with pytest.raises(CheckpointError, match=r"belongs to it, (is missing|has shape)"):
        open_checkpoint(file)


def test_unknown_gating_of_experts_is_refused(tmp_path: Path) -> None:
    architecture, family, fields = FAMILIES["deepseek 3"]
    folder = make_model(tmp_path / "hf", family, **fields)
    file = write_family(tmp_path / "m.gguf", folder, architecture)
    key, before = b"deepseek2.expert_gating_func", (4).to_bytes(4, "little") + (2).to_bytes(4, "little")
    data = file.read_bytes()
    assert key + before in data
    file.write_bytes(data.replace(key + before, key + before[:4] + (4).to_bytes(4, "little")))
    with pytest.raises(CheckpointError, match=r"expert_gating_func is 4 but supported are 1 \(softmax\) and 2"):
        open_checkpoint(file)


def test_both_orders_of_mxfp4_values_mean_the_same() -> None:
    """Every code, and exponents at both ends of what float32 has without subnormal numbers."""
    import gguf

    rng = np.random.default_rng(1)
    codes = rng.permutation(np.arange(32, dtype=np.uint8) % 16)
    scales = np.array([[1], [120], [127], [251]], np.uint8)
    halves = np.concatenate([scales, np.tile(codes[:16] | codes[16:] << 4, (4, 1))], axis=1)
    pairs = np.concatenate([scales, np.tile(codes[::2] | codes[1::2] << 4, (4, 1))], axis=1)
    expected = gguf.dequantize(halves, gguf.GGMLQuantizationType.MXFP4)
    np.testing.assert_array_equal(dequantize(halves, MXFP4), expected)
    np.testing.assert_array_equal(dequantize(pairs, MXFP4_PAIRS), expected)


def test_an_answer_of_gpt_oss_does_not_end_with_its_first_message(tmp_path: Path) -> None:
    tokens = ["a", "<|return|>", "<|call|>", "<|end|>", "<|endoftext|>"]
    metadata = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1, 3, 3, 3, 3],
        "tokenizer.ggml.eos_token_id": 4,
    }
    file = write_gguf(tmp_path / "m.gguf", tiny_state(), CONFIG, metadata=metadata)
    assert open_checkpoint(file).config()["eos_token_id"] == [4, 1, 2]
