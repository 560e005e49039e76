"""The table of docs/models.md: what published models take, from what their configuration says."""

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from jserve.layers.build import Build, mesh_over
from jserve.layers.quantized import WeightPlan
from jserve.models.blueprint import Blueprint
from jserve.models.registry import resolve
from jserve.quant import OnLoad
from jserve.runtime.layout import CacheLayout, choose_windows
from jserve.runtime.memory import page_bytes
from jserve.weights.load import parameters
from tests.models.published import PUBLISHED
from tests.test_docs_rows import page, tables

BFLOAT16 = jnp.dtype("bfloat16")
TABLE = next(table for table in tables(page("models.md")) if "weights in bfloat16" in table[0])


def weight_bytes(name: str, quantization: str | None) -> int:
    family, config = resolve(PUBLISHED[name].fields, source=name)
    build = Build(BFLOAT16, BFLOAT16, mesh_over(jax.devices()[:1]))
    plan = WeightPlan(OnLoad(quantization)) if quantization else None
    return sum(
        math.prod(parameter.shape) * jnp.dtype(parameter.dtype).itemsize
        for parameter in parameters(Blueprint(family, config, build, plan).abstract_model())
    )


def cache_bytes(name: str) -> tuple[int, int]:
    """Bytes of a token: within all windows, and before them."""
    family, config = resolve(PUBLISHED[name].fields, source=name)
    build = Build(BFLOAT16, BFLOAT16, SimpleNamespace(size=1))  # type: ignore[arg-type]
    cache = family.cache(build, config)
    windows = choose_windows(config.layer_windows, alike=len(set(cache)) == 1)
    lanes = CacheLayout.of(config.layer_windows, windows).of_lanes(cache)
    of_group = page_bytes(lanes, 1, 1)
    return of_group * len(windows), of_group * windows.count(None)


@pytest.mark.parametrize("row", TABLE[1:], ids=lambda row: row[0])
def test_row_is_what_the_configuration_gives(row: list[str]) -> None:
    name, *reported = row
    sizes = [weight_bytes(name, None) / 2**30, weight_bytes(name, "int4") / 2**30]
    assert reported == [f"{size:.2f} GiB" for size in sizes] + [f"{size / 1024:.1f} KiB" for size in cache_bytes(name)]
