"""The memory plan: what fits is used, what does not is refused with the numbers and the flag."""

import re
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jserve.batch import CacheArray
from jserve.config import EngineConfig, ModelConfig, read_model_config
from jserve.errors import ConfigError, OutOfMemoryError
from jserve.layers.build import Build
from jserve.models.llama import LlamaForCausalLM
from jserve.runtime.memory import MARGIN, MemoryPlan, gib, page_bytes, plan_shape, print_budget
from jserve.runtime.shapes import EngineShape

GIB = 1 << 30
MIB = 1 << 20


def model(**fields: Any) -> ModelConfig:
    raw = {
        "vocab_size": 1000,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
    }
    return read_model_config({**raw, **fields}, source="config.json")


def build(platform: str = "cpu", parts: int = 1, dtype: str = "float32") -> Build:
    """For devices that need not be there: a plan only asks what they are."""
    devices = np.array([SimpleNamespace(platform=platform)] * parts)
    mesh: Any = SimpleNamespace(devices=devices, size=parts)
    return Build(jnp.dtype(dtype), jnp.dtype(dtype), mesh)


def plan(
    limit: int = GIB,
    weights: int = MIB,
    platform: str = "cpu",
    config: ModelConfig | None = None,
    **engine_config: Any,
) -> tuple[EngineShape, MemoryPlan]:
    config, made = config or model(), build(platform)
    cache = LlamaForCausalLM.cache(made, config)
    return plan_shape(EngineConfig(model="m", **engine_config), config, made, cache, weights, limit)


@pytest.mark.parametrize(("parts", "heads"), [(1, 2), (2, 1), (4, 1), (8, 1)])
@pytest.mark.parametrize(("dtype", "width"), [("float32", 4), ("bfloat16", 2)])
def test_page_bytes_are_keys_and_values_of_the_heads_of_one_device(
    parts: int, heads: int, dtype: str, width: int
) -> None:
    keys_and_values, layers, head_dim = 2, 3, 8
    cache = LlamaForCausalLM.cache(build("gpu", parts, dtype), model())
    actual = page_bytes(cache, parts, page_size=16)
    assert actual == keys_and_values * layers * heads * 16 * head_dim * width


def test_arrays_that_are_not_split_take_their_bytes_on_every_device() -> None:
    latent = CacheArray(1, 576, jnp.dtype("bfloat16"), sharded=False)
    split = CacheArray(8, 4, jnp.dtype("int8"))
    assert page_bytes([(latent,), (split, latent)], 1, page_size=16) == 16 * (2 * 576 * 2 + 8 * 4)
    assert page_bytes([(latent,), (split, latent)], 4, page_size=16) == 16 * (2 * 576 * 2 + 2 * 4)


def test_kv_cache_memory_is_honoured_to_the_page() -> None:
    for engine_config in (MIB, MIB + 1, 3 * MIB - 1):
        shape, actual = plan(kv_cache_memory_bytes=engine_config, max_model_len=64)
        assert shape.num_pages == engine_config // actual.page_bytes == actual.num_pages
        assert actual.kv_pages == shape.num_pages * actual.page_bytes <= engine_config


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_everything_together_stays_within_the_limit(platform: str) -> None:
    limit = {"cpu": 250 * MIB, "gpu": 500 * MIB}[platform]
    shape, actual = plan(limit, platform=platform, max_num_seqs=200)
    total = actual.needed + actual.kv_pages
    assert limit - actual.page_bytes < total <= limit
    assert actual.margin == (MARGIN if platform == "gpu" else 0)
    assert shape.num_pages == actual.num_pages


def test_cpu_takes_at_most_two_gib_of_pages_unless_told_otherwise() -> None:
    plenty = {"max_num_seqs": 256, "config": model(num_hidden_layers=30)}
    assert 2 * GIB - MIB < plan(64 * GIB, **plenty)[1].kv_pages <= 2 * GIB
    assert plan(64 * GIB, kv_cache_memory_bytes=3 * GIB, **plenty)[1].kv_pages > 2 * GIB


def test_no_more_pages_than_all_sequences_can_use() -> None:
    shape, _ = plan(64 * GIB, platform="gpu", max_num_seqs=3, max_model_len=100, page_size=16)
    assert shape.num_pages == 3 * 7


GEMMA = {"sliding_window": 32, "sliding_window_pattern": 3, "num_hidden_layers": 6}


def test_pages_of_a_model_with_windows_are_of_one_layer_of_each_group() -> None:
    """Two layers see everything, four have a window: two lanes, three groups."""
    shape, actual = plan(platform="gpu", config=model(**GEMMA), page_size=16)
    assert shape.windows == (None, 32, 32)
    assert actual.page_bytes == plan(platform="gpu", config=model(num_hidden_layers=2), page_size=16)[1].page_bytes


