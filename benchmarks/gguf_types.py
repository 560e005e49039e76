"""What each type of GGUF file costs a model in quality and memory: the file, requantized into all types that are kept.

    python -m benchmarks.gguf_types MODEL.gguf --out result.json --markdown table.md

Every matrix of the file is brought into one type, those whose inputs are no whole blocks of it into the one that
llama.cpp's tool takes instead (a model of 576 inputs has no K types there), vectors stay as they are. The `gguf`
package rounds into types of blocks of 32, the GGML in `xllamacpp` (pip install xllamacpp) into the others; without it
these are left out. Each file is then measured as `benchmarks.quality` does, dequantized: its bits decode to the same
numbers (tests/quant/test_gguf_blocks.py), and all types share one set of programs. With `--int8` also in its bits with
activations in int8.
"""

import argparse
import ctypes
import importlib.util
import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter

from benchmarks.quality import TEXT, agreement, in_own_process
from jserve.checkpoint import open_checkpoint
from jserve.commands.bench.report import machine
from jserve.config import EngineConfig
from jserve.runtime.capacity import estimate

TYPES = ("Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS", "MXFP4", "Q3_K", "Q2_K")
INSTEAD = {"Q2_K": "IQ4_NL", "Q3_K": "IQ4_NL", "IQ4_XS": "IQ4_NL", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""What llama.cpp's tool takes where the inputs are no whole blocks (`llama_tensor_get_type`)."""
OF_THE_PACKAGE = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
DEQUANTIZED, ROUNDED = "dequantized", "activations in int8"
COLUMNS = ("file in", "weights of that type", "bits a weight", "memory / file", "nats a token more", ROUNDED)


def main(argv: Sequence[str] | None = None) -> None:
    """Requantize, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="GGUF file")
    parser.add_argument("--types", default=",".join(TYPES), help="with commas")
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--tokens", type=int, default=2048, help="of the text, at most")
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--prompts", type=int, default=4, help="stretches whose first half is continued")
    parser.add_argument("--answer", type=int, default=16, help="greedy tokens of each")
    parser.add_argument("--int8", action="store_true", help="also with activations in int8")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args(argv)
    library = quantizer()
    results = {"the file": {"forms": {DEQUANTIZED: measured(options, options.model)}}}
    for kind in options.types.split(","):
        if kind not in OF_THE_PACKAGE and library is None:
            print(f"{kind} is left out: pip install xllamacpp", file=sys.stderr)
            continue
        with tempfile.TemporaryDirectory() as folder:
            results[kind] = measure(options, kind, Path(folder) / f"{kind}.gguf", library)
        about = {"command": " ".join(sys.argv), "machine": machine(), "results": results}
        options.out.write_text(json.dumps(about, indent=1) + "\n")
        lines = [f"| {' | '.join(row)} |" for row in (COLUMNS, ("---",) * len(COLUMNS), *rows_of(results))]
        if options.markdown is not None:
            options.markdown.write_text("\n".join(lines) + "\n")
        print(lines[-1], flush=True)


def measure(options: argparse.Namespace, kind: str, path: Path, library: Any) -> dict[str, Any]:
    """One type: its share of the matrices, bytes, and what `benchmarks.quality` measures."""
    counts = requantize(options.model, path, kind, library)
    with closing(open_checkpoint(path)) as checkpoint:
        capacity = estimate(checkpoint, EngineConfig(model=str(path)), "cpu")
        tensors = sum(tensor.n_bytes for tensor in GGUFReader(path).tensors)
    return {
        "counts": counts,
        "tensor_bytes": tensors,
        "memory_bytes": capacity.plan.weights,
        "forms": {DEQUANTIZED: measured(options, path)}
        | ({ROUNDED: measured(options, path, "gguf-a8")} if options.int8 else {}),
    }


def measured(options: argparse.Namespace, model: Path, kept: str = "none") -> dict[str, Any]:
    """What `benchmarks.quality` measures of one form of a file."""
    arguments = [str(model), "--text", str(options.text), "--tokens", str(options.tokens)]
    arguments += ["--sequence-length", str(options.sequence_length), "--answer", str(options.answer)]
    arguments += ["--prompts", str(options.prompts)]
    return in_own_process({"model": str(model), "dtype": "float32", "quantization": kept}, arguments)


def requantize(source: Path, target: Path, kind: str, library: Any) -> dict[str, int]:
    """Write the file with its matrices in a type; the weights in each type."""
    reader = GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer, counts = GGUFWriter(str(target), architecture), dict[str, int]()
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], inner)
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        own = kind_for(kind, values.shape) if values.ndim == 2 else "F32"
        counts[own] = counts.get(own, 0) + values.size
        number = GGMLQuantizationType[own]
        writer.add_tensor(tensor.name, rounded(values, number, library), raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return counts


def kind_for(kind: str, shape: tuple[int, ...]) -> str:
    """The type itself, or what is taken instead."""
    return kind if shape[-1] % GGML_QUANT_SIZES[GGMLQuantizationType[kind]][0] == 0 else INSTEAD[kind]


def rounded(values: np.ndarray, kind: GGMLQuantizationType, library: Any) -> np.ndarray:
    """f32[rows, inputs] in a type: u8[rows, bytes], or float32."""
    if kind.name == "F32":
        return values.astype(np.float32)
    if library is None or kind.name in OF_THE_PACKAGE:
        return gguf.quantize(values, kind)
    rows, inputs = values.shape
    block, size = GGML_QUANT_SIZES[kind]
    out, source = np.empty((rows, inputs // block * size), np.uint8), np.ascontiguousarray(values, np.float32)
    library.ggml_quantize_chunk(
        ctypes.c_int(kind.value), source.ctypes.data_as(ctypes.c_void_p), out.ctypes.data_as(ctypes.c_void_p),
        ctypes.c_int64(0), ctypes.c_int64(rows), ctypes.c_int64(inputs), None,
    )  # fmt: skip
    return out


def quantizer() -> Any:
    """GGML's functions as `xllamacpp` has them, None where it is not installed."""
    spec = importlib.util.find_spec("xllamacpp")
    if spec is None or spec.origin is None:
        return None
    (file,) = Path(spec.origin).parent.glob("*.so")
    library = ctypes.CDLL(str(file))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    return library


def rows_of(results: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """COLUMNS for every type."""
    base = results["the file"]["forms"][DEQUANTIZED]
    rows = []
    for kind, result in results.items():
        if kind == "the file":
            continue
        counts = {name: count for name, count in result["counts"].items() if name != "F32"}
        cells = []
        for name in (DEQUANTIZED, ROUNDED):
            form = result["forms"].get(name)
            more = form and form["nats_per_token"] - base["nats_per_token"]
            cells.append("" if form is None else f"{more:+.4f} ({agreement(base['greedy'], form['greedy']):.0%})")
        own, whole = counts.get(kind, 0), sum(counts.values())
        bits = 8 * result["tensor_bytes"] / sum(result["counts"].values())
        memory = result["memory_bytes"] / result["tensor_bytes"]
        rows.append((kind, f"{own / whole:.0%}", f"{bits:.2f}", f"{memory:.2f}", *cells))
    return rows


if __name__ == "__main__":
    main()
