"""Paged attention for prefill chunks and mixed batches on Hopper: TMA brings the pages, wgmma multiplies.

A block is three warpgroups. One asks TMA for a page of keys and one of values a step, some steps ahead; two hold 64
rows of (query head, token) pairs each, of one KV head, and run FlashAttention's online softmax (Dao 2023,
arXiv:2307.08691, section 3.1) in base 2 over the pages, from the last to the first. Pallas Mosaic GPU, of JAX 0.12, or
of 0.11 outside CUDA graphs. Compiled for sm_90a, interpreted, never executed on a GPU.
"""

import functools
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from .mosaic_support import Pipeline, check_support, measured
from .mosaic_tile import add_product
from .target import H200, Target
from .triton_tile import DEAD, LOG2_E, Head, Ref, output, power_of_two

plgpu: Any = importlib.import_module("jax.experimental.pallas.mosaic_gpu")  # its names differ from JAX to JAX

__all__ = ["paged_attention_prefill"]

ROWS = 64  # of a warpgroup: the rows of one wgmma
GROUPS = 2  # warpgroups that multiply
SHARED_MEMORY = 128 << 10  # for the pages in flight; queries and outputs take up to 64 KiB more
Shared = Mapping[str, Ref]
"""Shared memory and barriers of a block, by the names of `Launch.scratch`."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What is static about a launch; `stages`: pages of keys, and of values, in flight."""

    head: Head
    dtype: Any
    stages: int
    interpret: bool

    @property
    def W(self) -> int:
        """Tokens of a warpgroup: with all query heads of the KV head they fill its rows, or nearly."""
        return power_of_two(ROWS // self.head.G + 1) // 2

    def scratch(self) -> dict[str, Any]:
        B, D = self.head.B, self.head.D

        def tiled(rows: int, *shape: int) -> Any:
            transforms = (plgpu.TilingTransform((rows, 64)), plgpu.SwizzleTransform(128))
            return plgpu.SMEM(shape, self.dtype, transforms=transforms)

        operand = functools.partial(tiled, 8)  # what wgmma reads

        arrays = {
            "q": operand(GROUPS, ROWS, D),
            "k": operand(self.stages, B, D),
            "v": operand(self.stages, B, D),
            "tokens": tiled(1, GROUPS, ROWS, D),  # TMA brings and takes rows of eight only from multiples of eight
        }
        if self.interpret:
            arrays["weights"] = operand(GROUPS, ROWS, B)
        return arrays | {
            "q_here": plgpu.Barrier(num_arrivals=self.head.G, num_barriers=GROUPS),
            "k_here": plgpu.Barrier(num_barriers=self.stages),
            "v_here": plgpu.Barrier(num_barriers=self.stages),
            "k_free": plgpu.Barrier(num_arrivals=GROUPS, num_barriers=self.stages),
            "v_free": plgpu.Barrier(num_arrivals=GROUPS, num_barriers=self.stages),
            "cleaned": plgpu.Barrier(num_arrivals=GROUPS),
        }


@dataclass(frozen=True, slots=True)
class Tile:
    """What a block owns, as scalars: `count` tokens from `first` on, the first at `position` of its row's context."""

    row: jax.Array
    first: jax.Array
    count: jax.Array
    position: jax.Array
    begin: jax.Array  # pages of the row that the tokens see: begin up to end
    end: jax.Array


def paged_attention_prefill(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    query_start: jax.Array,
    context_len: jax.Array,
    sinks: jax.Array | None = None,
    k_scale: jax.Array | None = None,
    v_scale: jax.Array | None = None,
    *,
    scale: float,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
    target: Target = H200,
    interpret: bool = False,
) -> jax.Array:
    """Attention of ragged rows; shapes as in `paged_attention`. Raises NotImplementedError naming what it supports."""
    check_support(q, k_pages, v_pages, k_scale is not None, target)
    (T, H, D), (_, K, B, _) = q.shape, k_pages.shape
    head = Head(H // K, D, B, scale, sliding_window, soft_cap)
    fitting = Pipeline(SHARED_MEMORY // (2 * B * D * q.dtype.itemsize))
    launch = Launch(head, q.dtype, measured(head.key(q.dtype), target, fitting).num_stages, interpret)
    tiles = _tiles(query_start, context_len, T, launch)
    args = (q, k_pages, v_pages, page_table, tiles, *(() if sinks is None else (sinks.astype(jnp.float32),)))
    out: jax.Array = plgpu.kernel(
        functools.partial(_kernel, launch=launch),
        out_type=output(q.shape, q.dtype, q),
        grid=(tiles.shape[0], K),
        grid_names=("tile", "head"),
        num_threads=GROUPS + 1,
        thread_name="group",
        scratch_types={"shared": launch.scratch()},
        compiler_params=plgpu.CompilerParams(approx_math=True),
        kernel_name="paged_prefill_mosaic",
        interpret=plgpu.InterpretGPUParams(detect_races=True) if interpret else None,
    )(*args)
    return out


def _tiles(query_start: jax.Array, context_len: jax.Array, T: int, launch: Launch) -> jax.Array:
    """The fields of `Tile` for each tile, i32[tiles, 6]; count 0 where there is nothing to do.

    Each row starts at tile query_start // width + row: room for every ragged end. One more row, S, takes the padding
    tokens and writes their zeros. The same in all layers: XLA works it out once a step. The last tiles come first, as
    within a row they see the most keys.
    """
    S, width, B = context_len.shape[0], GROUPS * launch.W, launch.head.B
    rows = jnp.arange(S + 1)
    first_tile = query_start // width + rows
    tile = jnp.arange(T // width + S + 1)[::-1]
    row = (first_tile[None, :] <= tile[:, None]).sum(1) - 1
    ends = jnp.append(query_start[1:], T)
    first = query_start[row] + (tile - first_tile[row]) * width
    count = jnp.clip(ends[row] - first, 0, width)
    position = jnp.append(context_len, 0)[row] - ends[row] + first
    end = jnp.where((row < S) & (count > 0), -(-(position + count) // B), 0)
    window = launch.head.sliding_window
    begin = jnp.zeros_like(end) if window is None else jnp.clip((position + 1 - window) // B, 0, end)
    fields = (jnp.minimum(row, S - 1), first, count, position, begin, end)
    return jnp.stack(fields, axis=1).astype(jnp.int32)


def _kernel(q: Ref, k: Ref, v: Ref, table: Ref, tiles: Ref, *refs: Ref, launch: Launch, shared: Shared) -> None:
    *sinks, out = refs
    group, index = lax.axis_index("group"), lax.axis_index("tile")
    tile = Tile(*(tiles[index, i] for i in range(6)))

    @pl.when((tile.count > 0) & (group == GROUPS))
    def _() -> None:
        plgpu.set_max_registers(40, action="decrease")
        _fetch(k, v, table, tile, launch, shared)

    @pl.when((tile.count > 0) & (group < GROUPS))
    def _() -> None:
        plgpu.set_max_registers(232, action="increase")
        _load_queries(q, tile, launch, shared)
        o = _attend(tuple(sinks), tile, launch, shared)
        _write(o, out, tile, launch, shared)


def _fetch(k: Ref, v: Ref, table: Ref, tile: Tile, launch: Launch, shared: Shared) -> None:
    """Bring one page of keys and values a step, as soon as its place is free."""
    kv_head = lax.axis_index("head")

    @pl.loop(0, tile.end - tile.begin)
    def _(step: jax.Array) -> None:
        slot = lax.rem(step, launch.stages)
        page = table[tile.row, tile.end - 1 - step]
        for name, pages in (("k", k), ("v", v)):
            free = shared[f"{name}_free"].at[slot]
            pl.when(step >= launch.stages)(functools.partial(plgpu.barrier_wait, free))
            plgpu.copy_gmem_to_smem(pages.at[page, kv_head], shared[name].at[slot], shared[f"{name}_here"].at[slot])


def _load_queries(q: Ref, tile: Tile, launch: Launch, shared: Shared) -> None:
    """W tokens of one query head after the other. Those past the tile's are another row's, or zeros past the batch."""
    group, W, G = lax.axis_index("group"), launch.W, launch.head.G
    tokens = pl.ds(tile.first + group * W, W)
    for g in range(G):
        rows = shared["tokens"].at[group, pl.ds(g * W, W)]
        plgpu.copy_gmem_to_smem(q.at[tokens, lax.axis_index("head") * G + g], rows, shared["q_here"].at[group])
    plgpu.barrier_wait(shared["q_here"].at[group])
    shared["q"].at[group][...] = plgpu.load(shared["tokens"].at[group], layout=plgpu.Layout.WGMMA)
    plgpu.commit_smem()


def _attend(sinks: tuple[Ref, ...], tile: Tile, launch: Launch, shared: Shared) -> jax.Array:
    """The output f32[ROWS, D] of a warpgroup's rows; zeros where there is no page, junk past the tile's tokens."""
    head, group = launch.head, lax.axis_index("group")
    per_row = plgpu.Layout.WGMMA.reduce(1)
    position = tile.position + group * launch.W  # of the warpgroup's first token
    steps = tile.end - tile.begin
    carry = (
        plgpu.layout_cast(jnp.zeros((ROWS, head.D), jnp.float32), plgpu.Layout.WGMMA),
        plgpu.layout_cast(jnp.full((ROWS,), DEAD, jnp.float32), per_row),
        plgpu.layout_cast(jnp.zeros((ROWS,), jnp.float32), per_row),
    )
    step = functools.partial(_step, tile=tile, launch=launch, shared=shared, position=position)
    # Pages that end at or before the first token's position need no mask: most of a long context.
    masked = steps
    if head.sliding_window is None:
        masked = tile.end - jnp.minimum(lax.div(jnp.maximum(position + 1, 0), head.B), tile.end)
    carry = lax.fori_loop(0, masked, functools.partial(step, masks=True), carry)
    if head.sliding_window is None:
        carry = lax.fori_loop(masked, steps, functools.partial(step, masks=False), carry)
    o, m, total = carry
    if sinks:
        total += jnp.exp2(_sinks(sinks[0], launch) - m)
    total = jnp.where(total == 0, 1.0, total)
    return o / lax.broadcast_in_dim(total, o.shape, (0,))


def _step(
    step: jax.Array,
    carry: tuple[jax.Array, jax.Array, jax.Array],
    *,
    masks: bool,
    tile: Tile,
    launch: Launch,
    shared: Shared,
    position: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One page: the new (o f32[ROWS, D] not yet divided, largest f32[ROWS] in base 2, sum of weights f32[ROWS])."""
    o, m, total = carry
    head, group = launch.head, lax.axis_index("group")
    slot = lax.rem(step, launch.stages)

    def product(sums: Ref) -> jax.Array:
        plgpu.wgmma(sums, shared["q"].at[group], shared["k"].at[slot].transpose((1, 0)))
        return sums[...]

    plgpu.barrier_wait(shared["k_here"].at[slot])
    scores = pl.run_scoped(product, plgpu.ACC((ROWS, head.B), jnp.float32))
    plgpu.barrier_arrive(shared["k_free"].at[slot])
    if head.soft_cap is not None:
        # tanh(x) = 1 - 2 / (1 + exp(2x)): right at both infinities.
        tanh = 1 - 2 / (1 + jnp.exp2(scores * (2 * LOG2_E * head.scale / head.soft_cap)))
        scores = tanh * (head.soft_cap * LOG2_E)
    else:
        scores *= head.scale * LOG2_E
    if masks:
        scores = jnp.where(_visible((tile.end - 1 - step) * head.B, position, launch), scores, DEAD)
    largest = jnp.maximum(m, scores.max(axis=1))
    weights = jnp.exp2(scores - lax.broadcast_in_dim(largest, scores.shape, (0,)))
    shrink = jnp.exp2(m - largest)
    o *= lax.broadcast_in_dim(shrink, o.shape, (0,))
    total = total * shrink + weights.sum(axis=1)
    plgpu.barrier_wait(shared["v_here"].at[slot])
    if masks:
        _clean(step, tile, launch, shared)
    o = add_product(o, weights.astype(launch.dtype), shared["v"].at[slot], shared.get("weights"))
    plgpu.barrier_arrive(shared["v_free"].at[slot])
    return o, largest, total


def _visible(first_key: jax.Array, position: jax.Array, launch: Launch) -> jax.Array:
    """bool[ROWS, B]: which keys of a page, whose first is at `first_key`, each row sees."""
    shape, layout = (ROWS, launch.head.B), plgpu.Layout.WGMMA
    row, column = (plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=layout) for axis in (0, 1))
    at, key = position + (row & (launch.W - 1)), first_key + column
    seen = key <= at
    if launch.head.sliding_window is not None:
        seen &= key > at - launch.head.sliding_window
    return seen


def _clean(step: jax.Array, tile: Tile, launch: Launch, shared: Shared) -> None:
    """Zero the values past the tile's last token in its last page: they may hold NaN, which a weight of 0 keeps."""
    B = launch.head.B
    live = tile.position + tile.count - (tile.end - 1) * B

    @pl.when((step == 0) & (live < B))
    def _() -> None:
        @pl.when(lax.axis_index("group") == 0)
        def _() -> None:
            values = shared["v"].at[0]
            held = plgpu.load(values, layout=plgpu.Layout.WGMMA)
            row = plgpu.broadcasted_iota(jnp.int32, held.shape, 0, layout=plgpu.Layout.WGMMA)
            values[...] = jnp.where(row < live, held, jnp.zeros_like(held))
            plgpu.commit_smem()

        plgpu.barrier_arrive(shared["cleaned"])
        plgpu.barrier_wait(shared["cleaned"])


def _sinks(sinks: Ref, launch: Launch) -> jax.Array:
    """f32[ROWS]: the sink of each row's query head in base 2."""
    G = launch.head.G
    row = plgpu.broadcasted_iota(jnp.int32, (ROWS,), 0, layout=plgpu.Layout.WGMMA.reduce(1))
    row_sinks = plgpu.layout_cast(jnp.zeros((ROWS,), jnp.float32), plgpu.Layout.WGMMA.reduce(1))
    for g in range(G):
        row_sinks = jnp.where(row >= g * launch.W, sinks[lax.axis_index("head") * G + g] * LOG2_E, row_sinks)
    return row_sinks


def _write(o: jax.Array, out: Ref, tile: Tile, launch: Launch, shared: Shared) -> None:
    """The tile's own tokens and none of the next row's: by powers of two, since what TMA copies has a static size."""
    group, W, G = lax.axis_index("group"), launch.W, launch.head.G
    mine = jnp.clip(tile.count - group * W, 0, W)
    shared["tokens"].at[group][...] = o.astype(launch.dtype)
    plgpu.commit_smem()
    size = W
    while size:
        done = mine & -(2 * size)  # the larger powers

        @pl.when(mine & size != 0)
        def _(size: int = size, done: jax.Array = done) -> None:
            tokens = pl.ds(tile.first + group * W + done, size)
            for g in range(G):
                rows = shared["tokens"].at[group, pl.ds(g * W + done, size)]
                plgpu.copy_smem_to_gmem(rows, out.at[tokens, lax.axis_index("head") * G + g])

        size //= 2
    plgpu.wait_smem_to_gmem(0)
