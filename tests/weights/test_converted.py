"""`jserve convert`: the same arrays on every mesh as from the source, its tokenizer, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import gguf
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file as save_torch

from jserve.api.model.files import ModelFiles
from jserve.api.model.served_model import ServedModel
from jserve.api.settings import ServerSettings
from jserve.checkpoint import kept_ollama_model, open_checkpoint
from jserve.config import EngineConfig
from jserve.errors import CheckpointError, ConfigError
from jserve.layers.build import Build
from jserve.models.blueprint import Blueprint
from jserve.models.registry import resolve
from jserve.quant import Layout
from jserve.quant.converted import config_of, read_converted
from jserve.runtime.load_model import check_weights, convert, load_small_batch_weights, load_weights
from jserve.runtime.platform import make_mesh
from jserve.runtime.prepare import prepare
from jserve.text.load import load_tokenizer
from tests.checkpoint.gguf.maker import CONFIG, tiny_state, write_gguf
from tests.checkpoint.ollama_maker import add_model
from tests.quant.writers import awq
from tests.text.tokenizers.tokenizer_maker import CHATML, SAMPLES, save_byte_level_gguf, train_byte_level
from tests.worlds import greedy, numbers, run, start_engine, tokens_of

VOCAB = 95  # no multiple of any mesh


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2 model (biases) in bfloat16, with two KV heads."""
    folder = tmp_path_factory.mktemp("source")
    state = tiny_state("qwen2")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = state[name][:VOCAB]
    save_file({name: values.astype(ml_dtypes.bfloat16) for name, values in state.items()}, folder / "model.safetensors")
    config = CONFIG | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": VOCAB}
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16", "eos_token_id": 2}))
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.5}))
    train_byte_level("qwen2").save(str(folder / "tokenizer.json"))
    tokens = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}
    templates = [{"name": "default", "template": CHATML}, {"name": "tool_use", "template": "{{ tools }}"}]
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens | {"chat_template": templates}))
    return folder


