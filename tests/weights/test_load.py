"""Weights from checkpoints: exact slices for every sharding, nothing read twice, errors before any read."""

import logging
import threading
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import Mesh

from jserve.checkpoint import TensorInfo
from jserve.config import ModelConfig
from jserve.errors import CheckpointError
from jserve.layers.build import Build, mesh_over
from jserve.layers.source import (
    ALIGNMENT,
    MAPPED,
    GroupedHeads,
    InputsFirst,
    Source,
    Stacked,
    Tensor,
    aligned_empty,
    join,
)
from jserve.models.causal_lm import CausalLM
from jserve.models.registry import resolve
from jserve.weights import load as weights_load
from jserve.weights.load import Parameter, load, load_dummy, parameters, place

FILE = Path("/models/tiny/model.safetensors")


class MemoryCheckpoint:
    """A checkpoint of random tensors that counts how often each element is read."""

    format = "huggingface"
    path = FILE.parent

    def __init__(self, shapes: dict[str, tuple[int, ...]], dtype: str = "float32") -> None:
        rng = np.random.default_rng(0)
        self.arrays = {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
        self.reads = {name: np.zeros(shape, np.int32) for name, shape in shapes.items()}
        self.dtype = dtype
        self._lock = threading.Lock()

    def config(self) -> dict[str, Any]:
        return {}

    generation_config = config

    def tensors(self) -> dict[str, TensorInfo]:
        return {name: TensorInfo(array.shape, self.dtype, FILE, "F32") for name, array in self.arrays.items()}

    def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        with self._lock:
            self.reads[name][index] += 1
        return self.arrays[name][index]

    def close(self) -> None:
        pass

    @property
    def num_read(self) -> int:
        return sum(int(count.sum()) for count in self.reads.values())


RAW = {
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": 37,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 64,
}


def mesh_of(parts: int) -> Mesh:
    return mesh_over(jax.devices()[:parts])


def abstract(parts: int, dtype: str = "float32", **fields: Any) -> tuple[CausalLM, ModelConfig, Mesh]:
    family, config = resolve({**RAW, **fields}, source="config.json")
    mesh = mesh_of(parts)
    build = Build(jnp.dtype(dtype), jnp.dtype("float32"), mesh)
    return nnx.eval_shape(partial(family, build, config)), config, mesh


def shapes_of(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """What Hugging Face stores for Qwen2."""
    hidden, inner, dim = config.hidden_size, config.intermediate_size, config.head_dim
    query, kv = config.num_heads * dim, config.num_kv_heads * dim
    shapes = {"model.embed_tokens.weight": (config.vocab_size, hidden), "model.norm.weight": (hidden,)}
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}."
        for name, size in (("q", query), ("k", kv), ("v", kv)):
            shapes[f"{prefix}self_attn.{name}_proj.weight"] = (size, hidden)
            shapes[f"{prefix}self_attn.{name}_proj.bias"] = (size,)
        shapes[f"{prefix}self_attn.o_proj.weight"] = (hidden, query)
        shapes[f"{prefix}mlp.gate_proj.weight"] = shapes[f"{prefix}mlp.up_proj.weight"] = (inner, hidden)
        shapes[f"{prefix}mlp.down_proj.weight"] = (hidden, inner)
        shapes[f"{prefix}input_layernorm.weight"] = shapes[f"{prefix}post_attention_layernorm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    return shapes


@st.composite
def sources(draw: st.DrawFn) -> tuple[Source, tuple[int, ...]]:
    """A source and the shape of its parameter."""
    size = st.integers(1, 5)
    kind = draw(st.sampled_from(["tensor", "padded", "stacked", "heads", "head biases"]))
    if kind in ("tensor", "padded"):
        shape = tuple(draw(st.lists(size, min_size=1, max_size=3)))
        padding = draw(st.integers(0, 4)) if kind == "padded" else 0
        source: Source = Tensor("weight", shape)
        whole = (shape[0] + padding, *shape[1:])
    elif kind == "stacked":
        shape = tuple(draw(st.lists(size, min_size=1, max_size=2)))
        names = ("../one", "../two", "../three")[: draw(st.integers(1, 3))]
        source, whole = Stacked(names, shape), (len(names), *shape)
    else:
        kv, copies, groups, dim = (draw(st.integers(1, 3)) for _ in range(4))
        inner = () if kind == "head biases" else (draw(size),)
        heads = GroupedHeads(kv * copies * groups, kv, dim, "weight", inner, copies)
        source, whole = heads, (kv * copies, groups + 2, dim, *inner)
    if len(whole) > 1 and draw(st.booleans()):
        return InputsFirst(source), (whole[-1], *whole[:-1])
    return source, whole


@given(sources(), st.data())
def test_slices_of_a_source_are_the_slices_of_the_whole(
    made: tuple[Source, tuple[int, ...]], data: st.DataObject
) -> None:
    source, shape = made
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(size) for name, size in source.names().items()}
    whole = source.read(lambda name, index: arrays[name][index], tuple(slice(0, size) for size in shape))
    assert whole.shape == shape
    lows = [data.draw(st.integers(0, size - 1)) for size in shape]
    index = tuple(slice(low, data.draw(st.integers(low + 1, size))) for low, size in zip(lows, shape, strict=True))
    part = source.read(lambda name, index: arrays[name][index], index)
    np.testing.assert_array_equal(part, whole[index])


@given(sources())
def test_a_source_reads_every_element_once(made: tuple[Source, tuple[int, ...]]) -> None:
    source, shape = made
    counts = {name: np.zeros(size, int) for name, size in source.names().items()}

    def read(name: str, index: tuple[slice, ...]) -> np.ndarray:
        counts[name][index] += 1
        return np.zeros(counts[name].shape)[index]

    source.read(read, tuple(slice(0, size) for size in shape))
    assert all((count == 1).all() for count in counts.values())


def test_padding_above_a_tensor_is_zeros() -> None:
    data = np.arange(1.0, 7.0).reshape(3, 2)
    source = Tensor("weight", (3, 2))
    for start, stop in ((0, 5), (2, 4), (3, 5), (4, 5)):
        part = source.read(lambda _, index: data[index], (slice(start, stop), slice(0, 2)))
        np.testing.assert_array_equal(part, np.pad(data, ((0, 2), (0, 0)))[start:stop])


@pytest.mark.parametrize("copies", [1, 2, 4])
def test_grouped_heads_stand_in_the_order_of_their_key_and_value(copies: int) -> None:
    """Entry k: the query heads that KV head k (or its copy) serves, then the key, then the value."""
    heads, kv, dim = 8, 2, 3
    source = GroupedHeads(heads, kv, dim, "weight", (5,), copies)
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(shape) for name, shape in source.names().items()}
    q, k, v = (arrays[f"../{name}_proj.weight"].reshape(-1, dim, 5) for name in "qkv")
    groups = heads // (kv * copies)
    shape = (kv * copies, groups + 2, dim, 5)
    actual = source.read(lambda name, index: arrays[name][index], tuple(slice(0, size) for size in shape))
    for entry in range(kv * copies):
        np.testing.assert_array_equal(actual[entry, :groups], q[entry * groups : (entry + 1) * groups])
        np.testing.assert_array_equal(actual[entry, groups], k[entry // copies])
        np.testing.assert_array_equal(actual[entry, groups + 1], v[entry // copies])


@pytest.mark.parametrize("tied", [False, True])
def test_parameters_stand_in_the_order_of_the_leaves(tied: bool) -> None:
    """With twelve layers, where "10" sorts before "2" if names are compared as text."""
    model, _, _ = abstract(1, tie_word_embeddings=tied)
    listed, leaves = parameters(model), jax.tree.leaves(nnx.state(model, nnx.Param))
    assert [parameter.shape for parameter in listed] == [leaf.shape for leaf in leaves]
    structure = jax.tree.structure(nnx.state(model, nnx.Param))
    numbered = jax.tree.unflatten(structure, range(len(listed)))
    places = {variable.get_value(): path for path, variable in nnx.to_flat_state(numbered)}
    for number, parameter in enumerate(listed):
        *module, name = map(str, places[number])
        assert tuple(module) == parameter.module
        assert name in {relative.rpartition(".")[2] for relative in parameter.source.names()}
    assert len(listed) == 12 * 7 + (2 if tied else 3)


@pytest.mark.parametrize("parts", [1, 2, 4, 8])
@pytest.mark.parametrize("tied", [False, True])
def test_each_device_holds_its_slice_of_the_same_weights(parts: int, tied: bool) -> None:
    fields = {"tie_word_embeddings": tied, "num_hidden_layers": 2}
    one, config, mesh = abstract(1, **fields)
    checkpoint = MemoryCheckpoint(shapes_of(config))
    expected = load(one, checkpoint, mesh)
    model, _, mesh = abstract(parts, **fields)
    for parameter, whole, actual in zip(parameters(model), expected, load(model, checkpoint, mesh), strict=True):
        assert actual.shape == parameter.shape
        assert actual.sharding.is_equivalent_to(parameter.sharding(mesh), actual.ndim)
        for shard in actual.addressable_shards:
            np.testing.assert_array_equal(shard.data, np.asarray(actual)[shard.index])
        if isinstance(parameter.source, Tensor) and "norm" not in parameter.module[-1]:
            rows = config.vocab_size
            np.testing.assert_array_equal(np.asarray(actual)[:rows], np.asarray(whole))
            assert not np.asarray(actual)[rows:].any()
        elif actual.shape == whole.shape:
            np.testing.assert_array_equal(np.asarray(actual), np.asarray(whole))
        else:
            assert "self_attn" in parameter.module, "only heads change their layout"
            assert parts > config.num_kv_heads


@pytest.mark.parametrize("parts", [1, 2, 8])
def test_every_element_is_read_once_for_each_device_that_keeps_it(parts: int) -> None:
    model, config, mesh = abstract(parts, num_hidden_layers=2)
    checkpoint = MemoryCheckpoint(shapes_of(config))
    load(model, checkpoint, mesh)
    copies = max(1, parts // config.num_kv_heads)
    for name, counts in checkpoint.reads.items():
        is_replicated = "norm" in name
        most = parts if is_replicated else copies if "k_proj" in name or "v_proj" in name else 1
        assert counts.min() >= 1, name
        assert counts.max() <= most, f"{name} is read {counts.max()} times"


def test_weights_are_rounded_to_the_dtype_of_the_build() -> None:
    model, config, mesh = abstract(2, "bfloat16", num_hidden_layers=1)
    checkpoint = MemoryCheckpoint(shapes_of(config))
    actual = dict(zip([p.module for p in parameters(model)], load(model, checkpoint, mesh), strict=True))
    table = actual["model", "embed_tokens"]
    assert table.dtype == jnp.bfloat16
    expected = checkpoint.arrays["model.embed_tokens.weight"].astype(jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(table)[: config.vocab_size], expected)


def test_progress_counts_up_to_all_parameters() -> None:
    model, config, mesh = abstract(1, num_hidden_layers=1)
    seen: list[tuple[int, int]] = []
    load(model, MemoryCheckpoint(shapes_of(config)), mesh, lambda done, total: seen.append((done, total)))
    count = len(parameters(model))
    assert seen == [(done, count) for done in range(1, count + 1)]


def test_missing_tensor_is_named_before_anything_is_read() -> None:
    model, config, mesh = abstract(1)
    shapes = shapes_of(config)
    del shapes["model.layers.11.mlp.up_proj.weight"]
    checkpoint = MemoryCheckpoint(shapes)
    with pytest.raises(CheckpointError, match=r"/models/tiny.*model\.layers\.11\.mlp\.up_proj\.weight is missing"):
        load(model, checkpoint, mesh)
    assert checkpoint.num_read == 0


def test_tensor_of_another_shape_is_named_with_both_shapes_before_anything_is_read() -> None:
    model, config, mesh = abstract(1)
    checkpoint = MemoryCheckpoint({**shapes_of(config), "model.layers.11.self_attn.k_proj.weight": (8, 15)})
    with pytest.raises(CheckpointError) as caught:
        load(model, checkpoint, mesh)
    message = str(caught.value)
    assert message.startswith(f"{FILE}: tensor model.layers.11.self_attn.k_proj.weight has shape [8, 15]")
    assert "implies [8, 16]" in message
    assert checkpoint.num_read == 0


@pytest.mark.parametrize("rename", [lambda n: n.removeprefix("model."), lambda n: f"language_model.{n}"])
def test_prefixes_that_repositories_drop_or_add_are_understood(rename: Any) -> None:
    model, config, mesh = abstract(1, num_hidden_layers=1)
    shapes = shapes_of(config)
    expected = load(model, MemoryCheckpoint(shapes), mesh)
    actual = load(model, MemoryCheckpoint({rename(name): shape for name, shape in shapes.items()}), mesh)
    for one, other in zip(expected, actual, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_tensors_that_nobody_asks_for_are_told(caplog: pytest.LogCaptureFixture) -> None:
    model, config, mesh = abstract(1, num_hidden_layers=1, tie_word_embeddings=True)
    shapes = {**shapes_of(config), "lm_head.weight": (37, 16), "model.layers.0.rotary.inv_freq": (2,)}
    with caplog.at_level(logging.WARNING):
        load(model, MemoryCheckpoint(shapes), mesh)
        assert not caplog.records
        load(model, MemoryCheckpoint({**shapes, "model.vision.weight": (2,)}), mesh)
    assert "1 tensors" in caplog.text
    assert "model.vision.weight" in caplog.text


@pytest.mark.parametrize("parts", [1, 2])
def test_dummy_weights_have_the_real_shapes_and_are_the_same_every_time(parts: int) -> None:
    model, _, mesh = abstract(parts, "bfloat16", num_hidden_layers=2)
    first, again, other = (load_dummy(model, mesh, seed) for seed in (1, 1, 2))
    wanted = parameters(model)
    for parameter, one, two in zip(wanted, first, again, strict=True):
        assert (one.shape, one.dtype) == (parameter.shape, parameter.dtype)
        assert one.sharding.is_equivalent_to(parameter.sharding(mesh), one.ndim)
        np.testing.assert_array_equal(np.asarray(one), np.asarray(two))
    tables = Counter(one.ndim > 1 and bool((one != two).any()) for one, two in zip(first, other, strict=True))
    assert tables[True] == sum(len(parameter.shape) > 1 for parameter in wanted)
    matrix = np.asarray(next(one for one in first if one.ndim == 2), np.float32)
    assert 0.015 < matrix.std() < 0.025


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("size", [0, 1, 1000, MAPPED])
def test_joined_tensors_become_an_array_without_a_copy(size: int, dtype: str) -> None:
    """On a CPU. The kernel would hand out the copy's memory page by page."""
    half = np.arange(size, dtype=np.int32).astype(jnp.dtype(dtype))
    both = join([half, half], axis=0)
    np.testing.assert_array_equal(both, np.concatenate([half, half]))
    array = jax.device_put(both, jax.devices()[0], may_alias=True)
    assert not size or array.unsafe_buffer_pointer() == both.ctypes.data


@pytest.mark.parametrize("stored", ["float32", "float16"])
def test_a_tensor_that_begins_anywhere_in_a_file_is_copied_once(stored: str) -> None:
    """In any type of the file: the copy is where jax leaves it."""
    room = (np.arange(MAPPED) % 1000).astype(stored)
    data = room[1:][: MAPPED // 2].reshape(-1, 64)
    assert data.ctypes.data % ALIGNMENT
    parameter = Parameter((), data.shape, jnp.dtype("float32"), (None, None), Tensor("w", data.shape), "w", "", None)
    made: list[np.ndarray] = []

    def noted(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        made.append(aligned_empty(shape, dtype))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights_load, "aligned_empty", noted)
        array = place(parameter, mesh_over(jax.devices()[:1]), lambda index: data[index])
    np.testing.assert_array_equal(np.asarray(array), data.astype(np.float32))
    assert [each.ctypes.data for each in made] == [array.addressable_data(0).unsafe_buffer_pointer()]
