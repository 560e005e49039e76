"""Paged attention for decode on Hopper: TMA brings the pages, wgmma multiplies them by a KV head's queries.

A block is three warpgroups. One asks TMA for the pages of one part of a row after the other, some pages ahead; two take
the pages of a part in turns, each into a part of its own, and the kernel that combines Triton's parts combines these.
Rows of a tile past the query heads hold anything: no row of a product depends on another. Pallas Mosaic GPU, of JAX
0.12, or of 0.11 outside CUDA graphs. Compiled for sm_90a, interpreted, never executed on a GPU.
"""

import functools
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from .decode_parts import Splitting, choose_splitting, part_table
from .mosaic_support import DECODE, Pipeline, check_support, measured
from .mosaic_tile import add_product
from .target import H200, Target
from .triton_decode import MAX_SPLITS, combine
from .triton_tile import DEAD, LOG2_E, Head, Ref, output

plgpu: Any = importlib.import_module("jax.experimental.pallas.mosaic_gpu")  # its names differ from JAX to JAX

__all__ = ["paged_attention_decode"]

ROWS = 64  # of one wgmma
GROUPS = 2  # warpgroups that multiply
SHARED_MEMORY = 128 << 10  # for the pages in flight; queries and sums take up to 96 KiB more
Shared = Mapping[str, Ref]
"""Shared memory and barriers of a block, by the names of `Launch.scratch`."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What is static about a launch; `stages`: pages of keys, and of values, in flight for each of the two groups."""

    head: Head
    dtype: Any
    stages: int
    splitting: Splitting
    interpret: bool

    @property
    def W(self) -> int:
        """Rows of a tile that TMA brings and takes, whole eights: the query heads and what fills them up."""
        return -(-self.head.G // 8) * 8

    def scratch(self) -> dict[str, Any]:
        B, D = self.head.B, self.head.D

        def tiled(dtype: Any, *shape: int) -> Any:
            transforms = (plgpu.TilingTransform((8, 128 // jnp.dtype(dtype).itemsize)), plgpu.SwizzleTransform(128))
            return plgpu.SMEM(shape, dtype, transforms=transforms)

        slots = GROUPS * self.stages
        arrays = {
            "q": tiled(self.dtype, GROUPS, ROWS, D),
            "k": tiled(self.dtype, slots, B, D),
            "v": tiled(self.dtype, slots, B, D),
            "o": tiled(jnp.float32, GROUPS, ROWS, D),
            "lse": plgpu.SMEM((GROUPS, ROWS), jnp.float32),
        }
        if self.interpret:
            arrays["weights"] = tiled(self.dtype, GROUPS, ROWS, B)
        return arrays | {
            "q_here": plgpu.Barrier(num_barriers=GROUPS),
            "k_here": plgpu.Barrier(num_barriers=slots),
            "v_here": plgpu.Barrier(num_barriers=slots),
            "k_free": plgpu.Barrier(num_barriers=slots),
            "v_free": plgpu.Barrier(num_barriers=slots),
        }


@dataclass(frozen=True, slots=True)
class Part:
    """Some pages of a row, as scalars: begin up to end of its page table; `index` of the row's parts."""

    row: jax.Array
    index: jax.Array
    begin: jax.Array
    end: jax.Array
    length: jax.Array  # of the row

    def pages_of(self, group: jax.Array | int) -> jax.Array:
        """How many of its pages a warpgroup takes: every second, from `group` on."""
        return lax.div(self.end - self.begin + (GROUPS - 1) - group, GROUPS)


def paged_attention_decode(
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
    splitting: Splitting | None = None,
    target: Target = H200,
    interpret: bool = False,
) -> jax.Array:
    """Attention of one query a row; shapes as in `paged_attention`. Raises NotImplementedError naming what it supports.

    splitting pins how rows are cut, in blocks of a page; by default it follows from shapes and the number of SMs.
    """
    del query_start  # row s owns token s
    check_support(q, k_pages, v_pages, k_scale is not None, target, DECODE)
    (S, H, D), (_, K, B, _) = q.shape, k_pages.shape
    head = Head(H // K, D, B, scale, sliding_window, soft_cap)
    keys = page_table.shape[1] * B
    chosen = splitting or choose_splitting(
        S, K, keys, B, sliding_window, target.num_cores, most=MAX_SPLITS // GROUPS, per_core=1
    )
    fitting = Pipeline(SHARED_MEMORY // (2 * GROUPS * B * D * q.dtype.itemsize))
    stages = measured(head.key(q.dtype), target, fitting, DECODE).num_stages
    launch = Launch(head, q.dtype, stages, chosen, interpret)
    queries = jnp.pad(q.reshape(S, K, head.G, D), ((0, 0), (0, 0), (0, launch.W - head.G), (0, 0)))
    table = part_table(context_len, chosen)
    shape = (S, GROUPS * chosen.most, K, launch.W)
    o, lse = plgpu.kernel(
        functools.partial(_kernel, launch=launch),
        out_type=(output((*shape, D), jnp.float32, q), output(shape, jnp.float32, q)),
        grid=(chosen.programs, K),
        grid_names=("program", "head"),
        num_threads=GROUPS + 1,
        thread_name="group",
        scratch_types={"shared": launch.scratch()},
        # Rows are summed within a warp, so shared memory for sums over warps would only be missing elsewhere.
        compiler_params=plgpu.CompilerParams(approx_math=True, reduction_scratch_bytes=0),
        kernel_name="paged_decode_mosaic",
        interpret=plgpu.InterpretGPUParams(detect_races=True) if interpret else None,
    )(queries, k_pages, v_pages, page_table, context_len, table)
    extras = () if sinks is None else (sinks,)
    return combine(o, lse, context_len, extras, replace(chosen, pieces=GROUPS), head.G, q.dtype, interpret)


def _kernel(
    q: Ref, k: Ref, v: Ref, table: Ref, lengths: Ref, parts: Ref, o: Ref, lse: Ref, *, launch: Launch, shared: Shared
) -> None:
    program, group = lax.axis_index("program"), lax.axis_index("group")
    programs = launch.splitting.programs
    count = parts[parts.shape[0] - 1, 0]  # the last line says how many there are
    turns = lax.div(jnp.maximum(count - program, 0) + (programs - 1), programs)

    def part(turn: jax.Array) -> Part:
        number = program + turn * programs
        row = parts[number, 0]
        return Part(row, parts[number, 1], parts[number, 2], parts[number, 3], lengths[row])

    @pl.when(group == GROUPS)
    def _() -> None:
        plgpu.set_max_registers(40, action="decrease")

        def fetch(turn: jax.Array, used: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            current = part(turn)
            _fetch(k, v, table, current, used, launch, shared)
            return tuple(before + current.pages_of(g) for g, before in enumerate(used))

        lax.fori_loop(0, turns, fetch, (jnp.int32(0),) * GROUPS)

    @pl.when(group < GROUPS)
    def _() -> None:
        plgpu.set_max_registers(232, action="increase")

        def compute(turn: jax.Array, used: jax.Array) -> jax.Array:
            current = part(turn)
            mine, here = shared["q"].at[group, pl.ds(0, launch.W)], shared["q_here"].at[group]
            plgpu.copy_gmem_to_smem(q.at[current.row, lax.axis_index("head")], mine, here)
            plgpu.barrier_wait(here)
            softmax = _attend(current, used, launch, shared)
            _write(softmax, current, o, lse, launch, shared)
            return used + current.pages_of(group)

        lax.fori_loop(0, turns, compute, jnp.int32(0))


def _fetch(k: Ref, v: Ref, table: Ref, part: Part, used: tuple[jax.Array, ...], launch: Launch, shared: Shared) -> None:
    """Bring a part's pages, those of both groups in turns, each as soon as its place is free.

    used: pages that each group's places have had.
    """
    kv_head = lax.axis_index("head")

    @pl.loop(0, part.end - part.begin)
    def _(step: jax.Array) -> None:
        group = lax.rem(step, GROUPS)
        before = functools.reduce(lambda so_far, g: jnp.where(group == g, used[g], so_far), range(GROUPS), used[0])
        turn = before + lax.div(step, GROUPS)
        slot = group * launch.stages + lax.rem(turn, launch.stages)
        page = table[part.row, part.begin + step]
        for name, pages in (("k", k), ("v", v)):
            free = shared[f"{name}_free"].at[slot]
            pl.when(turn >= launch.stages)(functools.partial(plgpu.barrier_wait, free))
            plgpu.copy_gmem_to_smem(pages.at[page, kv_head], shared[name].at[slot], shared[f"{name}_here"].at[slot])


def _attend(part: Part, used: jax.Array, launch: Launch, shared: Shared) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The group's pages of a part: (o f32[ROWS, D] not yet divided, largest f32[ROWS] in base 2, sum of weights)."""
    per_row = plgpu.Layout.WGMMA.reduce(1)
    empty = (
        plgpu.layout_cast(jnp.zeros((ROWS, launch.head.D), jnp.float32), plgpu.Layout.WGMMA),
        plgpu.layout_cast(jnp.full((ROWS,), DEAD, jnp.float32), per_row),
        plgpu.layout_cast(jnp.zeros((ROWS,), jnp.float32), per_row),
    )
    step = functools.partial(_step, part=part, used=used, launch=launch, shared=shared)
    softmax: tuple[jax.Array, jax.Array, jax.Array]
    softmax = lax.fori_loop(0, part.pages_of(lax.axis_index("group")), step, empty)
    return softmax


def _step(
    step: jax.Array,
    carry: tuple[jax.Array, jax.Array, jax.Array],
    *,
    part: Part,
    used: jax.Array,
    launch: Launch,
    shared: Shared,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One page of the group's."""
    o, m, total = carry
    head, group = launch.head, lax.axis_index("group")
    slot = group * launch.stages + lax.rem(used + step, launch.stages)
    first_key = (part.begin + step * GROUPS + group) * head.B

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
    key = first_key + plgpu.broadcasted_iota(jnp.int32, scores.shape, 1, layout=plgpu.Layout.WGMMA)
    seen = key < part.length
    if head.sliding_window is not None:
        seen &= key >= part.length - head.sliding_window
    scores = jnp.where(seen, scores, DEAD)
    largest = jnp.maximum(m, scores.max(axis=1))
    weights = jnp.exp2(scores - lax.broadcast_in_dim(largest, scores.shape, (0,)))
    shrink = jnp.exp2(m - largest)
    o *= lax.broadcast_in_dim(shrink, o.shape, (0,))
    total = total * shrink + weights.sum(axis=1)
    plgpu.barrier_wait(shared["v_here"].at[slot])
    _clean(part.length - first_key, slot, launch, shared)
    o = add_product(o, weights.astype(launch.dtype), shared["v"].at[slot], shared.get("weights"))
    plgpu.barrier_arrive(shared["v_free"].at[slot])
    return o, largest, total


def _clean(live: jax.Array, slot: jax.Array, launch: Launch, shared: Shared) -> None:
    """Zero a page's values past its `live` first tokens: they may hold NaN, which a weight of 0 keeps."""

    @pl.when(live < launch.head.B)
    def _() -> None:
        values = shared["v"].at[slot]
        held = plgpu.load(values, layout=plgpu.Layout.WGMMA)
        row = plgpu.broadcasted_iota(jnp.int32, held.shape, 0, layout=plgpu.Layout.WGMMA)
        values[...] = jnp.where(row < live, held, jnp.zeros_like(held))
        plgpu.commit_smem()


def _write(
    softmax: tuple[jax.Array, jax.Array, jax.Array], part: Part, out: Ref, lse: Ref, launch: Launch, shared: Shared
) -> None:
    """The group's part, [W, D] and [W]; of a group that had no page zeros, and DEAD."""
    o, m, total = softmax
    group, rows = lax.axis_index("group"), pl.ds(0, launch.W)
    any_weight = total > 0
    divisor = jnp.where(any_weight, total, 1.0)
    shared["o"].at[group][...] = o / lax.broadcast_in_dim(divisor, o.shape, (0,))
    shared["lse"].at[group][...] = jnp.where(any_weight, m + jnp.log2(divisor), DEAD)
    plgpu.commit_smem()
    place = (part.row, part.index * GROUPS + group, lax.axis_index("head"))
    plgpu.copy_smem_to_gmem(shared["o"].at[group, rows], out.at[place])
    plgpu.copy_smem_to_gmem(shared["lse"].at[group, rows], lse.at[place])
    plgpu.wait_smem_to_gmem(0)
