"""`jserve convert`: the same arrays on every mesh as from the source, its tokenizer, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from jserve.api.model_files import ModelFiles
from jserve.checkpoint import open_checkpoint
from jserve.config import EngineConfig
from jserve.errors import CheckpointError, ConfigError
from jserve.layers.build import Build
from jserve.models.registry import resolve
from jserve.runtime.fill import check_weights, convert, load_thin_weights, load_weights
from jserve.runtime.platform import make_mesh
from jserve.runtime.programs import Programs
from jserve.runtime.shapes import EngineShape
from jserve.text.load import load_tokenizer
from tests.checkpoint.gguf_maker import CONFIG, tiny_state
from tests.text.tokenizer_maker import CHATML, SAMPLES, train_byte_level

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
    """All weights of a server on so many devices, and those of its thin steps."""
    mesh = make_mesh(parts)
    checkpoint = open_checkpoint(folder)
    family, config = resolve(checkpoint.config(), source=folder)
    build = Build(jnp.dtype(dtype), jnp.dtype("float32"), mesh, **options)
    programs = Programs(family, config, build, EngineShape(1, 2, 1, 1, 1, config.vocab_size))
    model = programs.abstract_model()
    check_weights(model, programs, checkpoint)
    asked = EngineConfig(model=str(folder))
    weights = load_weights(asked, model, programs, checkpoint, mesh, lambda *_: None)
    thin: tuple[jax.Array, ...] = ()
    if build.thin:
        thin = load_thin_weights(model, programs, weights, checkpoint, mesh)
    return [np.asarray(array) for array in weights], [np.asarray(array) for array in thin]


@pytest.mark.parametrize(
    ("parts", "dtype", "options"),
    [
        (1, "bfloat16", {}),
        (1, "float32", {"thin": True}),
        (1, "bfloat16", {"thin": True}),  # outputs first
        (2, "bfloat16", {}),
        (4, "float32", {}),  # each KV head twice
    ],
)
def test_arrays_are_those_of_the_source(source: Path, target: Path, parts: int, dtype: str, options: Any) -> None:
    expected, found = filled(source, parts, dtype, **options), filled(target, parts, dtype, **options)
    for arrays, others in zip(expected, found, strict=True):
        assert len(arrays) == len(others)
        for array, other in zip(arrays, others, strict=True):
            assert array.dtype == other.dtype
            np.testing.assert_array_equal(array, other)
    assert bool(found[1]) == bool(options)


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
        ({"version": 2}, "has version 2 but this jserve reads 1"),
        ({"arrays": {}}, "lists no arrays"),
        ({"arrays": {"x": {"shape": [-1], "dtype": "float32"}}}, "no proper shape"),
        ({"arrays": {"x": {"shape": [1], "dtype": "object"}}}, "has type 'object'"),
        ({"arrays": {"x": {"shape": [1], "dtype": "float32"}}}, "is missing but config.json implies"),
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


def test_start_takes_it_up(target: Path) -> None:
    """Through the runtime's own path: a bfloat16 model on a CPU has float32 weights and bits beside them."""
    from jserve.runtime.start import prepare

    checkpoint = open_checkpoint(target)
    prepared = prepare(EngineConfig(model=str(target)), checkpoint, make_mesh(1))
    assert prepared.build.thin
    assert replace(prepared.build, thin=False).dtype == jnp.float32
