"""Bugs planted in the Mosaic kernels, of masks, slots, waits and pages: the interpreter must notice each.

It copies when it is asked to and not later, so that a wait that is missing may give the right values. What it sees
instead are clocks, of each thread at each access (a race), and the phases of each barrier, which must be waited for.
Its wgmma has no clock: a place that is given free before a product has read it is seen only if the threads happen to
run so, and is not among these. Not seen at all are queries handed to wgmma without `commit_smem`, and one copy more
than is waited for. Those, and what TMA really does, need the GPU.
"""

from pathlib import Path

import jax
import pytest

from tests.pallas_kernels.mosaic_interpreter import INTERPRETED, interpret_apart
from tests.pallas_kernels.planted_bugs import Mutant

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(jax.__version_info__[:2] < (0, 12), reason=f"needs JAX 0.12; this is {jax.__version__}"),
]

PAGES = "long_context_reuses_places"  # seven pages in four places, without a page to clean
RAGGED = "soft_cap_f16_g3"
WINDOW = "window_sinks_g8"
NEXT = "lax.rem(slot + 1, launch.stages)"
FETCHED = "slot = lax.rem(step, launch.stages)\n        page"
FREED = "            pl.when(step >= launch.stages)(functools.partial(plgpu.barrier_wait, free))\n"
WRITTEN = "o.astype(launch.dtype)\n    plgpu.commit_smem()\n"
ARRIVE = 'plgpu.barrier_arrive(shared["k_free"].at[slot])'

