"""The table of GGUF types: a file is brought into a type, and rows are told against the file itself."""

from pathlib import Path

import gguf
import numpy as np

from benchmarks.gguf_types import DEQUANTIZED, kind_for, requantize, rows_of
from jserve.checkpoint import open_checkpoint
from tests.checkpoint.gguf.maker import CONFIG, tiny_state, write_gguf


def test_a_file_comes_into_another_type_with_all_that_it_says(tmp_path: Path) -> None:
    state = tiny_state()
    source = write_gguf(tmp_path / "source.gguf", state, CONFIG, metadata={"tokenizer.ggml.tokens": ["a", "b"]})
    counts = requantize(source, tmp_path / "target.gguf", "Q5_1", None)
    assert counts["Q5_1"] == sum(values.size for values in state.values() if values.ndim == 2)
    before, after = open_checkpoint(source), open_checkpoint(tmp_path / "target.gguf")
    assert after.config() == before.config()
    name, kind = "model.layers.1.mlp.down_proj.weight", gguf.GGMLQuantizationType.Q5_1
    np.testing.assert_array_equal(after.read(name), gguf.dequantize(gguf.quantize(state[name], kind), kind))


def test_rows_that_are_no_whole_blocks_take_the_type_of_llama_cpp() -> None:
    assert (kind_for("Q4_K", (8, 512)), kind_for("Q4_K", (8, 576))) == ("Q4_K", "Q5_0")


def test_a_row_says_how_much_is_of_its_type() -> None:
    base = {"nats_per_token": 3.0, "greedy": [[1, 2]]}
    other = {"nats_per_token": 3.25, "greedy": [[1, 3]]}
    result = {
        "counts": {"Q4_K": 64, "Q5_0": 192, "F32": 0},
        "tensor_bytes": 160,
        "memory_bytes": 200,
        "forms": {DEQUANTIZED: other},
    }
    rows = rows_of({"the file": {"forms": {DEQUANTIZED: base}}, "Q4_K": result})
    assert rows == [("Q4_K", "25%", "5.00", "1.25", "+0.2500 (50%)", "")]
