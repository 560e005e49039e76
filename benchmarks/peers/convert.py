"""Make the formats that the peers read out of one GGUF file of a llama-architecture model.

    convert.py bf16 MODEL.gguf OUT.gguf      the same model with its matrices in bfloat16, for llama.cpp
    convert.py hf   MODEL.gguf OUT_DIR       a Hugging Face folder in bfloat16, for transformers and vLLM

`bf16` needs gguf and runs in the llama-cpp peer's Python; `hf` runs in the transformers peer's.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, dequantize
from gguf.quants import quantize

BF16_FILE_TYPE = 32  # llama.cpp's LLAMA_FTYPE_MOSTLY_BF16
MADE_BY_WRITER = ("general.architecture", "general.file_type", "general.quantization_version")


def main() -> None:
    """Convert once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("to", choices=("bf16", "hf"))
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    write = write_bf16 if args.to == "bf16" else write_hugging_face
    write(args.model, args.out)
    print(f"wrote {args.out}")


def write_bf16(model: Path, out: Path) -> None:
    """The same metadata and tensors; matrices become bfloat16, vectors (norms) float32."""
    reader = GGUFReader(model)
    writer = GGUFWriter(out, str(reader.fields["general.architecture"].contents()))
    for name, entry in reader.fields.items():
        if name.startswith("GGUF.") or name in MADE_BY_WRITER:
            continue
        inner = entry.types[-1] if entry.types[0] is GGUFValueType.ARRAY else None
        writer.add_key_value(name, entry.contents(), entry.types[0], sub_type=inner)
    writer.add_file_type(BF16_FILE_TYPE)
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if len(tensor.shape) == 1:
            writer.add_tensor(tensor.name, values)
        else:
            kind = GGMLQuantizationType.BF16
            writer.add_tensor(tensor.name, quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_hugging_face(model: Path, out: Path) -> None:
    """What transformers' own loader reads from the file, copied into a dense model and saved."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any] = {"gguf_file": model.name}
    model_class: Any = AutoModelForCausalLM
    read = model_class.from_pretrained(model.parent, dtype=torch.bfloat16, **where)
    config = AutoConfig.from_pretrained(model.parent, **where)
    dense = model_class.from_config(config, dtype=torch.bfloat16)  # `read` itself refuses to be saved
    dense.load_state_dict(read.state_dict())
    dense.save_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(model.parent, **where)
    if GGUFReader(model).fields["tokenizer.ggml.pre"].contents() == "smollm":
        tokenizer.backend_tokenizer.pre_tokenizer = smollm_pre_tokenizer()
    tokenizer.save_pretrained(out)


def smollm_pre_tokenizer() -> Any:
    """llama.cpp's rule of that name; transformers' loader leaves the split of digits out."""
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    return Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)])


if __name__ == "__main__":
    main()
