"""GGUF weights in memory: those of the file in its own bits, whose answers are those of the dequantized weights."""

from contextlib import closing
from pathlib import Path

import gguf
import jax
import numpy as np
import pytest
from flax import nnx
from gguf import GGMLQuantizationType as Type

from jserve.checkpoint import open_checkpoint
from jserve.config import EngineConfig
from jserve.errors import ConfigError
from jserve.quant import PackedMatrix
from jserve.runtime import platform
from jserve.runtime.capacity import estimate
from jserve.runtime.prepare import Prepared, prepare
from jserve.weights.finite import WatchedCheckpoint
from jserve.weights.load import parameters
from pallas_kernels.packed_matmul import dequantize
from tests.checkpoint.gguf.maker import CONFIG, tiny_state, write_gguf
from tests.quant.prefill import prefill_logits, prepared_and_weights
from tests.worlds import greedy, run, start_engine, tokens_of

PROMPT = list(range(3, 44))
MIXED = {"v_proj": Type.Q8_0, "up_proj": Type.Q5_0, "down_proj": Type.Q5_1, "embed": Type.Q8_0, "lm_head": Type.Q4_0}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Query and key are of one type and value of another, and so are gate and up."""
    path = tmp_path_factory.mktemp("bits") / "mixed.gguf"
    # Deviations of 1 would make scores of 100, of which a softmax turns the last bits into tenths.
    state = {name: values / 8 if values.ndim > 1 else values for name, values in tiny_state().items()}
    return write_gguf(path, state, CONFIG, quantization=Type.Q4_1, others=MIXED)


def packed_of(prepared: Prepared) -> dict[str, PackedMatrix]:
    flat = nnx.to_flat_state(nnx.state(prepared.model, nnx.Param))
    values = {".".join(map(str, path)): variable.get_value() for path, variable in flat}
    return {name: value for name, value in values.items() if isinstance(value, PackedMatrix)}


def test_weights_stay_in_their_bits_without_a_flag_and_decode_to_those_of_the_file(file: Path) -> None:
    prepared, weights = prepared_and_weights(file)
    listed = parameters(prepared.model)
    assert sum(array.nbytes for array in weights) <= 1.25 * file.stat().st_size
    assert prepared.plan.weights == sum(array.nbytes for array in weights)
    with closing(open_checkpoint(file)) as checkpoint:
        codings = {name: matrix.packed.coding for name, matrix in packed_of(prepared).items()}
        assert len(codings) == 2 + 2 * 7  # the tables, and each projection of a layer by itself
        flat = nnx.to_flat_state(nnx.state(prepared.model, nnx.Param))
        structure = jax.tree.structure(nnx.state(prepared.model, nnx.Param))
        filled = dict(nnx.to_flat_state(jax.tree.unflatten(structure, weights)))
        for path, _ in flat:
            value = filled[path].get_value()
            if not isinstance(value, PackedMatrix):
                continue
            parameter = next(p for p in listed if p.variable == tuple(map(str, path)))
            names = [parameter.absolute(name) for name in parameter.source.names()]
            expected = np.concatenate([checkpoint.read(name) for name in names])
            rows = np.asarray(dequantize(value.packed))
            np.testing.assert_array_equal(rows, expected, err_msg=str(names))


def test_logits_are_those_of_the_dequantized_weights(file: Path) -> None:
    expected = prefill_logits(file, PROMPT, "none")
    for quantization in (None, "gguf"):
        np.testing.assert_allclose(prefill_logits(file, PROMPT, quantization), expected, atol=1e-5, rtol=1e-5)


def test_without_native_code_the_flag_keeps_the_bits_and_else_they_are_dequantized(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = prefill_logits(file, PROMPT, "none")
    for module in ("prepare", "file_bits"):
        monkeypatch.setattr(f"jserve.runtime.{module}.has_native_code", lambda: False)
    np.testing.assert_allclose(prefill_logits(file, PROMPT, "gguf"), expected, atol=1e-5, rtol=1e-5)
    prepared, _ = prepared_and_weights(file, "gguf")
    assert {matrix.implementation for matrix in packed_of(prepared).values()} == {"xla"}
    widest = CONFIG["intermediate_size"] * CONFIG["hidden_size"] * 4
    assert prepared.plan.temporaries - prepared_and_weights(file)[0].plan.temporaries >= widest
    assert not packed_of(prepared_and_weights(file)[0])


def test_answers_do_not_depend_on_their_neighbours(file: Path, executables: str) -> None:
    """Activations are rounded to int8, and prompts are cut into chunks of other sizes."""
    core = start_engine(file, executables, quantization="gguf-a8")
    prompts = {"long": PROMPT, "short": [5], "middle": [9, 8, 7, 6, 5, 4, 3]}
    together = run(core, prompts, greedy(12))
    for name, prompt in prompts.items():
        assert tokens_of(run(core, {name: prompt}, greedy(12))[name]) == tokens_of(together[name])


def test_parts_of_one_type_are_one_product(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", tiny_state(tied=True), CONFIG, quantization=Type.Q8_0)
    prepared, _ = prepared_and_weights(path)
    assert len(packed_of(prepared)) == 1 + 2 * 4


@pytest.mark.parametrize(("flag", "activations"), [(None, "float"), ("gguf", "float"), ("gguf-a8", "int8")])
def test_activations_are_rounded_where_a_flag_says_so(file: Path, flag: str | None, activations: str) -> None:
    config = EngineConfig(model=str(file), quantization=flag, max_num_seqs=2, kv_cache_memory_bytes=4 << 20)
    with closing(open_checkpoint(file)) as checkpoint:
        prepared = prepare(config, checkpoint, platform.make_mesh(1))
    assert {matrix.activations for matrix in packed_of(prepared).values()} == {activations}


def test_a_tensor_of_another_kind_stays_in_floating_point(tmp_path: Path) -> None:
    state = tiny_state()
    path = write_gguf(tmp_path / "m.gguf", state, CONFIG, quantization=Type.Q8_0, others={"k_proj": Type.F16})
    prepared, _ = prepared_and_weights(path)
    names = packed_of(prepared)
    assert "model.layers.0.mlp.down_proj.weight" in names
    assert not [name for name in names if "qkv_proj" in name]


def test_a_flag_quantizes_the_file_anew(file: Path) -> None:
    prepared, _ = prepared_and_weights(file, "int4")
    assert {matrix.packed.coding for matrix in packed_of(prepared).values()} == {"4"}
    assert "model.embed_tokens.weight" not in packed_of(prepared)


def test_inspect_counts_the_bits_of_the_file(file: Path) -> None:
    with closing(open_checkpoint(file)) as checkpoint:
        kept = estimate(checkpoint, EngineConfig(model=str(file)), "cpu")
        wide = estimate(checkpoint, EngineConfig(model=str(file), quantization="none"), "cpu")
    assert kept.plan.weights <= 1.25 * file.stat().st_size
    assert wide.plan.weights > 3 * kept.plan.weights


def test_a_scale_that_is_not_finite_is_noticed(tmp_path: Path) -> None:
    state = tiny_state()
    state["model.layers.1.mlp.up_proj.weight"][3, 40] = 1e30  # more than float16 holds
    path = write_gguf(tmp_path / "m.gguf", state, CONFIG, quantization=Type.Q8_0)
    with closing(open_checkpoint(path)) as checkpoint:
        watched = WatchedCheckpoint(checkpoint)
        for name, info in checkpoint.tensors().items():
            if info.has_blocks:
                watched.read_blocks(name)
    assert watched.broken == ("model.layers.1.mlp.up_proj.weight",)


def test_what_has_no_blocks_is_refused_by_name(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", tiny_state(), CONFIG, quantization=gguf.GGMLQuantizationType.F16)
    with pytest.raises(ConfigError, match="has no weights in Q4_0"):
        prepared_and_weights(path, "gguf")


def test_several_devices_are_refused(file: Path) -> None:
    with pytest.raises(ConfigError, match="is for one device, not 2"):
        prepared_and_weights(file, "gguf", parts=2)
