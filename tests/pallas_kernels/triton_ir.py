"""Reads the Triton IR that a lowered program carries: what each kernel adds to the pointers that it is called with."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import jax
from jaxlib.mlir import ir
from jaxlib.triton import dialect

THROUGH = ("tt.splat", "tt.broadcast", "tt.expand_dims", "tt.bitcast", "tt.reshape")


@dataclass(frozen=True, slots=True)
class Offset:
    """An offset that a kernel adds to an argument of `elements` elements."""

    kernel: str
    argument: int
    elements: int
    itemsize: int
    bits: int

    @property
    def may_wrap(self) -> bool:
        """Whether it is counted in 32 bits, which are signed, and the array has more elements than they reach."""
        return self.bits == 32 and self.elements > 2**31


def offsets(lowered: jax.stages.Lowered) -> list[Offset]:
    """Those of all Triton kernels of a program, as often as they are written. Lower it for CUDA, from CUDA's shapes."""
    return [offset for call in _walk(lowered.compiler_ir().operation) for offset in _of_call(call)]


def grids(lowered: jax.stages.Lowered) -> dict[str, tuple[int, ...]]:
    """The programs of each Triton kernel of a program, by its name, along three axes."""
    return {name: grid for call in _walk(lowered.compiler_ir().operation) for name, grid in _grid(call)}


def _walk(operation: ir.Operation) -> Iterator[ir.Operation]:
    for region in operation.regions:
        for block in region:
            for inner in block:
                yield inner.operation
                yield from _walk(inner.operation)


def _is_kernel(call: ir.Operation) -> bool:
    return call.name == "stablehlo.custom_call" and "triton" in str(call.attributes["call_target_name"])


def _grid(call: ir.Operation) -> Iterator[tuple[str, tuple[int, ...]]]:
    if _is_kernel(call):
        config = call.attributes["mhlo.backend_config"]
        grid = tuple(ir.IntegerAttr(config[f"grid_{axis}"]).value for axis in "xyz")
        yield ir.StringAttr(config["name"]).value, grid


def _of_call(call: ir.Operation) -> Iterator[Offset]:
    if not _is_kernel(call):
        return
    config = call.attributes["mhlo.backend_config"]
    name = ir.StringAttr(config["name"]).value
    types = [*(operand.type for operand in call.operands), *(result.type for result in call.results)]
    arrays = [ir.RankedTensorType(each) for each in types]
    with ir.Context() as context:
        dialect.register_dialect(context)
        module = ir.Module.parse(ir.StringAttr(config["ir"]).value_bytes)
        for operation in _walk(module.operation):
            if operation.name == "tt.addptr":
                pointer, offset = operation.operands
                number = _argument(pointer)
                shape, width = arrays[number].shape, arrays[number].element_type.width
                yield Offset(name, number, math.prod(shape), width // 8, _width(offset.type))


def _argument(pointer: ir.Value) -> int:
    """Which argument of the kernel a pointer, or a block of them, was before anything was added."""
    while not isinstance(pointer, ir.BlockArgument):
        operation = pointer.owner
        if operation.name not in (*THROUGH, "tt.addptr"):
            raise LookupError(f"a pointer comes from {operation.name}: read it too")
        pointer = operation.operands[0]
    return pointer.arg_number


def _width(offset: ir.Type) -> int:
    scalar = ir.RankedTensorType(offset).element_type if isinstance(offset, ir.RankedTensorType) else offset
    return ir.IntegerType(scalar).width
