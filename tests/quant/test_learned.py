"""`jserve quantize`: less error than by rounding to the nearest where channels stick out, in published layouts."""

import json
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from jserve.checkpoint import open_checkpoint
from jserve.commands.corpus import OWN_TEXT, read_text
from jserve.commands.perplexity import parse_perplexity, score
from jserve.commands.quantize import Done, quantize
from jserve.commands.quantize.command import parse_quantize, quantize_into
from jserve.commands.quantize.gptq import compensate
from jserve.config import QuantizeConfig
from jserve.errors import ConfigError
from jserve.llm import LLM
from jserve.text.load import load_tokenizer
from tests.quant.prefill import prefill_logits
from tests.quant.worlds import EXACT, float_logits, is_linear
from tests.text.tokenizers.tokenizer_maker import CHATML, train_byte_level
from tests.worlds import make_model, reference, reference_logits

SHAPE = {"vocab_size": 640, "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4}
slow = partial(pytest.param, marks=pytest.mark.slow)
METHODS = [("awq", 4), ("gptq", 4), ("gptq", 8)]
TEXT = OWN_TEXT.read_text()[:20_000]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers in bfloat16 whose norms make a few channels 30 times as large as the others."""
    folder = make_model(tmp_path_factory.mktemp("models") / "float", "LlamaForCausalLM", num_key_value_heads=2, **SHAPE)
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith("layernorm.weight"):
            tensor[[3, 17, 40]] *= 30
    tensors = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    train_byte_level("qwen2").save(str(folder / "tokenizer.json"))
    words = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "chat_template": CHATML}
    (folder / "tokenizer_config.json").write_text(json.dumps(words))
    return folder


def config(folder: Path, method: str, bits: int = 4, **fields: int) -> QuantizeConfig:
    sizes = {"samples": 6, "sequence_length": 64, "steps": 30, "group_size": 32, **fields}
    return QuantizeConfig(model=str(folder), method=method, bits=bits, **sizes)


@pytest.fixture(scope="module")
def quantized(folder: Path) -> dict[tuple[str, int], tuple[Path, Done]]:
    actual = {}
    for method, bits in METHODS:
        target = folder.parent / f"{method}-{bits}"
        actual[method, bits] = target, quantize(config(folder, method, bits), TEXT, target, lambda *_: None)
    return actual


def dequantized(folder: Path) -> dict[str, torch.Tensor]:
    """What the folder's tensors mean, in float32, read here by the published layouts.

    AWQ: qweight i32[inputs, outputs / 8], code i of a word is output 8 w + (0, 2, 4, 6, 1, 3, 5, 7)[i]; GPTQ:
    qweight i32[inputs / codes, outputs], code i of a word is input i; zero points along the outputs, less one.
    """
    raw = json.loads((folder / "config.json").read_text())["quantization_config"]
    tensors = load_file(folder / "model.safetensors")
    actual = {}
    for name, tensor in tensors.items():
        if not name.endswith(".qweight"):
            if not name.endswith((".qzeros", ".scales", ".g_idx")):
                actual[name] = tensor.float()
            continue
        stem = name.removesuffix("qweight")
        scale = tensors[f"{stem}scales"].float()
        if raw["quant_method"] == "awq":
            codes, zero = (unpacked(tensors[f"{stem}{part}"], 4, (0, 2, 4, 6, 1, 3, 5, 7)) for part in PACKED)
        else:
            codes = unpacked(tensor.T, raw["bits"]).T
            zero = (unpacked(tensors[f"{stem}qzeros"], raw["bits"]) + 1) % 2 ** raw["bits"]
        index = torch.arange(len(codes)) // raw["group_size"]
        actual[f"{stem}weight"] = ((codes - zero[index]) * scale[index]).T.contiguous()
    return actual


PACKED = ("qweight", "qzeros")


def unpacked(words: torch.Tensor, bits: int, order: tuple[int, ...] | None = None) -> torch.Tensor:
    per_word = 32 // bits
    codes = torch.zeros(len(words), words.shape[1] * per_word, dtype=torch.int64)
    for place in range(per_word):
        codes[:, (place if order is None else order[place]) :: per_word] = (words.long() >> (bits * place)) & (
            2**bits - 1
        )
    return codes


@pytest.mark.parametrize("method", METHODS)
def test_jserve_loads_what_the_published_layout_means(
    quantized: dict[tuple[str, int], tuple[Path, Done]], folder: Path, tmp_path: Path, method: tuple[str, int]
) -> None:
    written, _ = quantized[method]
    meant = tmp_path / "meant"
    meant.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (meant / name).write_bytes((folder / name).read_bytes())
    raw = json.loads((written / "config.json").read_text())
    assert raw.pop("quantization_config")["group_size"] == 32
    (meant / "config.json").write_text(json.dumps(raw | {"dtype": "float32"}))
    save_file(dequantized(written), meant / "model.safetensors", metadata={"format": "pt"})
    prompt = list(range(3, 44))
    np.testing.assert_allclose(prefill_logits(written, prompt), float_logits(meant, prompt), rtol=0, atol=10 * EXACT)


@pytest.mark.parametrize("method", METHODS)
def test_outputs_change_less_than_by_rounding_to_the_nearest(
    quantized: dict[tuple[str, int], tuple[Path, Done]], method: tuple[str, int]
) -> None:
    _, done = quantized[method]
    for layer in done.layers:
        assert layer.written < 0.7 * layer.nearest, layer
    assert done.layers[0].written > 0


@pytest.mark.parametrize("method", METHODS)
def test_hidden_text_is_predicted_closer_to_the_float_model(
    quantized: dict[tuple[str, int], tuple[Path, Done]], folder: Path, method: tuple[str, int]
) -> None:
    """Measured on tokens that were not learned on, through transformers, against weights rounded to the nearest."""
    tokens = load_tokenizer(folder).encode(OWN_TEXT.read_text()[30_000:30_600], True)[:200]
    floats = load_file(folder / "model.safetensors")
    model = reference(folder)
    expected = reference_logits(model, tokens)

    def error(tensors: dict[str, torch.Tensor]) -> float:
        model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, strict=False)
        return float(((reference_logits(model, tokens) - expected) ** 2).mean())

    is_awq, bits = method[0] == "awq", method[1]
    near = {name: nearest(tensor, bits, is_awq) if is_linear(name) else tensor for name, tensor in floats.items()}
    assert error(dequantized(quantized[method][0])) < 0.8 * error(near)


def nearest(weight: torch.Tensor, bits: int, is_asymmetric: bool) -> torch.Tensor:
    grouped = weight.float().reshape(len(weight), -1, 32)
    low, high = grouped.amin(-1, keepdim=True).clamp(max=0), grouped.amax(-1, keepdim=True).clamp(min=0)
    if not is_asymmetric:
        high = torch.maximum(high, -low)
        low = -high
    scale = (high - low) / (2**bits - 1)
    zero = (-low / scale).round() if is_asymmetric else torch.tensor(2.0 ** (bits - 1))
    return (((grouped / scale).round() + zero).clamp(0, 2**bits - 1) - zero).mul(scale).reshape(weight.shape)


def test_all_else_comes_along(quantized: dict[tuple[str, int], tuple[Path, Done]], folder: Path) -> None:
    written, _ = quantized["gptq", 4]
    before, after = load_file(folder / "model.safetensors"), load_file(written / "model.safetensors")
    for name, tensor in before.items():
        assert (name in after) != is_linear(name)
        if name in after:
            assert torch.equal(tensor, after[name])
    assert load_tokenizer(written).chat_templates == load_tokenizer(folder).chat_templates
    assert not written.with_name(f"{written.name}.part").exists()
    folded = load_file(quantized["awq", 4][0] / "model.safetensors")
    norm = "model.layers.0.input_layernorm.weight"
    assert folded[norm].dtype == torch.bfloat16
    assert not torch.equal(before[norm], folded[norm])


def test_gptq_error_is_below_that_of_any_single_code_changed() -> None:
    """On correlated inputs, against rounding to the nearest of the same scales, in float64."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 64)) @ rng.standard_normal((64, 64)) * 0.3
    weight = rng.standard_normal((8, 64)).astype(np.float32)
    gram = (x.T @ x).astype(np.float32)
    codes = compensate(jnp.asarray(weight), jnp.asarray(gram), bits=4, size=16)
    scale = np.repeat(np.asarray(codes.scale, np.float64), 16, 1)
    rounded = np.clip(np.rint(weight / scale), -8, 7) * scale

    def error(actual: np.ndarray) -> float:
        return float(((x @ (weight - actual).T) ** 2).sum())

    assert error(np.asarray(codes.dequantize(), np.float64)) < 0.5 * error(rounded)


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("Cohere2ForCausalLM", {}),  # attention and feed-forward share their norm
        slow("Qwen2ForCausalLM", {}),  # biases of query, key and value
        slow("Phi3ForCausalLM", {}),  # one tensor for three projections
        slow("Gemma2ForCausalLM", {"head_dim": 16}),  # norms of 1 + weight, others between a block and the residual
        slow("Starcoder2ForCausalLM", {"use_bias": True}),  # LayerNorm with a bias, no gate
    ],
)
def test_scales_cancel_in_families_of_other_shapes(tmp_path: Path, family: str, fields: dict[str, int]) -> None:
    shape = {**SHAPE, "num_key_value_heads": 2, "num_hidden_layers": 1, **fields}
    folder = make_model(tmp_path / "float", family, **shape)
    train_byte_level("qwen2").save(str(folder / "tokenizer.json"))
    done = quantize(config(folder, "awq", samples=2), TEXT, tmp_path / "awq", lambda *_: None)
    assert all(layer.written < layer.nearest for layer in done.layers)
    prompt = list(range(3, 44))
    expected = reference_logits(reference(folder), prompt)
    # Codes of 4 bits change logits by about a tenth; a scale that is not divided out, by as much as they are.
    assert np.linalg.norm(prefill_logits(tmp_path / "awq", prompt) - expected) < 0.3 * np.linalg.norm(expected)