def test_windows_make_room_for_longer_sequences() -> None:
    """A pool that holds 8 times the greatest length in layers that see everything holds it about as often with
    windows, and a third as often where layers keep all.
    """
    longest = 4096
    of_all, of_gemma = model(num_hidden_layers=6), model(**GEMMA)
    engine_config: dict[str, Any] = {"kv_cache_memory_bytes": 48 * MIB, "page_size": 16, "platform": "gpu"}
    whole, windowed = (plan(config=config, **engine_config)[0] for config in (of_all, of_gemma))
    assert (whole.max_model_len, windowed.max_model_len) == (longest, longest)
    assert windowed.tokens_in(windowed.num_pages) > 2.9 * whole.tokens_in(whole.num_pages)
    assert whole.tokens_in(whole.num_pages) == whole.num_pages * 16


def test_automatic_length_with_windows_is_the_longest_whose_pages_fit() -> None:
    shape, _ = plan(kv_cache_memory_bytes=MIB, page_size=16, config=model(**GEMMA))
    held_by_windows = 2 * 3
    assert shape.max_model_len == (shape.num_pages - held_by_windows) * 16 < 4096


def test_automatic_length_is_the_models_where_it_fits() -> None:
    assert plan()[0].max_model_len == 4096


def test_automatic_length_is_shortened_to_the_room_there_is() -> None:
    shape, _ = plan(kv_cache_memory_bytes=MIB, page_size=16)
    assert shape.max_model_len == shape.num_pages * 16 < 4096
    assert shape.pages_per_sequence == shape.num_pages


def test_length_that_was_asked_for_is_refused_with_the_room_and_the_flag() -> None:
    with pytest.raises(OutOfMemoryError) as caught:
        plan(kv_cache_memory_bytes=MIB, page_size=16, max_model_len=4000)
    room = plan(kv_cache_memory_bytes=MIB, page_size=16)[0].max_model_len
    assert "--max-model-len is 4,000 tokens" in str(caught.value)
    assert f"room for {room:,}" in str(caught.value)
    assert "--kv-cache-memory-bytes" in str(caught.value)


def test_length_beyond_the_models_positions_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--max-model-len is 5000 .* 4096 positions"):
        plan(max_model_len=5000)


def test_fewer_tokens_than_sequences_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"--max-num-batched-tokens is 7 .* --max-num-seqs 8 "):
        plan(max_num_batched_tokens=7, max_num_seqs=8)
    assert plan(max_num_batched_tokens=8, max_num_seqs=8)[0].max_num_batched_tokens == 8


def test_weights_that_do_not_fit_are_refused_with_the_numbers() -> None:
    with pytest.raises(OutOfMemoryError) as caught:
        plan(limit=2 * GIB, weights=3 * GIB, platform="gpu")
    message = str(caught.value)
    assert "of 2.00 GiB, weights take 3.00 GiB" in message
    assert "margin 0.25 GiB" in message
    assert "--gpu-memory-utilization" in message
    assert "--tensor-parallel-size" in message


def test_cpu_is_not_told_of_flags_that_only_gpus_have() -> None:
    with pytest.raises(OutOfMemoryError, match="no memory is left for the KV cache") as caught:
        plan(limit=GIB, weights=2 * GIB)
    assert "--gpu-memory-utilization" not in str(caught.value)


def test_more_pages_than_memory_are_refused_with_both_numbers() -> None:
    with pytest.raises(OutOfMemoryError, match=r"--kv-cache-memory-bytes is 2.00 GiB but only") as caught:
        plan(kv_cache_memory_bytes=2 * GIB)
    left = re.search(r"but only (\S+ \S+) are left", str(caught.value))
    _, fitting = plan()
    needed = fitting.weights + fitting.temporaries + fitting.sampling
    assert left is not None
    assert left[1] == gib(GIB - needed)


def test_pages_for_less_than_two_are_refused() -> None:
    with pytest.raises(OutOfMemoryError, match=r"two pages need .* raise --kv-cache-memory-bytes"):
        plan(kv_cache_memory_bytes=1000)


def test_budget_shows_parts_that_add_up(capsys: pytest.CaptureFixture[str]) -> None:
    shape, actual = plan(4 * GIB, weights=GIB, platform="gpu")
    print_budget(actual, shape, "H200")
    shown = capsys.readouterr().err
    sizes = [
        float(size) * (1 if unit == "GiB" else 1 / 1024) for size, unit in re.findall(r"([\d.]+) ([GM]iB) +│", shown)
    ]
    assert sum(sizes[:-1]) == pytest.approx(sizes[-1], abs=0.03)
    assert "of 4.00 GiB usable" in shown
    assert f"{shape.num_pages * shape.page_size:,} tokens" in shown