@pytest.fixture(scope="module")
def target(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted") / "model"
    convert(EngineConfig(model=str(source)), folder, lambda *_: None)
    return folder


def filled(folder: Path, parts: int, dtype: str, **options: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """All weights of a server on so many devices, and those of its small batches."""
    mesh = make_mesh(parts)
    checkpoint = open_checkpoint(folder)
    family, config = resolve(checkpoint.config(), source=folder)
    build = Build(jnp.dtype(dtype), jnp.dtype("float32"), mesh, **options)
    blueprint = Blueprint(family, config, build)
    model = blueprint.abstract_model()
    check_weights(model, blueprint, checkpoint)
    engine_config = EngineConfig(model=str(folder))
    weights = load_weights(engine_config, model, blueprint, checkpoint, mesh, lambda *_: None)
    small_batch: tuple[jax.Array, ...] = ()
    if build.small_batch:
        small_batch = load_small_batch_weights(model, blueprint, weights, checkpoint, mesh)
    return [np.asarray(array) for array in weights], [np.asarray(array) for array in small_batch]


@pytest.mark.parametrize(
    ("parts", "dtype", "options"),
    [
        (1, "bfloat16", {}),
        (1, "float32", {"small_batch": True}),
        (1, "bfloat16", {"small_batch": True}),  # outputs first
        (2, "bfloat16", {}),
        (4, "float32", {}),  # each KV head twice
    ],
)
def test_arrays_are_those_of_the_source(source: Path, target: Path, parts: int, dtype: str, options: Any) -> None:
    expected, actual = filled(source, parts, dtype, **options), filled(target, parts, dtype, **options)
    for arrays, others in zip(expected, actual, strict=True):
        assert len(arrays) == len(others)
        for array, other in zip(arrays, others, strict=True):
            assert array.dtype == other.dtype
            np.testing.assert_array_equal(array, other)
    assert bool(actual[1]) == bool(options)


def test_tokenizer_templates_and_configuration_come_along(source: Path, target: Path) -> None:
    before, after = load_tokenizer(source), load_tokenizer(target)
    assert after.chat_templates == before.chat_templates
    assert after.special_tokens == before.special_tokens
    for text in SAMPLES:
        assert after.encode(text, True) == before.encode(text, True)
    checkpoint = open_checkpoint(target)
    assert checkpoint.generation_config() == {"temperature": 0.5}
    assert resolve(checkpoint.config(), source=target) == resolve(open_checkpoint(source).config(), source=source)


def test_files_are_counted_like_those_of_the_source(source: Path, target: Path) -> None:
    before, after = ModelFiles.read(str(source)), ModelFiles.read(str(target))
    assert after.num_parameters == before.num_parameters
    assert after.num_bytes >= before.num_parameters * 2


def test_target_that_exists_is_left_alone(source: Path, target: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exists; remove it"):
        convert(EngineConfig(model=str(source)), tmp_path, lambda *_: None)
    with pytest.raises(ConfigError, match="is converted already"):
        convert(EngineConfig(model=str(target)), tmp_path / "again", lambda *_: None)


def edited(target: Path, tmp_path: Path, file: str, **changes: Any) -> Path:
    """The converted model with fields of one file changed."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for entry in target.iterdir():
        (copy / entry.name).symlink_to(entry)
    content = json.loads((copy / file).read_text()) | changes
    (copy / file).unlink()
    (copy / file).write_text(json.dumps(content))
    return copy


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": 1}, "has version 1 but this jserve reads 2"),
        ({"arrays": {}}, "lists no arrays"),
        ({"arrays": {"x": {"shape": [-1], "dtype": "float32"}}}, "no proper shape"),
        ({"arrays": {"x": {"shape": [1], "dtype": "object"}}}, "has type 'object'"),
        ({"arrays": {"../x": {"shape": [1], "dtype": "float32"}}}, "is no name of an array"),
        ({"arrays": {"x": {"shape": [1], "dtype": "float32"}}}, r"x/0 cannot be read \(No such file"),
        ({"arrays": {"model.norm.weight": {"shape": [64], "dtype": "float32"}}}, "has 128 bytes but must have 256"),
        ({"arrays": {"model.norm.weight": {"shape": [64], "dtype": "bfloat16"}}}, "is missing but config.json implies"),
    ],
)
def test_damaged_manifest_is_refused(target: Path, tmp_path: Path, changes: Any, said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        filled(edited(target, tmp_path, "jserve.json", **changes), 1, "float32")


def test_weights_that_are_gone_are_refused(target: Path, tmp_path: Path) -> None:
    copy = edited(target, tmp_path, "jserve.json")
    (copy / "weights").unlink()
    with pytest.raises(CheckpointError, match="has no folder weights"):
        filled(copy, 1, "float32")
    (copy / "weights").mkdir()
    with pytest.raises(CheckpointError, match="cannot be read"):
        filled(copy, 1, "float32")


def arrays_on(folder: Path, parts: int, quantization: str | None = None) -> list[np.ndarray]:
    """All weights of a server on so many devices."""
    mesh, checkpoint = make_mesh(parts), open_checkpoint(folder)
    engine_config = EngineConfig(
        model=str(folder),
        dtype="float32",
        quantization=quantization,
        tensor_parallel_size=parts,
        kv_cache_memory_bytes=4 << 20,
    )
    # A folder holds weights as rounding makes them; what native code makes of them is for one CPU.
    with mock.patch("jserve.runtime.prepare.has_native_code", return_value=False):
        prepared = prepare(engine_config, checkpoint, mesh)
    check_weights(prepared.model, prepared.blueprint, checkpoint)
    weights = load_weights(engine_config, prepared.model, prepared.blueprint, checkpoint, mesh, lambda *_: None)
    return [np.asarray(array) for array in weights]


@pytest.mark.parametrize("kind", ["int4", "int8-w8a8"])
def test_weights_rounded_before_are_those_rounded_while_loading(source: Path, tmp_path: Path, kind: str) -> None:
    """Two devices cut groups of 48 inputs, and four keep each KV head twice."""
    folder = tmp_path / kind
    convert(EngineConfig(model=str(source), quantization=kind), folder, lambda *_: None)
    for parts in (1, 2, 4):
        expected, actual = arrays_on(source, parts, kind), arrays_on(folder, parts)
        assert any(array.dtype in (np.uint8, np.int8) for array in actual)
        for array, other in zip(expected, actual, strict=True):
            np.testing.assert_array_equal(numbers(array), numbers(other))
    with pytest.raises(ConfigError, match="already quantized by jserve"):
        arrays_on(folder, 1, "int8")


def test_float_weights_that_are_converted_are_not_rounded_after(target: Path) -> None:
    with pytest.raises(ConfigError, match="--quantization is for jserve convert"):
        arrays_on(target, 1, "int4")


def test_start_takes_it_up(target: Path) -> None:
    """Through the runtime's own path: a bfloat16 model on a CPU is float32, and held in its 16 bits."""
    checkpoint = open_checkpoint(target)
    prepared = prepare(EngineConfig(model=str(target)), checkpoint, make_mesh(1))
    assert prepared.build.bf16_as_uint16
    assert prepared.build.dtype == jnp.float32


@pytest.mark.parametrize("kind", [None, pytest.param("int4", marks=pytest.mark.slow)])
def test_answers_are_those_of_the_source(source: Path, tmp_path: Path, executables: str, kind: str | None) -> None:
    """Greedy, in float32, of which the source's bfloat16 weights are exact."""
    folder = tmp_path / "model"
    convert(EngineConfig(model=str(source), quantization=kind), folder, lambda *_: None)
    prompts = {"long": list(range(3, 44)), "short": [5]}
    expected, actual = (
        {name: tokens_of(deltas) for name, deltas in run(core, prompts, greedy(16)).items()}
        for core in (
            start_engine(source, executables, early=True, quantization=kind),
            start_engine(folder, executables, early=True),
        )
    )
    assert actual == expected
    assert len(set(expected["long"])) > 2


def test_a_quantized_checkpoint_keeps_its_weights(source: Path, tmp_path: Path) -> None:
    """AWQ's words of eight outputs become the served layout; a module in floating point stays so."""
    stored, folder = tmp_path / "awq", tmp_path / "model"
    shutil.copytree(source, stored)
    tensors = load_torch(stored / "model.safetensors")
    form = awq(16)
    for name in [name for name in tensors if name.endswith("proj.weight") and "down_proj" not in name]:
        packed, _ = form.write(tensors.pop(name).float())
        tensors |= {f"{name.removesuffix('weight')}{part}": value for part, value in packed.items()}
    save_torch({name: value.contiguous() for name, value in tensors.items()}, stored / "model.safetensors")
    config = json.loads((stored / "config.json").read_text())
    (stored / "config.json").write_text(json.dumps(config | {"quantization_config": form.config}))
    convert(EngineConfig(model=str(stored)), folder, lambda *_: None)
    for parts in (1, 2):
        expected, actual = arrays_on(stored, parts), arrays_on(folder, parts)
        assert {np.dtype("uint8"), np.dtype("float32")} <= {array.dtype for array in actual}
        for array, other in zip(expected, actual, strict=True):
            np.testing.assert_array_equal(array, other)


@pytest.mark.parametrize(
    "layout",
    [
        {"kind": "int2"},
        {"group_size": -1},
        {"group_size": "16"},
        {"activations": ["float"]},
        {"scale_dtype": "object"},
    ],
)
def test_damaged_layouts_are_refused(layout: dict[str, Any]) -> None:
    whole = config_of({"model.layers.0.mlp.down_proj": Layout("int4", 16, True)})
    assert read_converted(whole, "float32").scheme("model.layers.0.mlp.down_proj") is not None
    whole["modules"]["model.layers.0.mlp.down_proj"] |= layout
    with pytest.raises(CheckpointError, match="convert the model again"):
        read_converted(whole, "float32")
    with pytest.raises(CheckpointError, match="lists no modules"):
        read_converted({"modules": []}, "float32")


def test_what_an_ollama_manifest_says_comes_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = save_byte_level_gguf(tmp_path / "tokens.gguf", train_byte_level("gpt-2"), "gpt-2")
    fields = gguf.GGUFReader(tokens).fields
    metadata = {name: fields[name].contents() for name in fields if name.startswith("tokenizer.ggml")}
    file = write_gguf(tmp_path / "tiny.gguf", tiny_state(), CONFIG, metadata=metadata)
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "store"))
    says = {
        "system": "Answer in verse.",
        "params": {"temperature": 0.25, "stop": ["END"]},
        "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}],
        "template": "{{ .System }} {{ .Prompt }}",  # Go; the file has none
    }
    add_model(tmp_path / "store", file, **says)
    folder = tmp_path / "model"
    convert(EngineConfig(model="ollama:tiny"), folder, lambda *_: None)
    before, after = (
        ServedModel.load(ServerSettings(model=model), EngineConfig(model=model))
        for model in ("ollama:tiny", str(folder))
    )
    question = [{"role": "user", "content": "go"}]
    assert after.with_presets(question)[0] == {"role": "system", "content": "Answer in verse."}
    assert after.with_presets(question) == before.with_presets(question)
    assert after.defaults == before.defaults
    assert after.template.sources == before.template.sources
    (folder / "ollama.json").write_text(json.dumps({"system": 3}))
    with pytest.raises(CheckpointError, match=r"ollama\.json is not what jserve writes"):
        kept_ollama_model(folder)