def test_what_cannot_be_quantized_is_refused(
    quantized: dict[tuple[str, int], tuple[Path, Done]], folder: Path, tmp_path: Path
) -> None:
    target = tmp_path / "new"

    def refused(requested: QuantizeConfig, said: str, text: str = TEXT) -> None:
        with pytest.raises(ConfigError, match=said):
            quantize(requested, text, target, lambda *_: None)
        assert not list(tmp_path.glob("new*"))

    refused(config(folder, "awq"), r"has 10 tokens but a sample takes 64; give a longer text", "Too short.")
    refused(config(folder, "awq", group_size=40), r"groups of 40 do not fit .*; --group-size 64 or 32 or 16 does")
    refused(config(folder, "awq", sequence_length=300), r"--sequence-length is 300 but the model is for 256")
    refused(config(quantized["awq", 4][0], "gptq"), "has quantized weights already")
    with pytest.raises(ConfigError, match="exists; remove it"):
        quantize(config(folder, "awq"), TEXT, quantized["awq", 4][0], lambda *_: None)
    with pytest.raises(ConfigError, match=r"--bits is 8 but the layout of --method awq holds 4"):
        config(folder, "awq", 8)
    gpt2 = make_model(tmp_path / "gpt2", "GPT2LMHeadModel", vocab_size=640, num_key_value_heads=4)
    train_byte_level("qwen2").save(str(gpt2 / "tokenizer.json"))
    refused(config(gpt2, "gptq"), "is kept inputs first")


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"\xff\xfe\x00binary", "is not UTF-8 text"), (b" \n\n ", "holds no text"), (None, "cannot be read")],
)
def test_a_file_that_is_no_text_is_refused_before_anything_is_loaded(
    tmp_path: Path, content: bytes | None, said: str
) -> None:
    file = tmp_path / "text"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=f"--text: .*{said}"):
        quantize_into(config(Path("/nowhere"), "awq"), tmp_path / "new", file, None)
    with pytest.raises(ConfigError, match="cannot be read: it is a directory"):
        read_text(tmp_path, "FILE")


