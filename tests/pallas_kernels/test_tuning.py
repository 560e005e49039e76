"""Tables of tiles: read, refused, absent, and what a table says reaches the kernel. The times are made up."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from benchmarks import tune
from pallas_kernels import Kernel, discover, paged_attention, tuning
from pallas_kernels.gpu_target import abstract_gpus
from pallas_kernels.paged_attention import mosaic_support, triton_decode, triton_prefill
from pallas_kernels.paged_attention.cases import Case, Row
from pallas_kernels.paged_attention.mosaic_support import DECODE, NEEDS_JAX, PREFILL, Pipeline
from pallas_kernels.paged_attention.target import H200, Target
from pallas_kernels.paged_attention.triton_tile import Head, Tiling
from pallas_kernels.tuning import TuningError, read_table, table_path, tuned

GPU = dataclasses.replace(H200, kind="NVIDIA H200")
HEAD = Head(G=4, D=128, B=64, scale=0.1, sliding_window=None, soft_cap=None)
KEY = "bfloat16 G4 D128 B64"
needs_mosaic = pytest.mark.skipif(jax.__version_info__[:2] < NEEDS_JAX, reason=f"needs JAX {NEEDS_JAX}")

[ATTENTION] = [kernel for kernel in discover() if kernel.name == "paged_attention"]
TABLE = PREFILL.table
PROMPT = Case("prefill", 32, 8, 128, 64, (Row(2048, 2048),))
ASKED = tune.Question(TABLE, KEY, Pipeline(4), ATTENTION, (PROMPT,), "mosaic")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(tuning, "FOLDER", tmp_path)
    read_table.cache_clear()
    yield tmp_path
    read_table.cache_clear()


def write(text: str, device: str = "NVIDIA H200") -> None:
    read_table.cache_clear()
    table_path("NVIDIA H200").write_text(f"device = '{device}'\n{text}")


def decode_tiling(target: Target) -> Tiling:
    return triton_decode.choose_tiling(HEAD, jnp.bfloat16, target)


def test_without_a_table_the_kernel_chooses_by_itself() -> None:
    assert decode_tiling(GPU) == decode_tiling(H200) == Tiling(16, 64, 4, 3)
    assert decode_tiling(dataclasses.replace(H200, kind="NVIDIA X1")) == Tiling(16, 64, 4, 3)


def test_a_table_reaches_the_tiles_of_its_device_and_key_alone() -> None:
    write(f"[paged_decode.'{KEY}']\nC = 32\nnum_warps = 2\n[paged_prefill.'{KEY}']\nM = 64\n")
    assert decode_tiling(GPU) == Tiling(16, 32, 2, 3)
    assert decode_tiling(H200) == Tiling(16, 64, 4, 3)
    other = dataclasses.replace(HEAD, D=64)
    assert triton_decode.choose_tiling(other, jnp.bfloat16, GPU).num_warps == 4
    prefill = functools.partial(triton_prefill.choose_tiling, HEAD, jnp.bfloat16, jnp.bfloat16, target=GPU)
    assert prefill(T=4096).M == 64
    assert prefill(T=4).M == 16  # no more rows than queries, tuned or not


def test_tuned_tiles_and_splits_are_what_the_kernel_is_launched_with() -> None:
    case = Case("long", 8, 2, 128, 64, (Row(1, 16384),))
    static = {name: value for name, value in case.shapes().static.items() if name != "decode"}

    def launch() -> str:
        run = functools.partial(triton_decode.paged_attention_decode, interpret=True, target=GPU, **static)
        return str(jax.make_jaxpr(run)(*case.shapes().args))

    assert "grid=(128, 2)" in (before := launch())
    assert "num_warps=2" not in before
    write(f"[paged_decode.'{KEY}']\nnum_warps = 2\n[paged_decode_splits.'{KEY}']\nprograms_per_core = 1\n")
    assert "grid=(66, 2)" in (after := launch())  # two KV heads on 132 SMs
    assert "num_warps=2" in after
    write(f"[paged_decode_splits.'{KEY}']\nprograms_per_core = 0\n")
    with pytest.raises(TuningError):
        launch()


@pytest.mark.parametrize(
    ("text", "reported"),
    [
        ("[paged_decode", "is no table of tiles"),
        ("paged_decode = 3", "must be fields with whole numbers"),
        (f"[paged_decode]\n'{KEY}' = 64", "must be fields with whole numbers"),
        (f"[paged_decode.'{KEY}']\nC = 0", "from 1 to 1024"),
        (f"[paged_decode.'{KEY}']\nC = 1000000", "from 1 to 1024"),
        (f"[paged_decode.'{KEY}']\nC = true", "from 1 to 1024"),
        (f"[paged_decode.'{KEY}']\nC = '64'", "from 1 to 1024"),
        (f"[paged_decode.'{KEY}']\nwarps = 4", "it may have M, C, num_warps, num_stages"),
    ],
)
def test_a_malformed_table_is_refused_with_what_is_wrong(text: str, reported: str) -> None:
    write(text)
    with pytest.raises(TuningError, match=reported) as refused:
        decode_tiling(GPU)
    assert "nvidia-h200.toml" in str(refused.value)


def test_a_table_of_another_device_or_of_no_text_is_refused() -> None:
    write("", device="NVIDIA H100")
    with pytest.raises(TuningError, match="must say device = 'NVIDIA H200'"):
        decode_tiling(GPU)
    read_table.cache_clear()
    table_path("NVIDIA H200").write_bytes(b"\xff\xfe")
    with pytest.raises(TuningError, match="is no table"):
        decode_tiling(GPU)


def test_tables_that_are_committed_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for path in tuning.FOLDER.glob("*.toml"):
        kind = path.read_text().split('device = "', 1)[1].split('"', 1)[0]
        assert table_path(kind) == path
        assert read_table(path, kind)


def test_questions_are_found_by_tracing_the_real_cases() -> None:
    actual = {(each.name, each.key): each for each in tune.questions("paged_attention/llama3_8b")}
    assert [at for at in actual if at[0] not in (TABLE, DECODE.table)] == [
        ("paged_decode", KEY),
        ("paged_decode_splits", KEY),
        ("paged_prefill", KEY),
    ]
    assert actual["paged_decode", KEY].default == Tiling(16, 64, 4, 3)
    assert len(actual["paged_decode", KEY].cases) == 3


@pytest.mark.parametrize(
    "kernel", [each for each in discover() if "triton" in each.implementations], ids=lambda k: k.name
)
def test_every_kernel_asks_the_table_for_its_tiles(kernel: Kernel) -> None:
    case = next(case for case in kernel.cases if not case.quick)
    looked_up = {name for name, _, _ in tune._lookups(kernel, case, "triton")}
    assert looked_up & {"paged_decode", "latent_decode", "moe_gate_up", "quant_matmul", "kept_threshold"}


def test_search_follows_the_times_and_leaves_what_cannot_be_used() -> None:
    tried: list[Mapping[str, int]] = []

    def time_of(values: Mapping[str, int]) -> float | None:
        tried.append(dict(values))
        tiling = dataclasses.replace(Tiling(16, 64, 4, 3), **values)
        if tiling.M != 16 or tiling.num_stages > 4:
            return None
        return 1 + abs(tiling.C - 256) / 1000 - 0.192 + 0.1 * abs(tiling.num_warps - 8) - 0.4

    values, share = tune.search(Tiling(16, 64, 4, 3), time_of)
    assert values == {"C": 256, "num_warps": 8}
    assert share == pytest.approx(0.408)
    assert len(tried) == len({tuple(sorted(each.items())) for each in tried}) < 40


def test_search_keeps_the_default_where_nothing_wins_by_more_than_noise() -> None:
    assert tune.search(Tiling(16, 64, 4, 3), lambda _: 0.99) == ({}, 1.0)


def test_a_table_is_written_so_that_it_is_read_again() -> None:
    entries = {("paged_decode", KEY): {"C": 32, "num_stages": 4}, ("paged_prefill", KEY + " window"): {"M": 64}}
    table_path("NVIDIA H200").write_text(tune.table("NVIDIA H200", entries))
    assert tune.known("NVIDIA H200") == entries
    assert tuned("NVIDIA H200", "paged_decode", KEY, Tiling(16, 64, 4, 3)) == Tiling(16, 32, 4, 4)


def test_candidates_that_give_other_values_or_do_not_run_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("short", 4, 1, 16, 16, (Row(1, 40),))
    monkeypatch.setattr(tune, "seconds_per_call", lambda function, args, seconds: 1.0)
    monkeypatch.setattr(jax, "clear_caches", lambda: None)  # not those of the tests beside
    requested = {name: (key, default) for name, key, default in tune._lookups(ATTENTION, case, "triton")}
    key, default = requested["paged_decode"]
    timer = tune.Timer(tune.Question("paged_decode", key, default, ATTENTION, (case,)), 0.1, float("inf"), {})
    assert timer({"C": 16}) == 1.0
    assert timer({"M": 2}) is None  # of four query heads
    assert timer({"C": 7}) is None


def is_chosen(case: Case, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether "auto" takes the Mosaic kernel for a case on an H200 with a JAX that has it."""
    monkeypatch.setattr(mosaic_support, "NEEDS_JAX", (0, 10))
    monkeypatch.setattr(mosaic_support, "CHOSEN_WITH_JAX", (0, 10))
    read_table.cache_clear()
    with abstract_gpus("h200"):
        inputs = case.shapes()
        return paged_attention._mosaic_has_won(*inputs.args, None, None, None, **inputs.static)


