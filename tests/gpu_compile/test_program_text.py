"""The readers of programs see what they are there to see."""

from tests.gpu_compile import program_text

PAGES = "bf16[9,2,4,8]"
WEIGHT = "bf16[64,16]"
GOOD = """HloModule step

%add (a: bf16[], b: bf16[]) -> bf16[] {
  ROOT %sum = bf16[] add(%a, %b)
}

ENTRY %main (w: bf16[64,16], k: bf16[9,2,4,8]) -> (bf16[9,2,4,8], bf16[2,16]) {
  %w = bf16[64,16]{1,0} parameter(0)
  %k = bf16[9,2,4,8]{3,2,1,0} parameter(1)
  %bitcast.1 = bf16[64,16]{1,0} bitcast(%w)
  %input_scatter_fusion = bf16[9,2,4,8]{3,2,1,0} fusion(%k, %w), kind=kInput, calls=%fused_scatter
  %pallas_call.1 = (f32[2,4,8]{2,1,0}, f32[2,4]{1,0}) custom-call(%input_scatter_fusion), \
custom_call_target="__gpu$xla.gpu.triton", metadata={op_name="jit(step)/paged_decode_split/pallas_call"}
  %gemm = bf16[2,16]{1,0} fusion(%pallas_call.1, %bitcast.1), kind=kCustom, calls=%gemm_computation
  %all-reduce-start.1 = bf16[2,16]{1,0} all-reduce-start(%gemm), channel_id=1, to_apply=%add
  %all-reduce-done.1 = bf16[2,16]{1,0} all-reduce-done(%all-reduce-start.1)
  ROOT %tuple = (bf16[9,2,4,8]{3,2,1,0}, bf16[2,16]{1,0}) tuple(%input_scatter_fusion, %all-reduce-done.1)
}
"""


def copies(program: str) -> list[str]:
    return program_text.copies(program, PAGES, {WEIGHT}, 1000)


def planted(line: str) -> str:
    assert GOOD.count("  %gemm = ") == 1
    return GOOD.replace("  %gemm = ", f"  {line}\n  %gemm = ")


def test_a_program_that_copies_nothing_has_no_copies() -> None:
    assert copies(GOOD) == []
    assert program_text.page_writes(GOOD, PAGES) == 1


def test_a_copy_of_the_pages_is_seen() -> None:
    assert len(copies(planted("%copy.1 = bf16[9,2,4,8]{3,2,1,0} copy(%k)"))) == 1
    assert len(copies(planted("%loop_fusion = (f32[], bf16[9,2,4,8]{3,2,1,0}) fusion(%k), calls=%fused"))) == 1


def test_a_weight_that_is_made_again_is_seen() -> None:
    assert len(copies(planted("%convert.1 = bf16[64,16]{0,1} fusion(%w), kind=kLoop, calls=%fused"))) == 1


def test_a_large_move_of_anything_is_seen_and_a_small_one_is_let_pass() -> None:
    large = "%wrapped = f32[4,500]{1,0} fusion(%x), kind=kLoop, calls=%wrapped_transpose_computation"
    assert len(copies(planted(large))) == 1
    assert copies(planted(large.replace("500", "50"))) == []


def test_collectives_are_counted_with_the_type_that_crosses() -> None:
    assert program_text.collectives(GOOD) == {"all-reduce bf16": 1}
    pair = "%all-to-all-start = ((f32[8,4]{1,0}), f32[8,4]{1,0}) all-to-all-start(%x), dimensions={0}"
    assert program_text.collectives(planted(pair)) == {"all-reduce bf16": 1, "all-to-all f32": 1}


def test_kernels_are_known_by_their_names() -> None:
    assert program_text.pallas_calls(GOOD) == {"paged_decode_split": 1}
    assert program_text.custom_calls(GOOD) == {"__gpu$xla.gpu.triton": 1}


def test_thunks_in_and_beside_graphs_are_told_apart() -> None:
    dump = """000: kCommandBuffer [source | sink]
    001: kCopy         [source] kCopy
    002: kCustomKernel [prev=001 (1)] loop_fusion grid: [16, 1, 1]
003: kAllReduce [source | sink]
004: kCustomKernel [source | sink] gemm grid: [1, 1, 1]
"""
    actual = program_text.thunks(dump)
    assert (actual.graphs, actual.outside, actual.launches) == (1, {"AllReduce": 1, "CustomKernel": 1}, 2)


def test_atomic_instructions_are_found_by_kernel() -> None:
    ptx = ".visible .entry plain(\n) {\n st.global.b16 [%r], %rs;\n ret;\n}\n.visible .entry swapped(\n) {\n"
    ptx += "$L1:\n\t@%p1 atom.relaxed.sys.global.cas.b32 %r, [%rd], %r, %r;\n}"
    assert program_text.atomic_kernels(ptx) == ["swapped"]
