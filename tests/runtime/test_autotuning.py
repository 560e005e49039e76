"""What is left free for the compiler on a GPU, and where it keeps what it found fastest."""

import os
from pathlib import Path

import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh

from benchmarks.presets import PRESETS
from jserve.config import EngineConfig, read_model_config
from jserve.layers.build import TENSOR_AXIS, Build
from jserve.models.blueprint import Blueprint
from jserve.models.llama import LlamaForCausalLM
from jserve.runtime import autotuning, capacity, memory, platform, program_digest
from jserve.runtime.autotuning import CACHE_FLAG, products_of

BF16 = jnp.dtype("bfloat16")


@pytest.mark.parametrize("parts", [1, 8])
@pytest.mark.parametrize("name", PRESETS)
def test_what_is_left_free_holds_any_product_twice_as_the_compiler_tries_it(name: str, parts: int) -> None:
    """Its inputs, and two float32 outputs; here counted by hand."""
    fields = {**PRESETS[name], "num_hidden_layers": 1}
    config = read_model_config(fields, source="config.json")
    if config.num_kv_heads % parts and parts % config.num_kv_heads:
        pytest.skip("so many devices cannot share it")
    paper = capacity._PaperMesh("gpu", parts, 1)
    build = Build(BF16, BF16, paper)  # type: ignore[arg-type]
    model = Blueprint(LlamaForCausalLM, config, build).abstract_model()
    mesh = AbstractMesh(tuple(paper.shape.values()), TENSOR_AXIS)
    cache = LlamaForCausalLM.cache(build, config)
    products = products_of(model, mesh, BF16, config.vocab_size)
    options = {"max_num_seqs": 256, "max_num_batched_tokens": 4096, "max_model_len": 2048}
    limit = 140 << 30
    _, plan = memory.plan_shape(EngineConfig(model="m", **options), config, build, cache, 0, limit, products=products)
    E, F, V, rows, tokens = config.hidden_size, config.intermediate_size, config.vocab_size, 256, 4096
    by_hand = [
        2 * E * V // parts + 2 * rows * E + 2 * 4 * rows * V // parts,
        2 * E * 2 * F // parts + 2 * tokens * E + 2 * 4 * tokens * 2 * F // parts,
        2 * F * E // parts + 2 * tokens * F // parts + 2 * 4 * tokens * E,
    ]
    assert plan.autotuning >= max(by_hand)
    assert plan.autotuning <= 0.02 * limit, "it is taken from the KV cache"
    assert plan.needed + plan.kv_pages <= limit


def test_nothing_is_left_free_for_it_on_a_cpu() -> None:
    config = read_model_config(PRESETS["tiny"], source="config.json")
    paper = capacity._PaperMesh("cpu", 1, 1)
    build = Build(jnp.dtype("float32"), jnp.dtype("float32"), paper)  # type: ignore[arg-type]
    cache = LlamaForCausalLM.cache(build, config)
    product = autotuning.Product(1 << 20, 10, 10, True)
    _, plan = memory.plan_shape(EngineConfig(model="m"), config, build, cache, 0, 8 << 30, products=[product])
    assert plan.autotuning == 0


def test_results_are_kept_beside_the_programs_and_their_place_changes_no_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_one=1")
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")
    before = program_digest._flags()
    monkeypatch.setattr(platform, "has_nvidia_gpu", lambda: True)
    platform.choose_platform(0.9, tmp_path)
    assert os.environ["XLA_FLAGS"] == f"--xla_one=1 {CACHE_FLAG}={tmp_path}/autotuned"
    assert (tmp_path / "autotuned").is_dir()
    assert program_digest._flags() == before
    platform.choose_platform(0.9, tmp_path / "other")
    assert "other" not in os.environ["XLA_FLAGS"], "what is set stays"


def test_without_a_folder_or_where_others_write_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XLA_FLAGS", "")
    autotuning.keep_results(None)
    (tmp_path / "autotuned").mkdir()
    (tmp_path / "autotuned").chmod(0o777)
    autotuning.keep_results(tmp_path)
    assert not os.environ["XLA_FLAGS"]