@pytest.mark.parametrize(
    ("times", "kept"),
    [
        ({4: 0.9}, {"num_stages": 4}),  # the kernel's own choice, written out: an empty entry would not choose it
        ({4: 0.97, 3: 0.9, 2: 0.8}, {"num_stages": 2}),
        ({4: 1.2, 5: 0.7}, {"num_stages": 5}),
        ({4: 0.951}, {}),  # faster, but by less than the margin
        ({4: 1.3, 3: 1.2}, {}),
        ({3: 0.5}, {}),  # its own choice does not compile, or gives other values
    ],
)
def test_mosaic_gets_an_entry_and_is_chosen_only_where_it_beats_triton_by_the_margin(
    times: Mapping[int, float], kept: Mapping[str, int], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(f"[paged_prefill.'{KEY}']\nM = 64\n[{TABLE}.'{KEY}']\nnum_stages = 1\n")  # of an earlier visit
    reported: list[tune.Entries] = []

    def timer_of(question: tune.Question, entries: tune.Entries) -> tune.TimeOf:
        reported.append(dict(entries))
        return lambda values: times.get(values["num_stages"])

    tune.fill("NVIDIA H200", [ASKED], timer_of, float("inf"))
    assert reported[0]["paged_prefill", KEY] == {"M": 64}
    read_table.cache_clear()
    actual = tune.known("NVIDIA H200")
    assert actual.pop((TABLE, KEY), {}) == kept
    assert actual == {("paged_prefill", KEY): {"M": 64}}
    assert is_chosen(PROMPT, monkeypatch) == bool(kept)
    assert not is_chosen(dataclasses.replace(PROMPT, H=16), monkeypatch)


def test_a_contest_that_was_cut_off_leaves_what_the_table_has(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(f"[{TABLE}.'{KEY}']\nnum_stages = 3\n")
    clock = iter([0.0, 9.0])
    monkeypatch.setattr(tune.time, "monotonic", lambda: next(clock))
    tune.fill("NVIDIA H200", [ASKED], lambda question, entries: lambda values: None, 5.0)
    assert is_chosen(PROMPT, monkeypatch)


def timed(monkeypatch: pytest.MonkeyPatch, seconds: Callable[[str], float]) -> None:
    """Times are what `seconds` makes of the program; its values count all the same."""
    monkeypatch.setattr(
        tune, "seconds_per_call", lambda function, args, budget: seconds(str(jax.make_jaxpr(function)(*args)))
    )
    monkeypatch.setattr(jax, "clear_caches", lambda: None)


def test_a_candidate_is_timed_beside_the_entries_that_the_table_has(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("short", 4, 1, 16, 16, (Row(1, 40),))
    requested = {name: (key, default) for name, key, default in tune._lookups(ATTENTION, case, "triton")}
    programs: list[str] = []
    timed(monkeypatch, lambda program: programs.append(program) or 1.0)
    key, default = requested["paged_decode_splits"]
    question = tune.Question("paged_decode_splits", key, default, ATTENTION, (case,))
    tune.Timer(question, 0.1, float("inf"), {("paged_decode", key): {"num_warps": 2}})
    assert "num_warps=2" in programs[0]


@needs_mosaic
def test_where_jax_has_mosaic_it_is_asked_after_triton() -> None:
    actual = tune.questions("paged_attention/llama3_8b")
    assert [(each.name, each.key, each.implementation) for each in actual][-1] == (TABLE, KEY, "mosaic")
    assert actual[-1].default == Pipeline(4)
    assert {"llama3_8b_prefill_2k", "llama3_8b_mixed"} < {case.name for case in actual[-1].cases}


@needs_mosaic
@pytest.mark.parametrize("slower", [{}, {"padded": 2.0}])
def test_mosaic_is_timed_against_tuned_triton_and_counts_where_it_does_worst(
    slower: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = (
        Case("padded", 4, 1, 64, 64, (Row(64, 70),), padding_tokens=3),
        Case("even", 4, 1, 64, 64, (Row(64, 70),)),
    )
    [(name, key, default)] = tune._lookups(ATTENTION, cases[0], "mosaic")
    triton: list[str] = []

    def seconds(program: str) -> float:
        if "paged_prefill_mosaic" in program:
            return slower.get("padded", 0.5) if "[67,4,64]" in program else 0.5
        triton.append(program)
        return 1.0

    timed(monkeypatch, seconds)
    question = tune.Question(name, key, default, ATTENTION, cases, "mosaic")
    timer = tune.Timer(question, 0.1, float("inf"), {("paged_prefill", key): {"num_warps": 2}})
    assert all("num_warps=2" in program for program in triton)
    assert timer({"num_stages": 2}) == slower.get("padded", 0.5)
    assert len(triton) == 2


def test_without_a_gpu_nothing_is_tuned(capsys: pytest.CaptureFixture[str]) -> None:
    assert tune.main([]) == 2
    assert "no GPU is here" in capsys.readouterr().err
