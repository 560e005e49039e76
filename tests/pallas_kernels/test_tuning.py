"""Tables of tiles: read, refused, absent, and what a table says reaches the kernel. The times are made up."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from benchmarks import tune
from pallas_kernels import discover, tuning
from pallas_kernels.paged_attention import triton_decode, triton_prefill
from pallas_kernels.paged_attention.cases import Case, Row
from pallas_kernels.paged_attention.target import H200, Target
from pallas_kernels.paged_attention.triton_tile import Head, Tiling
from pallas_kernels.tuning import TuningError, read_table, table_path, tuned

GPU = dataclasses.replace(H200, kind="NVIDIA H200")
HEAD = Head(G=4, D=128, B=64, scale=0.1, sliding_window=None, soft_cap=None)
KEY = "bfloat16 G4 D128 B64"


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

    assert "grid=(128, 2, 1)" in (before := launch())
    assert "num_warps=2" not in before
    write(f"[paged_decode.'{KEY}']\nnum_warps = 2\n[paged_decode_splits.'{KEY}']\nprograms_per_core = 1\n")
    assert "grid=(66, 2, 1)" in (after := launch())  # two KV heads on 132 SMs
    assert "num_warps=2" in after
    write(f"[paged_decode_splits.'{KEY}']\nprograms_per_core = 0\n")
    with pytest.raises(TuningError):
        launch()


@pytest.mark.parametrize(
    ("text", "told"),
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
def test_a_malformed_table_is_refused_with_what_is_wrong(text: str, told: str) -> None:
    write(text)
    with pytest.raises(TuningError, match=told) as refused:
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
    found = {(each.name, each.key): each for each in tune.questions("paged_attention/llama3_8b")}
    assert set(found) == {
        ("paged_decode", KEY),
        ("paged_decode_splits", KEY),
        ("paged_prefill", KEY),
    }
    assert found["paged_decode", KEY].default == Tiling(16, 64, 4, 3)
    assert len(found["paged_decode", KEY].cases) == 3


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
    [kernel] = [kernel for kernel in discover() if kernel.name == "paged_attention"]
    case = Case("short", 4, 1, 16, 16, (Row(1, 40),))
    monkeypatch.setattr(tune, "seconds_per_call", lambda function, args, seconds: 1.0)
    monkeypatch.setattr(jax, "clear_caches", lambda: None)  # not those of the tests beside
    asked = {name: (key, default) for name, key, default in tune._asked(kernel, case)}
    key, default = asked["paged_decode"]
    timer = tune.Timer(tune.Question("paged_decode", key, default, kernel, (case,)), 0.1, float("inf"))
    assert timer({"C": 16}) == 1.0
    assert timer({"M": 2}) is None  # of four query heads
    assert timer({"C": 7}) is None


def test_without_a_gpu_nothing_is_tuned(capsys: pytest.CaptureFixture[str]) -> None:
    assert tune.main([]) == 2
    assert "no GPU is here" in capsys.readouterr().err