VALUES = (
    ("query sees the next token", "seen = key <= at", "seen = key <= at + 1", RAGGED),
    ("window one too wide", "seen &= key > at -", "seen &= key >= at -", WINDOW),
    ("dead values kept", "jnp.where(row < live,", "jnp.where(row <= live,", RAGGED),
    ("sink of another head", "row >= g * launch.W", "row >= g", WINDOW),
    (
        "queries of the other warpgroup",
        'wgmma(sums, shared["q"].at[group]',
        'wgmma(sums, shared["q"].at[1 - group]',
        PAGES,
    ),
)
SLOTS = (
    ("copied beside its slot", "shared[name].at[slot], shared", f"shared[name].at[{NEXT}], shared", PAGES),
    ("keys of the next slot", 'shared["k"].at[slot].transpose', f'shared["k"].at[{NEXT}].transpose', PAGES),
    ("values of the next slot", 'values = shared["v"].at[slot]', f'values = shared["v"].at[{NEXT}]', PAGES),
    ("fetched for the next slot", FETCHED, FETCHED.replace("(step,", "(step + 1,"), PAGES),
    ("another slot given free", ARRIVE, ARRIVE.replace("slot", NEXT), PAGES),
    ("page before", "tile.end - 1 - step]", "tile.end - step]", PAGES),
    ("page after", "tile.end - 1 - step]", "jnp.maximum(tile.end - 2 - step, 0)]", PAGES),
)
WAITS = (
    ("keys not waited for", '    plgpu.barrier_wait(shared["k_here"].at[slot])\n', "", PAGES),
    ("values not waited for", '    plgpu.barrier_wait(shared["v_here"].at[slot])\n', "", PAGES),
    ("queries not waited for", '    plgpu.barrier_wait(shared["q_here"].at[group])\n', "", PAGES),
    ("slot taken before it is free", FREED, "", PAGES),
    ("slot waited for one step late", "step >= launch.stages", "step > launch.stages", PAGES),
    ("slot waited for one step early", "step >= launch.stages", "step >= launch.stages - 1", PAGES),
    ("slot never given free", f"    {ARRIVE}\n", "", PAGES),
    ("one page fewer fetched", "tile.end - tile.begin)\n", "tile.end - tile.begin - 1)\n", PAGES),
    (
        "keys free after one warpgroup",
        '"k_free": plgpu.Barrier(num_arrivals=GROUPS',
        '"k_free": plgpu.Barrier(num_arrivals=1',
        PAGES,
    ),
    ("queries here after one head", "num_arrivals=self.head.G", "num_arrivals=1", PAGES),
    ("output copied before it is written", WRITTEN, WRITTEN.replace("    plgpu.commit_smem()\n", ""), PAGES),
    ("output not waited for", "    plgpu.wait_smem_to_gmem(0)\n", "", PAGES),
    ("cleaned by one and not told", '        plgpu.barrier_wait(shared["cleaned"])\n', "", RAGGED),
)
TURNS = "decode_reuses_places"  # parts of three pages in two places of each warpgroup, and of rows with one page
DECODE_WINDOW = "decode_window_sinks_g8"
SLOT = "lax.rem(used + step, launch.stages)"
DECODE = (
    ("dead keys seen", "seen = key < part.length", "seen = key <= part.length", TURNS),
    ("window one too wide", "key >= part.length - head", "key >= part.length - 1 - head", DECODE_WINDOW),
    ("dead values kept", "jnp.where(row < live,", "jnp.where(row <= live,", TURNS),
    ("pages of the other group", "step * GROUPS + group) *", "step * GROUPS + 1 - group) *", TURNS),
    ("pages of the part before", "part.begin + step]", "step]", TURNS),
    ("page before", "part.begin + step]", "jnp.maximum(part.begin + step - 1, 0)]", TURNS),
    ("places begin anew in each part", SLOT, "lax.rem(step, launch.stages)", TURNS),
    ("places of the other group", "slot = group * launch.stages + lax.rem(used", "slot = lax.rem(used", TURNS),
    ("queries of the other group", 'wgmma(sums, shared["q"].at[group]', 'wgmma(sums, shared["q"].at[1 - group]', TURNS),
    ("one part over the other", "part.index * GROUPS + group", "part.index * GROUPS", TURNS),
    ("empty part weighs", "m + jnp.log2(divisor), DEAD)", "m + jnp.log2(divisor), 0.0)", TURNS),
    ("keys not waited for", '    plgpu.barrier_wait(shared["k_here"].at[slot])\n', "", TURNS),
    ("values not waited for", '    plgpu.barrier_wait(shared["v_here"].at[slot])\n', "", TURNS),
    ("queries not waited for", "            plgpu.barrier_wait(here)\n", "", TURNS),
    ("place never given free", '    plgpu.barrier_arrive(shared["k_free"].at[slot])\n', "", TURNS),
    ("place taken before it is free", "turn >= launch.stages", "turn > launch.stages", TURNS),
    ("place waited for too early", "turn >= launch.stages", "turn >= launch.stages - 1", TURNS),
    ("sums copied before they are written", ", DEAD)\n    plgpu.commit_smem()\n", ", DEAD)\n", TURNS),
    ("sums not waited for", "    plgpu.wait_smem_to_gmem(0)\n", "", TURNS),
)
MUTANTS = (
    *(Mutant(bug, "mosaic_prefill.py", *rest) for bug, *rest in (*VALUES, *SLOTS, *WAITS)),
    *(Mutant(f"decode {bug}", "mosaic_decode.py", *rest) for bug, *rest in DECODE),
)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.id)
def test_planted_bug_is_caught(mutant: Mutant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = mutant.plant("paged_attention", tmp_path, monkeypatch)
    outcome = interpret_apart(package, tmp_path, INTERPRETED[mutant.case])
    assert outcome.caught
    if outcome.refused:
        known = ("RACE DETECTED", "Barrier", "barrier", "Not all copy_smem_to_gmem")
        assert any(words in outcome.refused for words in known), outcome
    if outcome.stopped_in:
        assert "in _wait" in outcome.stopped_in, outcome  # of a barrier, and nowhere else


@pytest.mark.parametrize("name", [PAGES, RAGGED, TURNS])
def test_without_a_bug_the_same_process_catches_nothing(name: str, tmp_path: Path) -> None:
    assert not interpret_apart("pallas_kernels", tmp_path, INTERPRETED[name]).caught
