"""Weights that a checkpoint has one value at a time, in int8 or float8, beside their scales."""

from dataclasses import dataclass

import numpy as np

from jserve.quant.scheme import Array, Read, Shapes, Source, StoredScheme, largest_scale
from jserve.quant.weight import Layout


@dataclass(frozen=True, slots=True)
class PlainValues(StoredScheme):
    """A `Scheme`. Scales belong to the tensor, to outputs ("channel"), to groups of inputs or to blocks of both."""

    kind: str
    """ "int8" or "fp8"."""
    strategy: str = "channel"
    block: tuple[int, int] = (1, 0)
    """Outputs and inputs that share a scale, of "group" and "block"."""
    activations: str = "float"
    static_input: bool = False
    scale_name: str = "weight_scale"
    input_scale_name: str = "input_scale"

    def layout(self, inputs: int) -> Layout:
        grouped = self.block[1] if self.strategy in ("group", "block") else 0
        return Layout(self.kind, grouped, activations=self.activations, static_input=self.static_input)

    def tensors(self, name: str, shape: tuple[int, ...]) -> Shapes:
        stem = name.removesuffix("weight")
        outputs, inputs = shape
        rows = {"tensor": 1, "channel": outputs}.get(self.strategy) or -(-outputs // self.block[0])
        shapes = {name: shape, f"{stem}{self.scale_name}": (rows, self.layout(inputs).groups(inputs))}
        return shapes | ({f"{stem}{self.input_scale_name}": (1,)} if self.static_input else {})

    def values(self, read: Read, stem: str, rows: slice, columns: slice) -> Array:
        return read(f"{stem}weight", (rows, columns))

    def scales(self, read: Read, stem: str, rows: slice, groups: slice) -> Array:
        """One row for each output: those of a block repeat."""
        stored = np.asarray(read(f"{stem}{self.scale_name}", ())).astype(np.float32)
        if self.strategy == "tensor":
            return np.full((rows.stop - rows.start, 1), stored.reshape(()), np.float32)
        by_row = stored.reshape(len(stored), -1)
        return by_row[np.arange(rows.start, rows.stop) // self.block[0]][:, groups]

    def read_input_scale(self, source: Source, read: Read) -> Array:
        return largest_scale(source, read, self.input_scale_name)
