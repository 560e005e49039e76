"""Weights in 8 and 4 bits: one file per format, one layout in memory (`weight.py`).

A format says which modules it covers and how their arrays are read (`scheme.py`). Nothing here knows of layers
or of a model: `layers/quantized.py` puts quantized weights where a model has float ones.
"""

from jserve.quant.detect import detect
from jserve.quant.experts import OfExperts, abstract_experts, expert_shardings
from jserve.quant.gguf import Gguf, GgufBlocks
from jserve.quant.on_load import OnLoad
from jserve.quant.packed_matrix import PackedMatrix, PackedScheme, abstract_packed, whole_partitions
from jserve.quant.repacked import Repacked
from jserve.quant.scheme import Parts, Quantization, Scheme
from jserve.quant.weight import Layout, QuantizedWeight, abstract_weight, fit_devices, shardings

__all__ = [
    "Gguf",
    "GgufBlocks",
    "Layout",
    "OfExperts",
    "OnLoad",
    "PackedMatrix",
    "PackedScheme",
    "Parts",
    "Quantization",
    "QuantizedWeight",
    "Repacked",
    "Scheme",
    "abstract_experts",
    "abstract_packed",
    "abstract_weight",
    "detect",
    "expert_shardings",
    "fit_devices",
    "shardings",
    "whole_partitions",
]
