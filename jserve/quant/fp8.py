"""Checkpoints in float8_e4m3fn: `quant_method` "fp8" (DeepSeek's blocks of 128 x 128 with `weight_scale_inv`, or one
scale per tensor) and "fbgemm_fp8" (one scale per output).

Products with blocks keep activations as they are; those with whole scales round them to float8 too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from jserve.errors import CheckpointError
from jserve.quant.plain_values import PlainValues
from jserve.quant.scheme import field_of, matches


@dataclass(frozen=True, slots=True)
class Fp8:
    """A `Quantization`: all linear layers but the ignored alike."""

    name: str
    values: PlainValues
    ignored: tuple[str, ...]

    def scheme(self, module: str) -> PlainValues | None:
        return None if any(matches(module, pattern) for pattern in self.ignored) else self.values


def read_fp8(stored: Mapping[str, Any], tensors: Mapping[str, Any]) -> Fp8:
    """`tensors` are those of the checkpoint by name: transformers has names of its own for scales of whole tensors.

    Raises CheckpointError for a variant that is not supported.
    """
    name = str(stored["quant_method"])
    ignored = (*(stored.get("modules_to_not_convert") or ()), *(stored.get("ignored_layers") or ()))
    if name == "fbgemm_fp8":
        return Fp8(name, PlainValues("fp8", activations="fp8"), ignored)
    field_of(stored, "fmt", (None, "e4m3", "float8_e4m3fn"), name)
    static = field_of(stored, "activation_scheme", (None, "dynamic", "static"), name) == "static"
    block = stored.get("weight_block_size")
    if block is None:
        whole = PlainValues("fp8", "tensor", activations="fp8", static_input=static)
        if any(tensor.endswith(".weight_scale_inv") for tensor in tensors):
            whole = replace(whole, scale_name="weight_scale_inv", input_scale_name="activation_scale")
        return Fp8(name, whole, ignored)
    if static or not (isinstance(block, list) and len(block) == 2 and all(type(n) is int and n > 0 for n in block)):
        raise CheckpointError(
            f"quantization_config of fp8: weight_block_size {block!r} with activation_scheme "
            f"{stored.get('activation_scheme')!r}; supported are two sizes such as [128, 128], with 'dynamic'"
        )
    return Fp8(name, PlainValues("fp8", "block", (block[0], block[1]), scale_name="weight_scale_inv"), ignored)