@pytest.mark.slow
def test_perplexity_is_that_of_transformers(folder: Path, executables: str) -> None:
    llm = LLM(
        str(folder),
        dtype="float32",
        max_num_seqs=4,
        max_num_batched_tokens=32,
        max_model_len=48,
        kv_cache_memory_bytes=4 << 20,
        compile_cache_dir=executables,
    )
    text = TEXT[:300]
    actual = score(llm, text, 40)
    tokens = llm.tokenizer.encode(text, add_special_tokens=True)
    model, nats, count = reference(folder), 0.0, 0
    for start in range(0, len(tokens), 40):
        part = tokens[start : start + 40]
        logits = torch.tensor(reference_logits(model, part), dtype=torch.float64)[:-1]
        nats += float(torch.nn.functional.cross_entropy(logits, torch.tensor(part[1:]), reduction="sum"))
        count += len(part) - 1
    assert actual.tokens == count
    np.testing.assert_allclose(actual.nats_per_token, nats / count, atol=1e-4)  # float32 against float64
    np.testing.assert_allclose(json.loads(actual.as_json())["perplexity"], np.exp(nats / count), rtol=1e-3)
    with pytest.raises(ConfigError, match="none can be predicted"):
        score(llm, "a", 40)


def test_command_lines_are_read() -> None:
    requested, target, text, evaluate = parse_quantize(["/m", "/o", "--method", "gptq", "--bits", "8", "--text", "t"])
    assert (requested, target, text, evaluate) == (
        QuantizeConfig(model="/m", method="gptq", bits=8),
        Path("/o"),
        Path("t"),
        None,
    )
    engine, file, length, as_json = parse_perplexity(["/m", "t", "--quantization", "int4", "--sequence-length", "1K"])
    assert (engine.model, engine.quantization, file, length, as_json) == ("/m", "int4", Path("t"), 1024, False)
    with pytest.raises(SystemExit):
        parse_perplexity(["--quantization", "int4", "/m", "t"])


def test_the_folder_says_what_other_engines_look_for(quantized: dict[tuple[str, int], tuple[Path, Done]]) -> None:
    for (method, bits), (folder, done) in quantized.items():
        with open(folder / "config.json") as stream:
            stored = json.load(stream)["quantization_config"]
        assert (stored["quant_method"], stored["bits"], stored["group_size"]) == (method, bits, done.group_size)
        checkpoint = open_checkpoint(folder)
        assert all(info.dtype == "float16" for name, info in checkpoint.tensors().items() if name.endswith("scales"))
